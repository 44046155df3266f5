"""Scenes follow from split and index alone, and their annotations describe what is drawn."""

import hashlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from pycocotools import mask as coco_mask

_HASH_SCRIPT = """
import hashlib, scenes
scene = scenes.draw_scene("evaluation", 3)
print(hashlib.sha256(scene.image.tobytes() + scene.boxes_px.tobytes()).hexdigest())
"""


def test_a_scene_is_the_same_in_every_process(scenes: ModuleType, shapes_folder: Path) -> None:
    scene = scenes.draw_scene("evaluation", 3)
    here = hashlib.sha256(scene.image.tobytes() + scene.boxes_px.tobytes()).hexdigest()
    elsewhere = subprocess.run(
        [sys.executable, "-c", _HASH_SCRIPT], cwd=shapes_folder, capture_output=True, text=True, check=True
    )
    assert elsewhere.stdout.strip() == here


@pytest.mark.parametrize("other", [("evaluation", 4), ("calibration", 3), ("training", 3)])
def test_other_numbers_and_splits_give_other_scenes(scenes: ModuleType, other: tuple[str, int]) -> None:
    first, second = scenes.draw_scene("evaluation", 3), scenes.draw_scene(*other)
    assert first.image.shape != second.image.shape or not np.array_equal(first.image, second.image)


@pytest.mark.parametrize("index", range(30))
def test_annotations_describe_the_drawn_outlines(scenes: ModuleType, index: int) -> None:
    scene = scenes.draw_scene("training", index)
    height, width = scene.image.shape[:2]
    assert scene.image.dtype == np.uint8 and scene.image.shape == (height, width, 3)
    count = len(scene.category_ids)
    assert 1 <= count <= 8
    assert scene.boxes_px.shape == (count, 4) and scene.areas_px.shape == (count,) and len(scene.polygons_px) == count
    assert set(scene.category_ids.tolist()) <= set(scenes.CATEGORIES)

    for (x, y, box_width, box_height), area, polygon in zip(
        scene.boxes_px, scene.areas_px, scene.polygons_px, strict=True
    ):
        assert 12 <= box_width <= 160 and 12 <= box_height <= 160
        assert x >= 0 and y >= 0 and x + box_width <= width and y + box_height <= height
        np.testing.assert_allclose([x, y], polygon.min(axis=0), atol=0.01)
        np.testing.assert_allclose([x + box_width, y + box_height], polygon.max(axis=0), atol=0.01)
        encoded = coco_mask.frPyObjects([polygon.ravel().tolist()], height, width)
        assert coco_mask.area(encoded)[0] == area
        # A sharp tip is thinner than a pixel: the drawn extent may end before the outline's does, never after.
        drawn_x, drawn_y, drawn_width, drawn_height = coco_mask.toBbox(encoded)[0]
        assert drawn_x >= x - 1 and drawn_x + drawn_width <= x + box_width + 1
        assert drawn_y >= y - 1 and drawn_y + drawn_height <= y + box_height + 1
        assert drawn_width >= 0.8 * box_width - 2 and drawn_height >= 0.8 * box_height - 2
        assert area == pytest.approx(_shoelace_area(polygon), rel=0.08, abs=12)


def test_every_category_and_many_sizes_are_drawn(scenes: ModuleType) -> None:
    drawn = [scenes.draw_scene("training", index) for index in range(40)]
    assert set(np.concatenate([scene.category_ids for scene in drawn]).tolist()) == set(scenes.CATEGORIES)
    longer_sides = np.concatenate([scene.boxes_px[:, 2:].max(axis=1) for scene in drawn])
    assert longer_sides.min() < 20 and longer_sides.max() > 120
    counts = {len(scene.category_ids) for scene in drawn}
    assert {1, 8} <= counts


def test_objects_overlap_but_none_is_hidden(scenes: ModuleType) -> None:
    overlaps = 0
    for index in range(20):
        scene = scenes.draw_scene("training", index)
        masks = [scenes.rasterise(polygon, *scene.image.shape[:2]) for polygon in scene.polygons_px]
        for number, mask in enumerate(masks):
            later = np.logical_or.reduce([*masks[number + 1 :], np.zeros_like(mask)])
            overlaps += int(np.any(mask & later))
            assert np.sum(mask & ~later) >= 0.6 * np.sum(mask)
    assert overlaps > 0


def test_category_ids_have_holes(scenes: ModuleType) -> None:
    ids = list(scenes.CATEGORIES)
    assert len(ids) >= 8 and ids == sorted(ids) and len(ids) < ids[-1]


def _shoelace_area(polygon: np.ndarray) -> float:
    x, y = polygon.T
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2
