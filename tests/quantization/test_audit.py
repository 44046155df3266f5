from typing import Any

import numpy as np
import pytest

from tuner.errors import QuantizationError
from tuner.precision import FP32, INT8, Dtype, Granularity, OpPrecision, PrecisionPlan
from tuner.quantization.audit import read_plan
from tuner.quantization.quantize import find_quantizable_ops, prepare, quantize
from tuner.quantization.ranges import Ranges, collect_ranges

DEPTHWISE = "DepthwiseConv2dNative"
PER_TENSOR = OpPrecision(Dtype.INT8, Granularity.PER_TENSOR)
IMAGES = [np.random.default_rng(2).normal(0, 1, (1, 9, 7, 8)).astype(np.float32)]


@pytest.fixture(scope="module")
def model(float_graph: Any) -> Any:
    """Convolutions of all kinds in a row, one of them with a batch norm, and one beside them that cannot be int8."""
    sketch = float_graph(seed=6)
    data = sketch.convolve(sketch.x, "a", bias=True, activation="Relu")
    data = sketch.batch_norm(sketch.convolve(data, "b", DEPTHWISE), "norm").y
    data = sketch.convolve(data, "c", activation="Relu6", weights=sketch.weights(1, 1, 12, 12))
    sketch.named(sketch.convolve(data, "d"), "out")
    weights = sketch.weights(3, 3, 8, 2)
    sketch.named(sketch.convolve(sketch.x, "refused", DEPTHWISE, weights=weights), "beside")
    return prepare(sketch.model("out", "beside"))


@pytest.fixture(scope="module")
def ranges(model: Any) -> Ranges:
    return collect_ranges(model, find_quantizable_ops(model).tensors, IMAGES)


@pytest.mark.parametrize(
    "plan",
    [
        dict.fromkeys("abcd", INT8),
        dict.fromkeys("abcd", PER_TENSOR),
        dict.fromkeys("abcd", FP32),
        {"a": INT8, "b": FP32, "c": PER_TENSOR, "d": INT8},
        {"a": PER_TENSOR, "b": INT8, "c": INT8, "d": PER_TENSOR},
        {"a": FP32, "b": PER_TENSOR, "c": INT8, "d": FP32},
        {"a": INT8, "b": PER_TENSOR, "c": INT8, "d": INT8},
        {"a": INT8, "b": INT8, "c": INT8, "d": PER_TENSOR},
    ],
    ids=lambda plan: "-".join(f"{p.dtype}{p.weight_granularity[4]}" for p in plan.values()),
)
def test_what_was_asked_for_is_what_the_graph_holds(plan: dict[str, OpPrecision], model: Any, ranges: Ranges) -> None:
    quantized = quantize(model, PrecisionPlan(plan), ranges)
    assert read_plan(quantized, plan) == PrecisionPlan(plan)


def test_ops_that_a_plan_does_not_name_stay_float(model: Any, ranges: Ranges) -> None:
    quantized = quantize(model, PrecisionPlan({"c": INT8}), ranges)
    assert read_plan(quantized, ["a", "c", "refused"]) == PrecisionPlan({"a": FP32, "c": INT8, "refused": FP32})


def test_an_op_that_the_graph_does_not_compute(model: Any) -> None:
    with pytest.raises(QuantizationError, match=r"^lost is in the quantised graph neither as a float nor"):
        read_plan(model, ["a", "lost"])
