from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tuner.model.fold_batch_norm import BATCH_NORM_OPS, CONVOLUTION_OPS, fold_batch_norm
from tuner.model.graph_view import GraphView
from tuner.model.nodes import const_node, op_node

X = np.random.default_rng(7).normal(0, 1, (2, 9, 7, 8)).astype(np.float32)


def ops_of(graph: Any) -> list[str]:
    return [node.op for node in graph.graph_def.node if node.op not in ("Const", "Placeholder")]


@pytest.mark.parametrize("batch_norm", BATCH_NORM_OPS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("op", CONVOLUTION_OPS)
def test_folded_graph_computes_the_same(
    op: str, bias: bool, batch_norm: str, float_graph: Any, run: Callable[..., Any]
) -> None:
    sketch = float_graph(seed=3)
    convolved = sketch.convolve(sketch.x, "conv", op, bias=bias)
    normalized = sketch.batch_norm(convolved, "norm", op=batch_norm).y
    sketch.named(normalized, "out")

    folded = fold_batch_norm(sketch.view())

    assert sorted(ops_of(folded)) == sorted([op, "BiasAdd", "Identity"])
    assert folded.nodes["norm"].op == "BiasAdd"
    assert folded.nodes["conv"].op == op
    (expected,), (found,) = run(sketch.view(), X), run(folded, X)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_behind_a_pad(float_graph: Any, run: Callable[..., Any]) -> None:
    sketch = float_graph(seed=5)
    with sketch.graph.as_default():
        padded = tf.pad(sketch.x, [[0, 0], [1, 1], [2, 0], [0, 0]])
    sketch.named(sketch.batch_norm(sketch.convolve(padded, "conv", padding="VALID", stride=2), "norm").y, "out")
    folded = fold_batch_norm(sketch.view())
    assert sorted(ops_of(folded)) == ["BiasAdd", "Conv2D", "Identity", "Pad"]
    (expected,), (found,) = run(sketch.view(), X), run(folded, X)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("bias", [False, True])
def test_behind_a_dilated_convolution_as_tf1_writes_it(bias: bool, float_graph: Any, run: Callable[..., Any]) -> None:
    sketch = float_graph(seed=6)
    with sketch.graph.as_default():
        spread = tf.space_to_batch(sketch.x, [2, 2], [[2, 3], [2, 3]])
        convolved = sketch.convolve(spread, "conv", padding="VALID", bias=bias)
        gathered = tf.batch_to_space(convolved, [2, 2], [[0, 1], [0, 1]])
    sketch.named(sketch.batch_norm(gathered, "norm").y, "out")
    folded = fold_batch_norm(sketch.view())
    assert sorted(ops_of(folded)) == ["BatchToSpaceND", "BiasAdd", "Conv2D", "Identity", "SpaceToBatchND"]
    (expected,), (found,) = run(sketch.view(), X), run(folded, X)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("scaled", [False, True])
def test_the_op_of_the_first_releases(scaled: bool, float_graph: Any, run: Callable[..., Any]) -> None:
    sketch = float_graph(seed=7)
    sketch.named(sketch.convolve(sketch.x, "conv", bias=True), "out")
    graph_def = sketch.graph.as_graph_def()
    out = next(node for node in graph_def.node if node.name == "out")
    values = {key: np.abs(sketch.weights(12)) + 0.1 for key in ("mean", "variance", "beta", "gamma")}
    graph_def.node.extend(const_node(key, value) for key, value in values.items())
    settings = {"T": tf.float32, "variance_epsilon": 1e-3, "scale_after_normalization": scaled}
    op = "BatchNormWithGlobalNormalization"
    graph_def.node.append(op_node(op, "norm", [out.input[0], *values], **settings))
    out.input[0] = "norm"
    graph_def.versions.producer = 8
    graph = GraphView(graph_def, frozenset({"out"}))

    folded = fold_batch_norm(graph)

    assert sorted(ops_of(folded)) == ["BiasAdd", "Conv2D", "Identity"]
    (expected,), (found,) = run(graph, X), run(folded, X)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_channels_first(float_graph: Any, run: Callable[..., Any]) -> None:
    sketch = float_graph(seed=8)
    with sketch.graph.as_default():
        x = tf.transpose(sketch.x, [0, 3, 1, 2])
        convolved = tf.nn.conv2d(x, sketch.weights(3, 3, 8, 12), 1, "SAME", data_format="NCHW", name="conv")
        statistics = [np.abs(sketch.weights(12)) + 0.1 for _ in range(4)]
        scale, offset, mean, variance = statistics
        normalized = tf.raw_ops.FusedBatchNormV3(
            x=convolved, scale=scale, offset=offset, mean=mean, variance=variance, is_training=False,
            data_format="NCHW", name="norm",
        )  # fmt: skip
    sketch.named(normalized.y, "out")
    folded = fold_batch_norm(sketch.view())
    assert folded.nodes["norm"].op == "BiasAdd"
    assert folded.nodes["norm"].attr["data_format"].s == b"NCHW"
    (expected,), (found,) = run(sketch.view(), X), run(folded, X)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_chain_of_blocks(float_graph: Any, run: Callable[..., Any]) -> None:
    sketch = float_graph(seed=4)
    data = sketch.x
    for index, op in enumerate(("Conv2D", "DepthwiseConv2dNative", "Conv2D")):
        data = sketch.batch_norm(sketch.convolve(data, f"conv_{index}", op), f"norm_{index}").y
    sketch.named(data, "out")
    folded = fold_batch_norm(sketch.view())
    assert not set(ops_of(folded)) & set(BATCH_NORM_OPS)
    (expected,), (found,) = run(sketch.view(), X), run(folded, X)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def shared_convolution(sketch: Any) -> Any:
    convolved = sketch.convolve(sketch.x, "conv")
    sketch.named(convolved, "also_read")
    return sketch.batch_norm(convolved, "norm").y


def shared_bias(sketch: Any) -> Any:
    convolved = sketch.convolve(sketch.x, "conv", bias=True)
    sketch.named(convolved, "also_read")
    return sketch.batch_norm(convolved, "norm").y


def convolution_read_before_its_bias(sketch: Any) -> Any:
    biased = sketch.convolve(sketch.x, "conv", bias=True)
    sketch.named(sketch.graph.get_tensor_by_name("conv:0"), "also_read")
    return sketch.batch_norm(biased, "norm").y


def training_mode(sketch: Any) -> Any:
    empty = np.zeros(0, np.float32)
    return sketch.batch_norm(sketch.convolve(sketch.x, "conv"), "norm", is_training=True, mean=empty, variance=empty).y


def statistics_not_constant(sketch: Any) -> Any:
    with sketch.graph.as_default():
        mean = tf.reduce_mean(sketch.x) + np.zeros(12, np.float32)
    return sketch.batch_norm(sketch.convolve(sketch.x, "conv"), "norm", mean=mean).y


def statistics_are_read(sketch: Any) -> Any:
    normalized = sketch.batch_norm(sketch.convolve(sketch.x, "conv"), "norm")
    sketch.named(normalized.batch_mean, "also_read")
    return normalized.y


def in_a_loop(sketch: Any) -> Any:
    tf.compat.v1.disable_control_flow_v2()
    try:
        with sketch.graph.as_default():
            one_more = tf.while_loop(
                lambda step, _: step < 2,
                lambda step, x: (step + 1, sketch.batch_norm(sketch.convolve(x, "conv", out=8), "norm").y),
                [tf.constant(0), sketch.x],
                shape_invariants=[tf.TensorShape([]), tf.TensorShape([None, None, None, 8])],
            )
    finally:
        tf.compat.v1.enable_control_flow_v2()
    return one_more[1]


def no_convolution_before(sketch: Any) -> Any:
    return sketch.batch_norm(sketch.named(sketch.x, "again"), "norm").y


def weights_not_constant(sketch: Any) -> Any:
    with sketch.graph.as_default():
        weights = tf.reduce_mean(sketch.x) * np.ones((3, 3, 8, 12), np.float32)
    return sketch.batch_norm(sketch.convolve(sketch.x, "conv", weights=weights), "norm").y


@pytest.mark.parametrize(
    "make",
    [
        shared_convolution,
        shared_bias,
        convolution_read_before_its_bias,
        training_mode,
        statistics_not_constant,
        statistics_are_read,
        no_convolution_before,
        weights_not_constant,
        in_a_loop,
    ],
)
def test_left_alone(make: Callable[[Any], Any], float_graph: Any) -> None:
    sketch = float_graph()
    sketch.named(make(sketch), "out")
    names = {operation.name for operation in sketch.graph.get_operations()}
    graph = sketch.view("out", *(names & {"also_read"}))
    folded = fold_batch_norm(graph)
    assert {node.name: node for node in folded.graph_def.node} == {
        name: node for name, node in graph.nodes.items() if name in folded.nodes
    }
    (norm,) = (node for node in folded.nodes.values() if node.name.endswith("norm"))
    assert norm.op == "FusedBatchNormV3"


def test_convolution_that_is_an_output_is_left_alone(float_graph: Any) -> None:
    sketch = float_graph()
    sketch.named(sketch.batch_norm(sketch.convolve(sketch.x, "conv"), "norm").y, "out")
    assert fold_batch_norm(sketch.view("out", "conv")).nodes["norm"].op == "FusedBatchNormV3"
