"""What must be true of the annotations of one image, whichever file they come from."""

import difflib
from collections.abc import Iterable

import numpy as np

from tuner.detections import GroundTruth
from tuner.errors import DatasetError

_SIDES = ("ymin", "xmin", "ymax", "xmax")
_OVERHANG_PX = 1.0  # annotation tools round to whole pixels, records to float32


def check_ground_truth(truth: GroundTruth, height: int, width: int, where: str) -> None:
    """Raise DatasetError for an image size that is not positive or a box that no evaluator could use.

    Refused: a box that is not finite, has a negative size, or lies more than one pixel outside its image. A box of
    zero width or height is kept: COCO's own files hold some, and its evaluators count them as objects.
    """
    if height <= 0 or width <= 0:
        raise DatasetError(f"{where}: image size: got {height} x {width}; expected positive height and width")
    boxes_px = truth.boxes * [height, width, height, width]
    low, high = boxes_px[:, :2], boxes_px[:, 2:]
    faults = {
        "not finite": ~np.isfinite(boxes_px),
        "negative size": high < low,
        "outside its image": np.hstack([low < -_OVERHANG_PX, high > np.array([height, width]) + _OVERHANG_PX]),
    }
    for fault, found in faults.items():
        rows = np.flatnonzero(found.any(axis=1))
        if len(rows):
            sides = ", ".join(f"{side} {px:g}" for side, px in zip(_SIDES, boxes_px[rows[0]], strict=True))
            raise DatasetError(f"{where}: box {rows[0]}: {fault}: {sides} px in an image of {height} x {width}")
    bad_areas = np.flatnonzero(~(truth.areas_px >= 0))
    if len(bad_areas):
        index = int(bad_areas[0])
        raise DatasetError(f"{where}: area {index}: got {truth.areas_px[index]}; expected 0 or more square pixels")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The nearest of `known` as an appendix to an error message, or nothing."""
    near = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
