"""How far results lie apart, whatever the order of equal scores."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tuner.graph.compare import differences, relative_differences

BOXES = [[[0.1, 0.1, 0.5, 0.5], [0.2, 0.2, 0.6, 0.6], [0, 0, 1, 1]]]


def outputs(
    boxes: Any = BOXES, scores: Any = ((0.9, 0.5, 0.5),), classes: Any = ((1, 2, 3),), number: Any = (3,)
) -> dict[str, NDArray[Any]]:
    return {
        "detection_boxes:0": np.array(boxes, np.float32),
        "detection_scores:0": np.array(scores, np.float32),
        "detection_classes:0": np.array(classes, np.float32),
        "num_detections:0": np.array(number, np.float32),
    }


def swapped(first: int, second: int) -> dict[str, NDArray[Any]]:
    order = list(range(3))
    order[first], order[second] = second, first
    return {name: value if value.ndim == 1 else value[:, order] for name, value in outputs().items()}


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (outputs(), 0.0),
        (swapped(1, 2), 0.0),
        (swapped(0, 1), float(np.float32(0.9)) - 0.5),
        (outputs(scores=((0.9, 0.5, 0.25),)), 0.25),
        (outputs(classes=((1, 2, 4),)), 1.0),
        (outputs(number=(2,)), 1.0),
        (outputs(scores=((0.9, 0.5, np.nan),)), np.inf),
        (outputs(scores=((0.9, 0.5),)), np.inf),
    ],
)
def test_the_largest_difference(after: dict[str, NDArray[Any]], expected: float) -> None:
    assert max(differences(outputs(), after).values()) == expected


def test_names_what_differs() -> None:
    found = differences(outputs(), outputs(number=(2,)))
    assert [name for name, value in found.items() if value] == ["num_detections:0"]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (np.zeros((2, 3)), np.full((2, 3), 0.5), 0.5),
        (np.zeros(3), np.zeros(4), np.inf),
        (np.zeros(3, np.float32), np.zeros(3, np.int32), np.inf),
        (np.array([np.nan, np.inf]), np.array([np.nan, np.inf]), 0.0),
        (np.zeros((0, 4)), np.zeros((0, 4)), 0.0),
        (np.array([b"a"], object), np.array([b"b"], object), np.inf),
    ],
)
def test_any_output(before: NDArray[Any], after: NDArray[Any], expected: float) -> None:
    assert differences({"raw:0": before}, {"raw:0": after}) == {"raw:0": expected}


def detections(scores: list[float], classes: list[float] | None = None, count: int | None = None) -> dict[str, Any]:
    """Detections whose boxes begin at ten times the class."""
    classes = [float(index) for index in range(len(scores))] if classes is None else classes
    boxes = np.array([[one * 0.1, 0.0, one * 0.1 + 0.2, 1.0] for one in classes], np.float32)
    return {
        "detection_boxes:0": boxes[np.newaxis],
        "detection_scores:0": np.array([scores], np.float32),
        "detection_classes:0": np.array([classes], np.float32),
        "num_detections:0": np.array([len(scores) if count is None else count], np.float32),
    }


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        (detections([0.9, 0.5, 0.1], [1, 2, 3]), detections([0.9, 0.5, 0.1], [1, 2, 3]), True),
        # Rounding decides the order of what is as good as equal.
        (
            detections([0.9, 0.5000001, 0.5, 0.0], [1, 2, 3, 0], 3),
            detections([0.9, 0.5000001, 0.5, 0.0], [1, 3, 2, 0], 3),
            True,
        ),
        (detections([0.9, 0.5, 0.4, 0.0], [1, 2, 3, 0], 3), detections([0.9, 0.5, 0.4, 0.0], [1, 3, 2, 0], 3), False),
        # And which of two equals is the last that fits.
        (detections([0.9, 0.5], [1, 2]), detections([0.9, 0.5], [1, 3]), True),
        (detections([0.9, 0.5, 0.0], [1, 2, 0], 2), detections([0.9, 0.5, 0.0], [1, 3, 0], 2), False),
        (detections([0.9, 0.5], [1, 2]), detections([0.9, 0.4], [1, 2]), False),
        (detections([0.9, 0.5], [1, 2]), detections([0.9, 0.5], [1, 2], 1), False),
    ],
)
def test_relative_differences_of_detections(before: dict[str, Any], after: dict[str, Any], same: bool) -> None:
    assert (max(relative_differences(before, after, 1e-5).values()) <= 1e-5) is same


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([2.0, -4.0], [2.0, -4.0], 0.0),
        ([2.0, -4.0], [2.0, -4.4], 0.1),
        ([0.0], [0.0], 0.0),
        ([0.0], [1e-9], float("inf")),
        ([2.0], [2.0, 2.0], float("inf")),
        ([float("nan"), 2.0], [float("nan"), 1.0], 0.5),
    ],
)
def test_relative_differences(before: list[float], after: list[float], expected: float) -> None:
    found = relative_differences({"x:0": np.array(before)}, {"x:0": np.array(after)}, 1e-5)
    assert found["x:0"] == pytest.approx(expected)
