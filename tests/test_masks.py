"""Masks: pasting against TensorFlow's own resizing, COCO's forms of them, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tuner.masks import Masks, encode_masks, encode_segmentation, paste_masks


def reframed(mask: np.ndarray, box: np.ndarray, height: int, width: int) -> np.ndarray:
    """What the Object Detection API's graphs compute, with TensorFlow's own op; values, not yet compared with 0.5."""
    low, high = box[:2], box[2:]
    corners = np.concatenate([(0 - low) / (high - low), (1 - low) / (high - low)])[np.newaxis].astype(np.float32)
    image = mask[np.newaxis, :, :, np.newaxis]
    return tf.image.crop_and_resize(image, corners, [0], [height, width], extrapolation_value=0.0).numpy()[0, :, :, 0]


def on_edge(length: int, low: float, high: float) -> np.ndarray:
    pixels = np.arange(length) / (length - 1)
    return np.minimum(np.abs(pixels - low), np.abs(pixels - high)) < 1e-5


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), height=st.integers(2, 90), width=st.integers(2, 90))
def test_masks_are_pasted_as_tensorflow_resizes_them(seed: int, height: int, width: int) -> None:
    random = np.random.default_rng(seed)
    masks = random.random((3, 15, 15), np.float32)
    low = random.uniform(0, 0.7, (3, 2))
    boxes = np.hstack([low, low + random.uniform(0.02, 0.5, (3, 2))]).astype(np.float32)
    found = paste_masks(masks, boxes, height, width)
    for index, (mask, box) in enumerate(zip(masks, boxes, strict=True)):
        values = reframed(mask, box, height, width)
        # Where float32 cannot tell a value from the threshold, or a pixel from its box's edge, either is right.
        edges = np.logical_or.outer(on_edge(height, box[0], box[2]), on_edge(width, box[1], box[3]))
        certain = (np.abs(values - 0.5) > 1e-4) & ~edges
        np.testing.assert_array_equal(found.decode(index)[certain], values[certain] > 0.5)


def test_a_box_without_extent_has_no_pixels() -> None:
    boxes = np.array([[0.5, 0.2, 0.5, 0.8], [0.2, 0.9, 0.4, 0.1], [2, 2, 3, 3]], np.float32)
    found = paste_masks(np.ones((3, 15, 15), np.float32), boxes, 40, 60)
    assert found.areas_px.tolist() == [0, 0, 0]


def test_a_full_mask_fills_its_box() -> None:
    found = paste_masks(np.ones((1, 15, 15), np.float32), np.array([[0, 0, 1, 1]], np.float32), 31, 47)
    assert found.areas_px.tolist() == [31 * 47]
    assert len(found.codes[0]) < 10


def test_masks_become_codes_and_back() -> None:
    masks = np.random.default_rng(0).random((4, 20, 30)) > 0.7
    coded = encode_masks(masks, 20, 30)
    assert len(coded) == 4
    assert coded.areas_px.tolist() == masks.sum(axis=(1, 2)).tolist()
    for index, mask in enumerate(masks):
        np.testing.assert_array_equal(coded.decode(index), mask)
    assert encode_masks([], 20, 30).areas_px.shape == (0,)


def test_all_forms_of_a_segmentation() -> None:
    square = np.zeros((10, 12), bool)
    square[2:6, 3:9] = True
    polygon = encode_segmentation([[3, 2, 9, 2, 9, 6, 3, 6]], 10, 12)
    code = encode_masks([square], 10, 12).codes[0]
    runs = np.diff(np.flatnonzero(np.diff(np.concatenate([[2], square.T.ravel(), [2]]))), append=10 * 12)
    counts = encode_segmentation({"size": [10, 12], "counts": [int(n) for n in runs if n]}, 10, 12)
    text = encode_segmentation({"size": [10, 12], "counts": code.decode()}, 10, 12)
    assert polygon == code == counts == text


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        [],
        [[1, 2, 3, 4]],
        [[1, 2, 3, 4, 5, "6"]],
        {"size": [10, 12], "counts": [5]},
        {"size": [12, 10], "counts": [120]},
        [[0, 0, float("nan"), 3, 4, 5]],
        [[0, 0, 1e30, 3, 4, 5]],
        {"size": [10, 12], "counts": [-5, 125]},
        {"size": [10, 12], "counts": "abc"},
        {"size": [10, 12], "counts": ""},
        "mask",
    ],
)
def test_what_is_no_segmentation_is_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match=r"^got .*; expected polygons of at least three points, or run lengths with "):
        encode_segmentation(wrong, 10, 12)


def test_real_annotations_have_the_areas_that_they_state(assets: Path) -> None:
    table = json.loads((assets / "coco_val/instances_with_masks.json").read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in table["images"]}
    checked = 0
    for annotation in table["annotations"][:300]:
        height, width = sizes[annotation["image_id"]]
        code = encode_segmentation(annotation["segmentation"], height, width)
        area = Masks(height, width, (code,)).areas_px[0]
        # A polygon's area is not its number of pixels: its outline lies between pixels.
        box_width, box_height = annotation["bbox"][2:]
        assert abs(area - annotation["area"]) <= 2 * (box_width + box_height) + 0.05 * annotation["area"]
        checked += 1
    assert checked == 300
