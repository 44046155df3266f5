"""What must be true of the annotations of one image, whichever file they come from."""

from collections.abc import Callable

import numpy as np

from tuner.detections import GroundTruth
from tuner.errors import DatasetError

_SIDES = ("ymin", "xmin", "ymax", "xmax")
_OVERHANG_PX = 1.0  # annotation tools round to whole pixels, records to float32


def check_ground_truth(
    truth: GroundTruth, height: int, width: int, where: str, key: Callable[[int], str] = "object {}".format
) -> None:
    """Raise DatasetError for an image size that is not positive or an object that no evaluator could use.

    where, key: the image's and the n-th object's names in the message.
    Refused: a box that is not finite, has a negative size, or lies more than one pixel outside its image, and an
    area that is negative or not a number. A box of zero width or height is kept: COCO's own files hold some, and
    its evaluators count them as objects.
    """
    if height <= 0 or width <= 0:
        raise DatasetError(f"{where}: image size: got {height} x {width}; expected positive height and width")
    boxes_px = truth.boxes * [height, width, height, width]
    low, high = boxes_px[:, :2], boxes_px[:, 2:]
    faults = {
        "not finite": ~np.isfinite(boxes_px),
        "of negative size": high < low,
        "outside its image": np.hstack([low < -_OVERHANG_PX, high > np.array([height, width]) + _OVERHANG_PX]),
    }
    for fault, found in faults.items():
        for row in np.flatnonzero(found.any(axis=1))[:1]:
            sides = ", ".join(f"{side} {px:g}" for side, px in zip(_SIDES, boxes_px[row], strict=True))
            raise DatasetError(
                f"{where}: {key(row)}: box is {fault}: got {sides} px; the image is {height} px high, {width} px wide"
            )
    for row in np.flatnonzero(~(truth.areas_px >= 0))[:1]:
        raise DatasetError(f"{where}: {key(row)}: area: got {truth.areas_px[row]}; expected 0 or more square pixels")
