import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tuner.errors import QuantizationError
from tuner.precision import FP32, INT8, PrecisionPlan
from tuner.quantization.lowering.codes import decide_codes
from tuner.quantization.lowering.convolutions import find_convolutions

tf1 = tf.compat.v1


@pytest.mark.parametrize("op", ["Conv2D", "DepthwiseConv2dNative"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", [None, "Relu", "Relu6"])
def test_what_one_kernel_replaces(op: str, bias: bool, activation: str | None, float_graph: Any) -> None:
    sketch = float_graph()
    sketch.named(sketch.convolve(sketch.x, "conv", op, bias=bias, activation=activation), "out")
    found, refused = find_convolutions(sketch.view())
    (convolution,) = found.values()
    members = ["conv", *["conv/bias"] * bias, *(["conv/activation"] if activation else [])]
    assert refused == {}
    assert list(convolution.members) == members
    assert list(convolution.linear_members) == ["conv", *["conv/bias"] * bias]
    assert (convolution.name, convolution.input, convolution.output) == ("conv", "x", members[-1])
    assert (convolution.activation.op if convolution.activation else None) == activation
    assert (convolution.bias is not None) == bias
    assert convolution.is_depthwise == (op != "Conv2D")
    assert (convolution.summand, convolution.pad, convolution.without_sum) == (None, None, None)


def test_a_bias_that_something_else_reads_ends_the_kernel(float_graph: Any) -> None:
    sketch = float_graph()
    biased = sketch.convolve(sketch.x, "conv", bias=True, activation="Relu")
    sketch.named(biased, "out")
    sketch.named(sketch.graph.get_tensor_by_name("conv/bias:0"), "also_read")
    found, _ = find_convolutions(sketch.view("out", "also_read"))
    assert found["conv"].members == ("conv", "conv/bias")
    assert found["conv"].activation is None


def test_an_output_in_between_ends_the_kernel(float_graph: Any) -> None:
    sketch = float_graph()
    sketch.named(sketch.convolve(sketch.x, "conv", bias=True, activation="Relu"), "out")
    found, _ = find_convolutions(sketch.view("out", "conv"))
    assert found["conv"].members == ("conv",)


def test_a_bias_that_is_computed_stays_outside(float_graph: Any) -> None:
    sketch = float_graph()
    with sketch.graph.as_default():
        bias = tf.reduce_mean(sketch.x) + np.zeros(12, np.float32)
    sketch.named(sketch.convolve(sketch.x, "conv", bias=bias, activation="Relu"), "out")
    found, _ = find_convolutions(sketch.view())
    assert found["conv"].members == ("conv",)


@pytest.mark.parametrize(
    ("sizes", "settings", "is_pointwise"),
    [
        ((1, 1, 8, 5), {}, True),
        ((1, 1, 8, 5), {"padding": "VALID"}, True),
        ((1, 1, 8, 5), {"stride": 2}, False),
        ((1, 1, 4, 6), {}, False),
        ((3, 3, 8, 5), {}, False),
        ((1, 3, 8, 5), {}, False),
        ((1, 1, 8, 1), {"op": "DepthwiseConv2dNative"}, False),
    ],
)
def test_matrix_products(
    sizes: tuple[int, ...], settings: dict[str, Any], is_pointwise: bool, float_graph: Any
) -> None:
    """What is a product of pixels and weights can take LeakyRelu too; what is not leaves it to a float op."""
    sketch = float_graph()
    data = sketch.convolve(sketch.x, "conv", weights=sketch.weights(*sizes), activation="LeakyRelu", **settings)
    sketch.named(data, "out")
    found, _ = find_convolutions(sketch.view())
    assert found["conv"].is_pointwise == is_pointwise
    assert found["conv"].members == (("conv", "conv/activation") if is_pointwise else ("conv",))


@pytest.mark.parametrize(
    ("amounts", "padding", "is_folded"),
    [
        ([[0, 0], [1, 2], [3, 0], [0, 0]], "VALID", True),
        ([[0, 0], [1, 1], [1, 1], [0, 0]], "SAME", False),
        ([[0, 0], [1, 1], [1, 1], [0, 1]], "VALID", False),
        ([[1, 0], [1, 1], [1, 1], [0, 0]], "VALID", False),
    ],
)
@pytest.mark.parametrize("op", ["Conv2D", "DepthwiseConv2dNative"])
def test_zeros_around_the_input(
    op: str, amounts: list[list[int]], padding: str, is_folded: bool, float_graph: Any
) -> None:
    sketch = float_graph()
    with sketch.graph.as_default():
        padded = tf.pad(sketch.x, amounts, name="pad")
    sketch.named(sketch.convolve(padded, "conv", op, padding=padding), "out")
    found, _ = find_convolutions(sketch.view())
    convolution = found["conv"]
    assert convolution.input == ("x" if is_folded else "pad")
    assert (convolution.pad is not None) == is_folded
    assert convolution.pads == (tuple(map(tuple, amounts)) if is_folded else ())
    assert convolution.members == ("conv",)


def test_padding_that_something_else_reads_is_not_folded(float_graph: Any) -> None:
    sketch = float_graph()
    with sketch.graph.as_default():
        padded = tf.pad(sketch.x, [[0, 0], [1, 1], [1, 1], [0, 0]], name="pad")
    sketch.named(sketch.convolve(padded, "conv", padding="VALID"), "out")
    sketch.named(padded, "beside")
    found, _ = find_convolutions(sketch.view("out", "beside"))
    assert (found["conv"].input, found["conv"].pad) == ("pad", None)


def channels_first(sketch: Any) -> None:
    with sketch.graph.as_default():
        data = tf.transpose(sketch.x, [0, 3, 1, 2])
        weights = sketch.weights(3, 3, 8, 4)
        tf.identity(tf1.nn.conv2d(data, weights, [1, 1, 1, 1], "SAME", data_format="NCHW", name="conv"), name="out")


def computed_weights(sketch: Any) -> None:
    with sketch.graph.as_default():
        weights = tf.multiply(tf.reduce_mean(sketch.x), np.ones((3, 3, 8, 4), np.float32), name="weights")
    sketch.named(sketch.convolve(sketch.x, "conv", weights=weights), "out")


def inside_a_while_loop(sketch: Any) -> None:
    def body(step: Any, data: Any) -> Any:
        return step + 1, tf1.nn.conv2d(data, sketch.weights(3, 3, 8, 8), [1, 1, 1, 1], "SAME", name="conv")

    tf1.disable_control_flow_v2()
    try:
        with sketch.graph.as_default():
            result = tf1.while_loop(lambda step, data: step < 3, body, [tf.constant(0), sketch.x])[1]
            tf.identity(result, name="out")
    finally:
        tf1.enable_control_flow_v2()


def two_channels_from_each(sketch: Any) -> None:
    weights = sketch.weights(3, 3, 8, 2)
    sketch.named(sketch.convolve(sketch.x, "conv", "DepthwiseConv2dNative", weights=weights), "out")


def infinite_weights(sketch: Any) -> None:
    weights = sketch.weights(3, 3, 8, 4)
    weights[0, 0, 0, 0] = np.inf
    sketch.named(sketch.convolve(sketch.x, "conv", weights=weights), "out")


def half_precision(sketch: Any) -> None:
    with sketch.graph.as_default():
        data = tf.cast(sketch.x, tf.float16)
        weights = sketch.weights(3, 3, 8, 4).astype(np.float16)
        tf.identity(tf1.nn.conv2d(data, weights, [1, 1, 1, 1], "SAME", name="conv"), name="out")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (channels_first, "its data format is NCHW, the kernels take NHWC"),
        (computed_weights, "its weights weights are not a constant"),
        (inside_a_while_loop, "it is inside a while loop"),
        (two_channels_from_each, "its depth multiplier is 2, the depthwise kernel takes 1"),
        (infinite_weights, "its weights hold NaN or infinite values"),
        (half_precision, "its weights are float16, not float32"),
    ],
)
def test_refusals_say_why(make: Callable[[Any], None], reason: str, float_graph: Any) -> None:
    sketch = float_graph()
    make(sketch)
    graph = sketch.view()
    (name,) = (node.name for node in graph.graph_def.node if node.op in ("Conv2D", "DepthwiseConv2dNative"))
    found, refused = find_convolutions(graph)
    assert found == {}
    assert refused == {name: reason}
    assert dict(decide_codes(graph, PrecisionPlan({name: FP32}), {}).kernels) == {}
    with pytest.raises(QuantizationError, match=re.escape(f"{name} cannot be int8: {reason}")):
        decide_codes(graph, PrecisionPlan({name: INT8}), {})
