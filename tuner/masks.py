"""Masks of objects, run-length encoded as COCO has them: some hundred bytes each instead of one for each pixel."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pycocotools.mask
from numpy.typing import NDArray

# What the Object Detection API takes as part of an object.
THRESHOLD = 0.5


@dataclass(frozen=True, slots=True)
class Masks:
    """The masks of the objects of one image. height, width: in pixels. codes: COCO's compressed counts, one each."""

    height: int
    width: int
    codes: tuple[bytes, ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def run_lengths(self) -> list[dict[str, Any]]:
        """Each as the object that COCO's evaluators take."""
        return [{"size": [self.height, self.width], "counts": code} for code in self.codes]

    @property
    def areas_px(self) -> NDArray[np.float64]:
        """[N], the number of pixels of each."""
        return np.array(pycocotools.mask.area(self.run_lengths) if self.codes else [], np.float64)

    def decode(self, index: int) -> NDArray[np.bool_]:
        """One of them, [height, width]."""
        mask: NDArray[np.bool_] = pycocotools.mask.decode(self.run_lengths[index]).astype(bool)
        return mask


def encode_masks(masks: Iterable[NDArray[Any]], height: int, width: int) -> Masks:
    """Encode masks of [height, width] each: an object's pixels are those that are not 0."""
    return Masks(height, width, tuple(_encoded(mask != 0) for mask in masks))


def encode_segmentation(segmentation: Any, height: int, width: int) -> bytes:
    """The code of an annotation's `segmentation`: a list of polygons, or run lengths, compressed or not.

    Raises ValueError in words that can follow "segmentation:" for anything else.
    """
    largest = 2 * max(height, width)
    if isinstance(segmentation, list) and segmentation and all(_is_polygon(one, largest) for one in segmentation):
        parts = pycocotools.mask.frPyObjects(segmentation, height, width)
        code: bytes = pycocotools.mask.merge(parts)["counts"]
        return code
    if isinstance(segmentation, dict) and segmentation.get("size") == [height, width]:
        counts = segmentation.get("counts")
        if isinstance(counts, list) and _are_runs(counts, height * width):
            code = pycocotools.mask.frPyObjects(segmentation, height, width)["counts"]
            return code
        if isinstance(counts, str) and _is_code(counts, height, width):
            return counts.encode()
    raise ValueError(
        f"got {str(segmentation)[:60]}; expected polygons of at least three points, or run lengths with "
        f"size [{height}, {width}]"
    )


def paste_masks(cropped: NDArray[np.float32], boxes: NDArray[np.float32], height: int, width: int) -> Masks:
    """The masks of an image from those of its boxes.

    cropped: [N, h, w], 0..1, each spread over its box. boxes: [N, 4], ymin xmin ymax xmax, 0..1 of the image.
    Interpolated as `reframe_box_masks_to_image_masks` of the Object Detection API does, by `crop_and_resize` with the
    corners of the image on the centres of its corner pixels; a pixel is the object's where the value is above 0.5.
    """
    return Masks(
        height, width, tuple(_pasted(mask, box, height, width) for mask, box in zip(cropped, boxes, strict=True))
    )


def _pasted(mask: NDArray[np.float32], box: NDArray[np.float32], height: int, width: int) -> bytes:
    top, rows = _interpolation(height, float(box[0]), float(box[2]), mask.shape[0])
    left, columns = _interpolation(width, float(box[1]), float(box[3]), mask.shape[1])
    pasted = np.zeros((height, width), bool)
    pasted[top : top + len(rows), left : left + len(columns)] = rows @ mask @ columns.T > THRESHOLD
    return _encoded(pasted)


def _interpolation(length: int, low: float, high: float, cells: int) -> tuple[int, NDArray[np.float64]]:
    """The first pixel along one axis that lies in low..high, and the weights [pixels, cells] of it and those after."""
    if not high > low:
        return 0, np.zeros((0, cells))
    pixels = np.arange(length) / max(length - 1, 1) if length > 1 else np.array([0.5])
    positions = (pixels - low) / (high - low) * (cells - 1)
    inside = np.flatnonzero((positions >= 0) & (positions <= cells - 1))
    if not len(inside):
        return 0, np.zeros((0, cells))
    # Weight 1 at a cell's own position, 0 at its neighbours'.
    weights = np.maximum(0, 1 - np.abs(positions[inside, np.newaxis] - np.arange(cells)))
    return int(inside[0]), weights


def _encoded(mask: NDArray[np.bool_]) -> bytes:
    code: bytes = pycocotools.mask.encode(np.asfortranarray(mask, np.uint8))["counts"]
    return code


def _is_polygon(value: Any, largest: float) -> bool:
    """Whether it is a list x, y, x, y .. of at least three points, no coordinate beyond `largest`."""
    numbers = isinstance(value, list) and len(value) >= 6 and len(value) % 2 == 0
    return numbers and all(
        isinstance(one, int | float) and not isinstance(one, bool) and -largest <= one <= largest for one in value
    )


def _are_runs(counts: list[Any], pixels: int) -> bool:
    return all(isinstance(one, int) and one >= 0 for one in counts) and sum(counts) == pixels


def _is_code(counts: str, height: int, width: int) -> bool:
    try:
        pycocotools.mask.decode({"size": [height, width], "counts": counts.encode()})
    except ValueError:
        return False
    return bool(counts)
