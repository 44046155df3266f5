"""How far the results of two graphs of one detector lie apart."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.model.endpoints import DETECTION_OUTPUTS

_BOXES, _SCORES, _CLASSES, _NUMBER = (f"{name}:0" for name in DETECTION_OUTPUTS)


def differences(before: Mapping[str, NDArray[Any]], after: Mapping[str, NDArray[Any]]) -> dict[str, float]:
    """The largest absolute difference of each output, by its tensor name; infinite where shapes or dtypes differ.

    before, after: the outputs of the same tensor names for the same batch. Detections of equal scores may stand in
    another order, and the number of detections counts as a difference like any other.
    """
    found = {name: _largest(value, after[name]) for name, value in before.items()}
    in_order = {_BOXES, _SCORES, _CLASSES, _NUMBER}
    if in_order <= before.keys() and np.isfinite([found[name] for name in in_order]).all():
        first, second = _in_one_order(before), _in_one_order(after)
        found.update({name: _largest(first[name], second[name]) for name in first})
    return found


def _largest(before: NDArray[Any], after: NDArray[Any]) -> float:
    if before.shape != after.shape or before.dtype != after.dtype:
        return float("inf")
    if before.size == 0:
        return 0.0
    if before.dtype.kind not in "fiub":
        return 0.0 if np.array_equal(before, after) else float("inf")
    with np.errstate(invalid="ignore"):
        apart = np.abs(before.astype(np.float64) - after.astype(np.float64))
    # What is not a number in both is no difference; in one of them it is the largest there is.
    same = (before == after) | (np.isnan(before.astype(np.float64)) & np.isnan(after.astype(np.float64)))
    return float(np.max(np.where(same, 0.0, np.where(np.isnan(apart), np.inf, apart))))


def _in_one_order(outputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Boxes and classes in the order of their scores, those of equal scores by class and box."""
    boxes, classes = np.copy(outputs[_BOXES]), np.copy(outputs[_CLASSES])
    for image, scores in enumerate(outputs[_SCORES]):
        order = np.lexsort((*boxes[image].T[::-1], classes[image], -scores))
        boxes[image], classes[image] = boxes[image][order], classes[image][order]
    return {_BOXES: boxes, _CLASSES: classes}
