"""What the `transform` section asks for, done to a decoded image; and where the result lies in that image.

Parameters and meaning are those of LPOT's transforms for TensorFlow (lpot/data/transforms), interpolation is
TensorFlow's own (`tf.image.resize`, without antialiasing).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.python.eager.context import eager_mode

from tuner.config.transforms import (
    AlignImageChannel,
    Cast,
    CenterCrop,
    CropToBoundingBox,
    Normalize,
    PaddedCenterCrop,
    ParseDecodeCoco,
    Rescale,
    Resize,
    ResizeWithAspectRatio,
    ResizeWithRatio,
    Step,
    ToArray,
    Transpose,
)
from tuner.detections import WHOLE, View
from tuner.errors import DatasetError

# ITU-R BT.601, which OpenCV's RGB to grey takes.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True, slots=True)
class _Picture:
    """pixels: [H, W, channels], until they are transposed. height, width, window: as in `View`."""

    pixels: NDArray[Any]
    height: int
    width: int
    window: tuple[float, float, float, float] = WHOLE

    def cut(self, top: int, left: int, height: int, width: int) -> "_Picture":
        """The part that begins at row `top` and column `left`; negative ones and what is too large lie outside."""
        ymin, xmin, ymax, xmax = self.window
        row, column = (ymax - ymin) / self.height, (xmax - xmin) / self.width
        window = (ymin + top * row, xmin + left * column, ymin + (top + height) * row, xmin + (left + width) * column)
        pixels = self.pixels[max(top, 0) : top + height, max(left, 0) : left + width]
        return _Picture(pixels, height, width, window)


def apply(steps: Sequence[Step], image: NDArray[np.uint8], where: str) -> tuple[NDArray[Any], View]:
    """What a model is fed for an image of [H, W, 3] uint8, and where in the image that lies. The image stays as it is.

    where: names the image in messages. Raises DatasetError for an image that is too small to be cropped so.
    """
    picture = _Picture(image, *image.shape[:2])
    for step in steps:
        picture = _APPLY[type(step)](step, picture, where)
    height, width = image.shape[:2]
    view = View(height, width, picture.height, picture.width, picture.window)
    return np.ascontiguousarray(picture.pixels), view


def _resize(step: Resize, picture: _Picture, where: str) -> _Picture:
    return _resized(picture, *step.size, step.interpolation)


def _resize_with_ratio(step: ResizeWithRatio, picture: _Picture, where: str) -> _Picture:
    shorter, longer = sorted((picture.height, picture.width))
    # In float32, as TensorFlow computes it: halves are rounded the same way.
    scale = np.float32(max(1.0, step.min_dim / shorter))
    if np.rint(longer * scale) > step.max_dim:
        scale = np.float32(step.max_dim / longer)
    height, width = (int(np.rint(np.float32(side) * scale)) for side in (picture.height, picture.width))
    resized = _resized(picture, max(height, 1), max(width, 1), "bilinear")
    if not step.padding:
        return resized
    side = step.max_dim
    top, left = (side - resized.height) // 2, (side - resized.width) // 2
    bottom, right = side - resized.height - top, side - resized.width - left
    padded = np.pad(resized.pixels, ((top, bottom), (left, right), (0, 0)), constant_values=step.constant_value)
    return replace(resized.cut(-top, -left, side, side), pixels=padded)


def _resize_with_aspect_ratio(step: ResizeWithAspectRatio, picture: _Picture, where: str) -> _Picture:
    height, width = int(100 * step.height / step.scale), int(100 * step.width / step.scale)
    if picture.height > picture.width:
        height = int(height * picture.height / picture.width)
    else:
        width = int(width * picture.width / picture.height)
    return _resized(picture, height, width, "area")


def _resized(picture: _Picture, height: int, width: int, method: str) -> _Picture:
    with eager_mode():
        pixels = tf.image.resize(picture.pixels, (height, width), method).numpy()
    # Of the same size, TensorFlow hands the image back in its own type.
    pixels = pixels if method == "nearest" else pixels.astype(np.float32, copy=False)
    return replace(picture, pixels=pixels, height=height, width=width)


def _crop_to_bounding_box(step: CropToBoundingBox, picture: _Picture, where: str) -> _Picture:
    low = (step.offset_height, step.offset_width)
    return _cropped(picture, low, (step.target_height, step.target_width), "CropToBoundingBox", where)


def _center_crop(step: CenterCrop, picture: _Picture, where: str) -> _Picture:
    low = (picture.height - step.size[0]) // 2, (picture.width - step.size[1]) // 2
    return _cropped(picture, low, step.size, "CenterCrop", where)


def _padded_center_crop(step: PaddedCenterCrop, picture: _Picture, where: str) -> _Picture:
    share = step.size[0] / (step.size[0] + step.crop_padding)
    side = int(share * min(picture.height, picture.width))
    low = (picture.height - side + 1) // 2, (picture.width - side + 1) // 2
    return _cropped(picture, low, (side, side), "PaddedCenterCrop", where)


def _cropped(picture: _Picture, low: tuple[int, int], size: tuple[int, int], name: str, where: str) -> _Picture:
    high = low[0] + size[0], low[1] + size[1]
    if min(low) < 0 or min(size) < 1 or high[0] > picture.height or high[1] > picture.width:
        raise DatasetError(
            f"{where}: transform.{name}: wants rows {low[0]} to {high[0]} and columns {low[1]} to {high[1]}; "
            f"the picture is {picture.height} px high, {picture.width} px wide"
        )
    return picture.cut(*low, *size)


def _rescale(step: Rescale, picture: _Picture, where: str) -> _Picture:
    return replace(picture, pixels=picture.pixels.astype(np.float32) / np.float32(255))


def _normalize(step: Normalize, picture: _Picture, where: str) -> _Picture:
    kind = picture.pixels.dtype if picture.pixels.dtype.kind == "f" else np.dtype(np.float32)
    mean, std = np.array(step.mean, kind), np.array(step.std, kind)
    return replace(picture, pixels=(picture.pixels.astype(kind, copy=False) - mean) / std)


def _cast(step: Cast, picture: _Picture, where: str) -> _Picture:
    kind = np.dtype(step.dtype)
    pixels = picture.pixels
    if kind.kind in "iu":
        bounds = np.iinfo(kind)
        pixels = np.clip(pixels.astype(np.float64), bounds.min, bounds.max)
    return replace(picture, pixels=pixels.astype(kind))


def _align_image_channel(step: AlignImageChannel, picture: _Picture, where: str) -> _Picture:
    if step.dim == picture.pixels.shape[-1]:
        return picture
    grey = (picture.pixels @ _LUMA)[..., np.newaxis]
    grey = grey if picture.pixels.dtype.kind == "f" else np.rint(grey)
    return replace(picture, pixels=grey.astype(picture.pixels.dtype))


def _transpose(step: Transpose, picture: _Picture, where: str) -> _Picture:
    return replace(picture, pixels=picture.pixels.transpose(step.perm))


def _nothing(step: Step, picture: _Picture, where: str) -> _Picture:
    return picture


_APPLY: dict[type[Step], Callable[[Any, _Picture, str], _Picture]] = {
    ParseDecodeCoco: _nothing,
    ToArray: _nothing,
    Resize: _resize,
    ResizeWithRatio: _resize_with_ratio,
    ResizeWithAspectRatio: _resize_with_aspect_ratio,
    CropToBoundingBox: _crop_to_bounding_box,
    CenterCrop: _center_crop,
    PaddedCenterCrop: _padded_center_crop,
    Rescale: _rescale,
    Normalize: _normalize,
    Cast: _cast,
    Transpose: _transpose,
    AlignImageChannel: _align_image_channel,
}
