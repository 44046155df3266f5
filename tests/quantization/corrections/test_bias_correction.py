from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tuner.errors import QuantizationError
from tuner.precision import FP32, INT8, Dtype, Granularity, OpPrecision, PrecisionPlan
from tuner.quantization.corrections.bias_correction import correct_biases
from tuner.quantization.lowering.convolutions import find_convolutions
from tuner.quantization.quantize import find_quantizable_ops, quantize
from tuner.quantization.ranges import collect_ranges

RANDOM = np.random.default_rng(5)
# All of one sign: what rounding does to a weight does not average out.
IMAGES = [np.abs(RANDOM.normal(1, 0.3, (1, 8, 8, 8))).astype(np.float32) for _ in range(6)]
PER_TENSOR = OpPrecision(Dtype.INT8, Granularity.PER_TENSOR)


def chain(sketch: Any) -> Any:
    """Weights of very different sizes under one scale per tensor: rounding shifts the channels of the small ones."""
    sizes = np.exp2(-np.arange(12) / 2).astype(np.float32)
    data = sketch.convolve(sketch.x, "first", weights=sketch.weights(3, 3, 8, 12) * sizes, bias=True, activation="Relu")
    data = sketch.convolve(data, "middle", "DepthwiseConv2dNative", bias=True)
    data = sketch.convolve(data, "last", weights=sketch.weights(3, 3, 12, 12) * sizes, bias=True)
    sketch.named(data, "out")
    return sketch.model()


def shift_of_means(model: Any, int8: Any, run: Any) -> float:
    """The largest difference of a channel's mean over the images, in terms of the channel's spread."""
    exact, rounded = (np.concatenate([run(one.graph, image)[0] for image in IMAGES]) for one in (model, int8))
    return float(np.max(np.abs((rounded - exact).mean((0, 1, 2))) / exact.std((0, 1, 2))))


def test_means_come_back(float_graph: Any, run: Any) -> None:
    model = chain(float_graph())
    plan = PrecisionPlan(dict.fromkeys(["first", "middle", "last"], PER_TENSOR))
    ranges = collect_ranges(model, find_quantizable_ops(model).tensors, IMAGES)
    corrected = correct_biases(model, plan, ranges, IMAGES)
    before = shift_of_means(model, quantize(model, plan, ranges), run)
    after = shift_of_means(model, quantize(corrected, plan, ranges), run)
    assert after < before / 5

    found, _ = find_convolutions(corrected.graph)
    for name, exact in find_convolutions(model.graph)[0].items():
        np.testing.assert_array_equal(found[name].weights, exact.weights)


def test_what_stays_float_or_has_no_bias_stays(float_graph: Any) -> None:
    sketch = float_graph()
    data = sketch.convolve(sketch.x, "in_float", bias=True)
    data = sketch.convolve(data, "undecided", bias=True)
    data = sketch.convolve(data, "unbiased")
    sketch.named(sketch.convolve(data, "corrected", bias=True), "out")
    model = sketch.model()
    plan = PrecisionPlan({"in_float": FP32, "unbiased": INT8, "corrected": PER_TENSOR})
    ranges = collect_ranges(model, find_quantizable_ops(model).tensors, IMAGES)
    found, _ = find_convolutions(correct_biases(model, plan, ranges, IMAGES).graph)
    for name, exact in find_convolutions(model.graph)[0].items():
        assert np.array_equal(found[name].bias, exact.bias) == (name != "corrected"), name


def test_a_while_loop_beside_the_convolutions(float_graph: Any, run: Any) -> None:
    """Float graph and simulation stand in one graph, each with its own loop."""
    sketch = float_graph()
    data = sketch.convolve(sketch.x, "first", bias=True)
    tf1 = tf.compat.v1
    tf1.disable_control_flow_v2()
    try:
        with sketch.graph.as_default():
            data = tf1.while_loop(
                lambda step, _: step < 3, lambda step, value: (step + 1, value * 2), (tf.constant(0), data)
            )[1]
    finally:
        tf1.enable_control_flow_v2()
    sketch.named(sketch.convolve(data, "last", bias=True), "out")
    model = sketch.model()
    assert any(node.op == "Enter" for node in model.graph_def.node)
    plan = PrecisionPlan({"first": PER_TENSOR, "last": PER_TENSOR})
    ranges = collect_ranges(model, find_quantizable_ops(model).tensors, IMAGES)
    corrected = correct_biases(model, plan, ranges, IMAGES)
    after = shift_of_means(model, quantize(corrected, plan, ranges), run)
    assert after < shift_of_means(model, quantize(model, plan, ranges), run)


def test_no_images(float_graph: Any) -> None:
    model = chain(float_graph())
    ranges = collect_ranges(model, find_quantizable_ops(model).tensors, IMAGES)
    with pytest.raises(QuantizationError, match=r"^no calibration images: at least one is needed to correct biases$"):
        correct_biases(model, PrecisionPlan({"first": INT8}), ranges, [])
