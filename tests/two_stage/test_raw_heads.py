"""What the raw results of a detector of several stages are, and how an operator's rounding is held against them."""

from typing import Any

import numpy as np
import pytest

from tests.two_stage.conftest import Small, pictures
from tuner.model.runner import ModelRunner
from tuner.quantization import sensitivity
from tuner.quantization.gated_simulation import simulate_gated
from tuner.quantization.sensitivity import find_heads, measure_sensitivity

HEADS = {
    "FirstStageBoxPredictor/BoxEncodingPredictor/BiasAdd:0",
    "FirstStageBoxPredictor/ClassPredictor/BiasAdd:0",
    "SecondStageBoxPredictor/BoxEncodingPredictor/BiasAdd:0",
    "SecondStageBoxPredictor/ClassPredictor/BiasAdd:0",
}
MASK_HEAD = "SecondStageBoxPredictor_1/Conv_1/BiasAdd:0"


def test_every_stage_has_raw_results(small: Small) -> None:
    assert set(find_heads(small.prepared.graph)) == HEADS | ({MASK_HEAD} if small.has_masks else set())


@pytest.mark.parametrize("small", ["masks"], indirect=True)
def test_rounding_is_measured_at_once(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the heads' errors with one op at a time in int8 and the crops where the float graph has them."""

    def one_by_one(*arguments: Any) -> Any:
        raise AssertionError("one by one")

    monkeypatch.setattr(sensitivity, "_one_by_one", one_by_one)
    # Few images with many draws each: what rounds one op at a time takes a run for each op.
    monkeypatch.setattr(sensitivity, "PROJECTIONS", 16)
    images = pictures(3)
    damage = measure_sensitivity(small.prepared, small.plan, small.ranges, images)
    assert set(damage) == set(small.ops.names)
    expected = errors_alone(small, images)
    for op, error in zip(small.ops.names, expected, strict=True):
        # As in test_sensitivity: the mean of 48 squared normal numbers, a standard deviation is 20 %.
        assert damage[op] == pytest.approx(error, rel=0.6), op


def errors_alone(small: Small, images: list[Any]) -> list[float]:
    graph = small.prepared.graph
    heads = find_heads(graph)
    boxes = [f"{node.input[1]}:0" for node in graph.graph_def.node if node.op == "CropAndResize"]
    gated = small.prepared.with_graph(simulate_gated(graph, small.plan, small.ranges, "gates").graph_def)
    errors = np.zeros(len(small.ops.names))
    with ModelRunner(gated) as runner:
        for image in images:
            shut = {"gates:0": np.zeros(len(errors), np.float32)}
            exact, given = runner.fetch(heads, image, shut), runner.fetch(boxes, image, shut)
            for index, gates in enumerate(np.eye(len(errors), dtype=np.float32)):
                found = runner.fetch(heads, image, {"gates:0": gates, **dict(zip(boxes, given, strict=True))})
                shares = [((b - a) ** 2).sum() / (a**2).sum() for a, b in zip(exact, found, strict=True)]
                errors[index] += np.mean(shares) / len(images)
    return list(errors)
