from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tuner.model.runner import ModelRunner
from tuner.precision import FP32, INT8, PrecisionPlan
from tuner.quantization.lowering.codes import quantize_convolutions
from tuner.quantization.lowering.fold_batch_norm import fold_batch_norm
from tuner.quantization.quantize import find_quantizable_ops, view
from tuner.quantization.ranges import Ranges, collect_ranges
from tuner.quantization.sensitivity import measure_sensitivity
from tuner.quantization.simulation import simulate

DEPTHWISE = "DepthwiseConv2dNative"
IMAGES = [np.random.default_rng(seed).normal(0, 1, (1, 9, 7, 8)).astype(np.float32) for seed in range(3)]
OPS = ("first", "middle", "worst", "boxes", "classes")


@pytest.fixture
def model(float_graph: Any) -> Any:
    """Two heads behind three convolutions; what enters `worst` has one value a thousand times as large as the rest."""
    sketch = float_graph(seed=8)
    data = sketch.convolve(sketch.x, "first", activation="Relu6", out=8)
    data = sketch.batch_norm(sketch.convolve(data, "middle", DEPTHWISE), "norm").y
    data = sketch.named(data, "features")
    outlier = np.ones(8, np.float32)
    outlier[3] = 1000
    with sketch.graph.as_default():
        data = data * outlier
    weights = sketch.weights(3, 3, 8, 8)
    weights[:, :, 3] /= 1000
    data = sketch.named(sketch.convolve(data, "worst", weights=weights), "mixed")
    sketch.named(sketch.convolve(data, "boxes"), "detection_boxes")
    sketch.named(sketch.convolve(data, "classes"), "detection_classes")
    return sketch.model("detection_boxes", "detection_classes")


@pytest.fixture
def ranges(model: Any) -> Ranges:
    return collect_ranges(model, sorted(set(find_quantizable_ops(model).inputs.values())), IMAGES)


def test_the_worst_op_comes_first(model: Any, ranges: Ranges) -> None:
    decreases = measure_sensitivity(model, PrecisionPlan(dict.fromkeys(OPS, INT8)), ranges, IMAGES)
    assert set(decreases) == set(OPS)
    worst, *others = sorted(decreases, key=lambda op: -decreases[op])
    assert worst == "worst"
    assert decreases["worst"] > 10 * max(abs(decreases[op]) for op in others)


def test_only_ops_in_int8_are_ranked(model: Any, ranges: Ranges) -> None:
    plan = PrecisionPlan({**dict.fromkeys(OPS, INT8), "worst": FP32})
    decreases = measure_sensitivity(model, plan, ranges, IMAGES[:1])
    assert set(decreases) == {*OPS} - {"worst"}


def test_gates(model: Any, ranges: Ranges, run: Callable[..., Any]) -> None:
    """All open is the simulation of the plan, all shut the float graph, one shut the plan with that op in float."""
    graph = fold_batch_norm(view(model))
    plan = PrecisionPlan(dict.fromkeys(OPS, INT8))
    gated = model.with_graph(simulate(graph, plan, ranges, gates="gates").graph_def)
    order = [quantized.convolution.name for quantized in quantize_convolutions(graph, plan, ranges)]
    assert sorted(order) == sorted(OPS)
    expected = {
        frozenset[str](): view(model),
        frozenset(OPS): simulate(graph, plan, ranges),
        frozenset(OPS) - {"worst"}: simulate(graph, plan.with_ops(["worst"], FP32), ranges),
        frozenset({"middle"}): simulate(graph, plan.with_ops({*OPS} - {"middle"}, FP32), ranges),
    }
    results = []
    with ModelRunner(gated) as runner:
        for open_gates, wanted in expected.items():
            gates = np.array([op in open_gates for op in order], np.float32)
            found = runner.fetch(list(model.outputs), IMAGES[0], {"gates:0": gates})
            for value, reference in zip(
                found, run(wanted, IMAGES[0], "detection_boxes", "detection_classes"), strict=True
            ):
                assert np.abs(value - reference).max() < 1e-4 * np.abs(reference).max() + 1e-6
            results.append(found[0])
    for index, result in enumerate(results):
        assert all(np.abs(result - other).max() > 0 for other in results[:index])
