from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tuner.model.runner import ModelRunner
from tuner.precision import FP32, INT8, PrecisionPlan
from tuner.quantization.gated_simulation import simulate_gated
from tuner.quantization.quantize import find_quantizable_ops, prepare
from tuner.quantization.ranges import Ranges, collect_ranges
from tuner.quantization.sensitivity import measure_sensitivity
from tuner.quantization.simulation import simulate

DEPTHWISE = "DepthwiseConv2dNative"
IMAGES = [np.random.default_rng(seed).normal(0, 1, (1, 9, 7, 8)).astype(np.float32) for seed in range(3)]
OPS = ("first", "middle", "worst", "boxes", "classes")


@pytest.fixture(scope="module")
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
    return prepare(sketch.model("detection_boxes", "detection_classes"))


@pytest.fixture(scope="module")
def ranges(model: Any) -> Ranges:
    return collect_ranges(model, find_quantizable_ops(model).tensors, IMAGES)


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
    """All shut is the float graph; one open is the plan with that op alone in int8; each adds an error of its own."""
    order = find_quantizable_ops(model).names
    plan = PrecisionPlan(dict.fromkeys(order, INT8))
    gated = model.with_graph(simulate_gated(model.graph, plan, ranges, "gates").graph_def)
    all_float = PrecisionPlan(dict.fromkeys(order, FP32))
    # Of the ops whose input no kernel makes, and of a depthwise one, the scale does not depend on the other ops.
    expected = {
        frozenset[str](): model.graph,
        **{
            frozenset({op}): simulate(model.graph, all_float.with_ops([op], INT8), ranges)
            for op in ("first", "middle", "worst")
        },
    }
    results = []
    with ModelRunner(gated) as runner:
        for open_gates, wanted in expected.items():
            gates = np.array([op in open_gates for op in order], np.float32)
            found = runner.fetch(list(model.outputs), IMAGES[0], {"gates:0": gates})
            references = run(wanted, IMAGES[0], "detection_boxes", "detection_classes")
            for value, reference in zip(found, references, strict=True):
                assert np.abs(value - reference).max() < 1e-4 * np.abs(reference).max() + 1e-6
            results.append(found[0])
        (all_open, _) = runner.fetch(list(model.outputs), IMAGES[0], {"gates:0": np.ones(len(order), np.float32)})
    for index, result in enumerate(results):
        assert all(np.abs(result - other).max() > 0 for other in results[:index])
    simulated, exact = run(simulate(model.graph, plan, ranges), IMAGES[0], "detection_boxes")[0], results[0]
    share = np.linalg.norm(all_open - exact) / np.linalg.norm(simulated - exact)
    assert 0.5 < share < 2
