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


def relative_differences(
    before: Mapping[str, NDArray[Any]], after: Mapping[str, NDArray[Any]], tolerance: float
) -> dict[str, float]:
    """The largest absolute difference of each output over the largest absolute value that it has in `before`.

    Infinite where shapes or dtypes differ, or where an output that was all zero is not. Arguments as `differences`.
    Detections whose scores lie within `tolerance` of the largest score may stand in another order, and of those that
    lie so near to the last score that is left in a full list any may be in it: rounding decides that.
    """
    largest = {name: _largest_value(value) for name, value in before.items()}
    found = {name: _relative(_largest(value, after[name]), largest[name]) for name, value in before.items()}
    in_order = (_BOXES, _SCORES, _CLASSES)
    if {*in_order, _NUMBER} <= before.keys() and np.isfinite([found[name] for name in in_order]).all():
        for name, difference in _matched(before, after, tolerance * largest[_SCORES]).items():
            found[name] = min(found[name], _relative(difference, largest[name]))
    return found


def _largest_value(value: NDArray[Any]) -> float:
    numbers = value.dtype.kind in "fiub" and value.size
    return float(np.nanmax(np.abs(value.astype(np.float64)), initial=0.0)) if numbers else 0.0


def _relative(difference: float, largest: float) -> float:
    return 0.0 if difference == 0 else difference / largest if largest else float("inf")


def _matched(before: Mapping[str, NDArray[Any]], after: Mapping[str, NDArray[Any]], near: float) -> dict[str, float]:
    """The largest differences of boxes and classes between detections of like scores, each with the one nearest to it.

    near: how far scores may lie apart.
    """
    apart = {_BOXES: 0.0, _CLASSES: 0.0}
    for image, scores in enumerate(before[_SCORES]):
        count = int(before[_NUMBER].reshape(-1)[image])
        last = scores[count - 1] if 0 < count == len(scores) else -np.inf
        left = set(range(len(scores)))
        for index, score in enumerate(scores):
            distances = {
                other: (
                    float(abs(before[_CLASSES][image, index] - after[_CLASSES][image, other])),
                    float(np.abs(before[_BOXES][image, index] - after[_BOXES][image, other]).max()),
                )
                for other in left
                if abs(score - after[_SCORES][image, other]) <= near
            }
            if not distances:
                continue  # Scores that differ are a difference of the scores.
            nearest = min(distances, key=lambda other: distances[other])
            left.discard(nearest)
            if abs(score - last) > near:
                by_class, by_box = distances[nearest]
                apart[_CLASSES], apart[_BOXES] = max(apart[_CLASSES], by_class), max(apart[_BOXES], by_box)
    return apart


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
