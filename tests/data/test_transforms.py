"""What each transform makes of an image, against numbers worked out by hand; and the way of boxes back."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tuner.config.transforms import Transforms
from tuner.data.transforms import apply
from tuner.detections import WHOLE, View
from tuner.errors import DatasetError

# Row and column can be read off each pixel.
RAMP = np.array([[[10 * row + column] * 3 for column in range(6)] for row in range(4)], np.uint8)
PHOTO = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)


def transformed(steps: dict[str, Any], image: NDArray[np.uint8] = RAMP) -> tuple[NDArray[Any], View]:
    before = image.copy()
    found = apply(Transforms.model_validate(steps).steps, image, "image 1")
    np.testing.assert_array_equal(image, before)
    return found


def channel(steps: dict[str, Any], image: NDArray[np.uint8] = RAMP) -> list[list[float]]:
    values: list[list[float]] = transformed(steps, image)[0][..., 0].tolist()
    return values


def test_nothing_leaves_the_image_as_it_is() -> None:
    image, view = transformed({"ParseDecodeCoco": None, "ToArray": None})
    np.testing.assert_array_equal(image, RAMP)
    assert image.dtype == np.uint8
    assert view == View(4, 6, 4, 6, WHOLE)


def test_resize() -> None:
    # Half the size: the mean of 2 x 2 pixels, as pixel centres fall between four.
    assert channel({"Resize": {"size": [2, 3]}}) == [[5.5, 7.5, 9.5], [25.5, 27.5, 29.5]]
    assert channel({"Resize": {"size": [2, 3], "interpolation": "nearest"}}) == [[11, 13, 15], [31, 33, 35]]
    image, view = transformed({"Resize": {"size": 3}})
    assert (image.shape, image.dtype, view) == ((3, 3, 3), np.float32, View(4, 6, 3, 3, WHOLE))
    assert transformed({"Resize": {"size": [4, 6]}})[0].dtype == np.float32


@pytest.mark.parametrize("method", ["bilinear", "nearest", "bicubic"])
def test_resize_is_tensorflows(method: str) -> None:
    image, _ = transformed({"Resize": {"size": [30, 80], "interpolation": method}}, PHOTO)
    np.testing.assert_array_equal(image, tf.image.resize(PHOTO, (30, 80), method).numpy())


def test_crops() -> None:
    box = {"offset_height": 1, "offset_width": 2, "target_height": 2, "target_width": 3}
    image, view = transformed({"CropToBoundingBox": box})
    assert image[..., 0].tolist() == [[12, 13, 14], [22, 23, 24]]
    assert view == View(4, 6, 2, 3, (0.25, pytest.approx(2 / 6), 0.75, pytest.approx(5 / 6)))
    # (4 - 2) // 2 and (6 - 3) // 2
    assert channel({"CenterCrop": {"size": [2, 3]}}) == [[11, 12, 13], [21, 22, 23]]
    # 3 / (3 + 1) of 4 pixels is 3; (4 - 3 + 1) // 2 and (6 - 3 + 1) // 2
    assert channel({"PaddedCenterCrop": {"size": 3, "crop_padding": 1}}) == [[12, 13, 14], [22, 23, 24], [32, 33, 34]]


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (
            {"CenterCrop": {"size": 5}},
            "transform.CenterCrop: wants rows -1 to 4 and columns 0 to 5; the picture is 4 px",
        ),
        (
            {"CropToBoundingBox": {"offset_height": 2, "offset_width": 0, "target_height": 3, "target_width": 1}},
            "transform.CropToBoundingBox: wants rows 2 to 5 and columns 0 to 1; the picture is 4 px high, 6 px wide",
        ),
        ({"PaddedCenterCrop": {"size": 1, "crop_padding": 9}}, "transform.PaddedCenterCrop: wants rows 2 to 2"),
    ],
)
def test_an_image_that_is_too_small_is_named(steps: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=r"^image 1: ") as caught:
        transformed(steps)
    assert message in str(caught.value)


def test_resize_with_ratio() -> None:
    # The shorter side is enlarged to min_dim, the longer one cut down to max_dim.
    for steps, size in (
        ({"min_dim": 8}, (8, 12)),
        ({"min_dim": 2}, (4, 6)),
        ({"min_dim": 8, "max_dim": 9}, (6, 9)),
        ({"min_dim": 0, "max_dim": 3}, (2, 3)),
    ):
        image, view = transformed({"ResizeWithRatio": steps})
        assert (image.shape[:2], view) == (size, View(4, 6, *size, WHOLE))
        np.testing.assert_array_equal(image, tf.cast(tf.image.resize(RAMP, size), tf.float32).numpy())


def test_letterbox() -> None:
    image, view = transformed({"ResizeWithRatio": {"min_dim": 6, "max_dim": 7, "padding": True, "constant_value": 128}})
    # 4 x 6 grows by 7 / 6 to 5 x 7: of the two rows left, one goes above.
    assert image.shape == (7, 7, 3)
    assert (image[0] == 128).all() and (image[6] == 128).all()
    np.testing.assert_array_equal(image[1:6], tf.image.resize(RAMP, (5, 7)).numpy())
    assert view == View(4, 6, 7, 7, (pytest.approx(-1 / 5), 0, pytest.approx(6 / 5), 1))


def test_resize_with_aspect_ratio() -> None:
    # 87.5 % of the shorter side are 2 pixels: int(100 * 2 / 87.5) = 2, and 2 * 6 / 4 for the longer one.
    assert channel({"ResizeWithAspectRatio": {"height": 2, "width": 2}}) == [[5.5, 7.5, 9.5], [25.5, 27.5, 29.5]]
    high = RAMP.transpose(1, 0, 2)
    assert transformed({"ResizeWithAspectRatio": {"height": 2, "width": 2}}, high)[0].shape == (3, 2, 3)


def test_values() -> None:
    image, view = transformed({"Rescale": None})
    assert (image.dtype, image[3, 5].tolist(), view.window) == (np.float32, [np.float32(35 / 255)] * 3, WHOLE)
    image, _ = transformed({"Normalize": {"mean": [5, 15, 25], "std": [2, 4, 5]}})
    assert (image.dtype, image[3, 5].tolist()) == (np.float32, [15, 5, 2])
    assert transformed({"Normalize": {"mean": 5}})[0][3, 5].tolist() == [30, 30, 30]
    # Fractions are cut off, and values keep to the bounds of the type.
    image, _ = transformed({"Resize": {"size": [2, 3]}, "Cast": {"dtype": "uint8"}})
    assert (image.dtype, image[..., 0].tolist()) == (np.uint8, [[5, 7, 9], [25, 27, 29]])
    image, _ = transformed({"Normalize": {"mean": 20, "std": 0.1}, "Cast": {"dtype": "uint8"}})
    assert (image[0, 0, 0], image[3, 5, 0]) == (0, 150)
    assert transformed({"Cast": {"dtype": "float16"}})[0].dtype == np.float16


def test_the_order_counts() -> None:
    first = transformed({"Rescale": None, "Normalize": {"mean": 0.5}})[0]
    last = transformed({"Normalize": {"mean": 0.5}, "Rescale": None})[0]
    assert (first[0, 0, 0], last[0, 0, 0]) == (np.float32(-0.5), np.float32(-0.5) / np.float32(255))


def test_channels() -> None:
    image, view = transformed({"Transpose": {"perm": [2, 0, 1]}})
    assert (image.shape, image[1].tolist(), view) == ((3, 4, 6), RAMP[..., 1].tolist(), View(4, 6, 4, 6, WHOLE))
    assert image.flags.c_contiguous
    colour = np.full((1, 1, 3), [200, 100, 50], np.uint8)
    grey, _ = transformed({"AlignImageChannel": {"dim": 1}}, colour)
    assert (grey.tolist(), grey.dtype) == ([[[124]]], np.uint8)  # 59.8 + 58.7 + 5.7
    np.testing.assert_array_equal(transformed({"AlignImageChannel": {}})[0], RAMP)


sides = st.integers(40, 300)
geometry = st.one_of(
    st.builds(lambda h, w: {"Resize": {"size": [h, w]}}, sides, sides),
    st.builds(
        lambda low, high, pads: {"ResizeWithRatio": {"min_dim": low, "max_dim": high, "padding": pads}},
        *(sides, sides, st.booleans()),
    ),
    st.builds(lambda side: {"CenterCrop": {"size": side}}, st.integers(8, 40)),
    st.builds(
        lambda top, left, height, width: {
            "CropToBoundingBox": dict(
                zip(
                    ("offset_height", "offset_width", "target_height", "target_width"),
                    (top, left, height, width),
                    strict=True,
                )
            )
        },
        *(st.integers(0, 20), st.integers(0, 20), st.integers(8, 20), st.integers(8, 20)),
    ),
    st.builds(
        lambda side, more: {"PaddedCenterCrop": {"size": side, "crop_padding": more}, "Resize": {"size": side}},
        *(st.integers(8, 64), st.integers(0, 32)),
    ),
    st.builds(
        lambda side: {"ResizeWithAspectRatio": {"height": side, "width": side}, "CenterCrop": {"size": side}},
        st.integers(8, 64),
    ),
)


@settings(max_examples=60, deadline=None)
@given(height=sides, width=sides, steps=geometry)
def test_a_spot_is_found_where_it_was(height: int, width: int, steps: dict[str, Any]) -> None:
    """A brightness that rises evenly along each axis tells of every fed pixel where in the image it comes from."""
    rows = np.repeat((np.arange(height) / height * 200)[:, np.newaxis], width, axis=1)
    columns = np.repeat((np.arange(width) / width * 200)[np.newaxis], height, axis=0)
    image = np.stack([rows, columns, np.full((height, width), 255)], axis=2).astype(np.uint8)
    fed, view = transformed(steps, image)
    assert fed.shape[:2] == (view.fed_height, view.fed_width)
    y, x = np.argwhere(fed[..., 2] > 254).mean(axis=0).astype(int)
    box = np.array([[y, x, y + 1, x + 1]], np.float32)
    found = view.locate(box, in_pixels=True)[0]
    scaled = box / np.array([view.fed_height, view.fed_width] * 2)
    np.testing.assert_allclose(view.locate(scaled.astype(np.float32))[0], found, rtol=0, atol=1e-6)
    middle = (found[:2] + found[2:]) / 2
    # Of the box's middle, to two levels of brightness and two pixels of the fed picture or the image.
    steps_of_a_pixel = np.maximum(found[2:] - found[:2], 1 / np.array([height, width]))
    assert (np.abs(middle - fed[y, x, :2] / 200) <= 2 / 200 + 2 * steps_of_a_pixel).all()


windows = st.tuples(*(st.floats(-1, 0.4), st.floats(-1, 0.4), st.floats(0.6, 2), st.floats(0.6, 2)))


@given(window=windows, box=st.tuples(*(st.floats(0, 1) for _ in range(4))))
def test_a_box_of_the_image_comes_back(window: tuple[float, float, float, float], box: Any) -> None:
    view = View(480, 640, 300, 300, window)
    low, high = np.array(window[:2] * 2), np.array(window[2:] * 2)
    in_picture = ((np.array([box]) - low) / (high - low)).astype(np.float32)
    back = view.clip(view.locate(in_picture))
    np.testing.assert_allclose(back, [box], rtol=0, atol=2e-6)
    assert back.dtype == np.float32 and back.min() >= 0 and back.max() <= 1
    np.testing.assert_allclose(view.locate(in_picture * 300, in_pixels=True), [box], rtol=0, atol=2e-6)
