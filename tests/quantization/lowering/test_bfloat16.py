from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import kernels

from tuner.errors import QuantizationError
from tuner.model.graph_view import GraphView
from tuner.quantization.cpu import read_cpu_features
from tuner.quantization.lowering.bfloat16 import BETWEEN_OPS, OPS, to_bfloat16

tf1 = tf.compat.v1
SIZE, CHANNELS = 40, 32
X = np.random.default_rng(5).normal(0, 1, (1, SIZE, SIZE, CHANNELS)).astype(np.float32)
ARITHMETIC = ("Conv2D", "DepthwiseConv2dNative", "MatMul", "BiasAdd", "Relu", "ConcatV2", "Transpose", "Mul", "AddV2")


@pytest.fixture
def sketch(float_graph: Any) -> Any:
    """A graph in the making whose input has a known height and width."""
    sketch = float_graph(CHANNELS, seed=2)
    sketch.graph = tf.Graph()
    with sketch.graph.as_default():
        sketch.x = tf1.placeholder(tf.float32, [None, SIZE, SIZE, CHANNELS], name="x")
    return sketch


def dtypes(graph: GraphView, *names: str) -> list[str]:
    return [tf.DType(graph.nodes[name].attr["T"].type).name for name in names]


def casts(graph: GraphView) -> Counter[str]:
    return Counter(tf.DType(node.attr["DstT"].type).name for node in graph.graph_def.node if node.op == "Cast")


def assert_near(graph: GraphView, changed: GraphView, run: Callable[..., Any]) -> None:
    (expected,), (found,) = run(graph, X), run(changed, X)
    assert found.dtype == np.float32
    error = np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2))
    assert 1e-6 < error < 0.02  # bfloat16, and no worse


def test_everything_between_two_convolutions_goes_along(sketch: Any, run: Callable[..., Any]) -> None:
    data = sketch.convolve(sketch.x, "first", out=32, bias=True, activation="Relu")
    with sketch.graph.as_default():
        left, right = tf.split(tf.pad(data, [[0, 0], [1, 1], [1, 1], [0, 0]]), 2, 3, name="split")
        left = tf1.nn.max_pool2d(left, 3, 1, "SAME", name="pool")
        data = tf.concat([right, left], 3, name="concat")
        data = tf.transpose(tf.reshape(data, [-1, 42, 42, 2, 16]), [0, 1, 2, 4, 3], name="transpose")
        data = tf.reshape(data, [-1, 42, 42, 32])
        data = tf.raw_ops.ResizeNearestNeighbor(images=data, size=[SIZE, SIZE], name="resize")
        data = data * tf.reduce_mean(data, [1, 2], keepdims=True)
    data = sketch.convolve(data, "depthwise", "DepthwiseConv2dNative", bias=True)
    data = sketch.convolve(data, "last", bias=True, activation="Relu")
    sketch.named(data, "out")
    graph = sketch.view()

    changed = to_bfloat16(graph, ["first", "depthwise", "last"])

    assert casts(changed) == {"bfloat16": 1, "float32": 1}
    assert {tf.DType(node.attr["T"].type).name for node in changed.graph_def.node if node.op in ARITHMETIC} == {
        "bfloat16"
    }
    assert_near(graph, changed, run)


def test_what_lies_before_and_behind_stays_float(sketch: Any, run: Callable[..., Any]) -> None:
    with sketch.graph.as_default():
        data = tf.multiply(sketch.x, 0.5, name="before")
    data = sketch.convolve(data, "conv", out=64, bias=True, activation="Relu")
    with sketch.graph.as_default():
        data = tf.reshape(data, [-1, SIZE * SIZE, 64], name="moved")
        tf.add(data, 1.0, name="out")
    graph = sketch.view()
    changed = to_bfloat16(graph, ["conv"])
    assert dtypes(changed, "before", "moved", "out") == ["float32"] * 3
    assert dtypes(changed, "conv", "conv/bias", "conv/activation") == ["bfloat16"] * 3
    assert_near(graph, changed, run)


def test_a_convolution_outside_the_plan_splits_a_region(sketch: Any, run: Callable[..., Any]) -> None:
    data = sketch.x
    for name in ("first", "exact", "last"):
        data = sketch.convolve(data, name, out=64, bias=True, activation="Relu")
    sketch.named(data, "out")
    changed = to_bfloat16(sketch.view(), ["first", "last"])
    assert dtypes(changed, "first", "exact", "exact/activation", "last") == [
        "bfloat16",
        "float32",
        "float32",
        "bfloat16",
    ]
    assert casts(changed) == {"bfloat16": 2, "float32": 2}
    assert_near(sketch.view(), changed, run)


def test_int8_kernels_beside_it_are_left_as_they_are(sketch: Any) -> None:
    data = sketch.convolve(sketch.x, "conv", out=64, bias=True, activation="Relu")
    with sketch.graph.as_default():
        codes = tf.raw_ops.QuantizeV2(input=data, min_range=0.0, max_range=6.0, T=tf.quint8, mode="SCALED").output
        tf.bitcast(codes, tf.uint8, name="out")
    changed = to_bfloat16(sketch.view(), ["conv"])
    quantize = next(node for node in changed.graph_def.node if node.op == "QuantizeV2")
    assert changed.nodes[quantize.input[0]].op == "Cast"
    assert casts(changed) == {"bfloat16": 1, "float32": 1}


def convolution_of_an_image(sketch: Any) -> tf.Tensor:
    with sketch.graph.as_default():
        image = sketch.x[..., :3]
    return sketch.convolve(image, "conv", out=256, bias=True)


def few_products(sketch: Any) -> tf.Tensor:
    return sketch.convolve(sketch.x, "conv", out=1, bias=True)


def depthwise_alone(sketch: Any) -> tf.Tensor:
    return sketch.convolve(sketch.x, "conv", "DepthwiseConv2dNative", bias=True)


@pytest.mark.parametrize("make", [convolution_of_an_image, few_products, depthwise_alone])
def test_stays_float(make: Callable[[Any], tf.Tensor], sketch: Any) -> None:
    sketch.named(make(sketch), "out")
    graph = sketch.view()
    assert to_bfloat16(graph, ["conv"]).nodes == graph.nodes


def test_output_of_the_graph_stays_float(sketch: Any, run: Callable[..., Any]) -> None:
    sketch.convolve(sketch.convolve(sketch.x, "conv", out=64, bias=True), "out", out=64)
    graph = sketch.view("out", "conv/bias")
    changed = to_bfloat16(graph, ["conv", "out"])
    assert dtypes(changed, "conv", "conv/bias", "out") == ["bfloat16", "float32", "float32"]
    assert_near(graph, changed, run)


def test_of_shapes_not_known_the_plan_decides(float_graph: Any) -> None:
    sketch = float_graph()
    sketch.named(sketch.convolve(sketch.x, "conv", bias=True), "out")
    assert dtypes(to_bfloat16(sketch.view(), ["conv"]), "conv") == ["bfloat16"]


def test_weights_take_two_bytes_each(sketch: Any) -> None:
    sketch.named(sketch.convolve(sketch.x, "conv", out=64, bias=True), "out")
    graph = sketch.view()
    changed = to_bfloat16(graph, ["conv"])
    weights, exact = changed.nodes["conv"].input[1], graph.nodes["conv"].input[1]
    assert len(changed.nodes[weights].attr["value"].tensor.tensor_content) == 3 * 3 * CHANNELS * 64 * 2
    rounded, value = changed.constant(weights), graph.constant(exact)
    assert rounded is not None
    assert value is not None
    assert np.array_equal(rounded, value.astype(tf.bfloat16.as_numpy_dtype))
    assert changed.graph_def.ByteSize() < 0.6 * graph.graph_def.ByteSize()


@pytest.mark.parametrize(
    "op, message",
    [
        ("conf", "conf: no such op to compute in bf16 (did you mean 'conv'?)"),
        ("conv/bias", "conv/bias: got BiasAdd of float32 to compute in bf16; allowed are float32 Conv2D"),
    ],
)
def test_refused(op: str, message: str, sketch: Any) -> None:
    sketch.named(sketch.convolve(sketch.x, "conv", bias=True), "out")
    with pytest.raises(QuantizationError) as error:
        to_bfloat16(sketch.view(), [op])
    assert message in str(error.value)


def test_bfloat16_twice_is_refused(sketch: Any) -> None:
    sketch.named(sketch.convolve(sketch.x, "conv", out=64, bias=True), "out")
    with pytest.raises(QuantizationError, match="got Conv2D of bfloat16"):
        to_bfloat16(to_bfloat16(sketch.view(), ["conv"]), ["conv"])


def test_no_ops(sketch: Any) -> None:
    sketch.named(sketch.convolve(sketch.x, "conv"), "out")
    graph = sketch.view()
    assert to_bfloat16(graph, []) is graph


def test_what_runs_is_fused_kernels(sketch: Any) -> None:
    features = read_cpu_features()
    if features is None or not features.has_bfloat16:
        pytest.skip("this CPU has no bfloat16 instructions")
    data = sketch.convolve(sketch.x, "dense", out=32, bias=True, activation="Relu")
    data = sketch.convolve(data, "depthwise", "DepthwiseConv2dNative", bias=True, activation="Relu6")
    data = sketch.convolve(data, "pointwise", weights=sketch.weights(1, 1, 32, 32), bias=True, activation="Relu")
    sketch.named(sketch.convolve(data, "last", out=32, bias=True), "out")
    changed = to_bfloat16(sketch.view(), ["dense", "depthwise", "pointwise", "last"])
    trace = tf1.RunMetadata()
    with tf.Graph().as_default() as imported:
        tf.import_graph_def(changed.graph_def, name="")
        with tf1.Session(graph=imported) as session:
            options = tf1.RunOptions(trace_level=tf1.RunOptions.FULL_TRACE)
            session.run("out:0", {"x:0": X}, options=options, run_metadata=trace)
    labels = [stats.timeline_label for device in trace.step_stats.dev_stats for stats in device.node_stats]
    ran = Counter(label.partition(" = ")[2].partition("(")[0] for label in labels)
    bookkeeping = ("", "_Arg", "_Retval", "Const", "Identity", "NoOp", "Reshape")
    assert {op: count for op, count in ran.items() if op not in bookkeeping} == {
        "Cast": 2,
        "_MklNativeFusedConv2D": 2,
        "_MklNativeFusedDepthwiseConv2dNative": 1,
        "_MklNativeFusedMatMul": 1,
    }


@pytest.mark.parametrize("op", sorted({*OPS, *BETWEEN_OPS}))
def test_tensorflow_has_a_kernel(op: str) -> None:
    found = [kernel for kernel in kernels.get_registered_kernels_for_op(op).kernel if kernel.device_type == "CPU"]
    limits = [[limit.allowed_values.list.type for limit in kernel.constraint if limit.name == "T"] for kernel in found]
    assert any(all(tf.bfloat16.as_datatype_enum in types for types in limit) for limit in limits)
