from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tuner.graph.strip_debug import strip_debug_ops
from tuner.model.graph_view import GraphView
from tuner.model.skip_identities import skip_identities

tf1 = tf.compat.v1
X = np.random.default_rng(7).normal(0, 1, (2, 9, 7, 8)).astype(np.float32)


@pytest.fixture
def tf1_graph() -> Iterator[tf.Graph]:
    """A graph with the placeholder x, whose conditions and loops are TF1's."""
    tf1.disable_control_flow_v2()
    try:
        with tf.Graph().as_default() as graph:
            tf1.placeholder(tf.float32, [None, None, None, 8], name="x")
            yield graph
    finally:
        tf1.enable_control_flow_v2()


def ops_of(graph: GraphView) -> set[str]:
    return {node.op for node in graph.graph_def.node} - {"Const", "Placeholder"}


def checked(x: tf.Tensor) -> tf.Tensor:
    return tf1.Assert(tf.reduce_all(x < 100), ["too large", x])


def test_what_hands_on_its_input(tf1_graph: tf.Graph, run: Callable[..., Any]) -> None:
    y = tf.debugging.check_numerics(tf1_graph.get_tensor_by_name("x:0"), "x")
    y = tf.stop_gradient(tf1.Print(y, [y], "said"))
    y = tf.raw_ops.PreventGradient(input=tf.raw_ops.Snapshot(input=y))
    tf.add(y, 1.0, name="out")
    graph = GraphView(tf1_graph.as_graph_def(), frozenset({"out"}))
    stripped = skip_identities(strip_debug_ops(graph))
    assert ops_of(stripped) == {"AddV2"}
    np.testing.assert_array_equal(run(stripped, X)[0], X + 1)


def test_checks_prints_and_summaries_that_are_waited_for(tf1_graph: tf.Graph, run: Callable[..., Any]) -> None:
    x = tf1_graph.get_tensor_by_name("x:0")
    waited_for = [checked(x), tf.print(x), tf1.summary.histogram("x", x), tf1.summary.scalar("mean", tf.reduce_mean(x))]
    with tf.control_dependencies([tf.group(waited_for)]):
        tf.add(tf.identity(x), tf.constant(1.0), name="out")
    graph = GraphView(tf1_graph.as_graph_def(), frozenset({"out"}))
    stripped = skip_identities(strip_debug_ops(graph))
    assert ops_of(stripped) == {"AddV2"}
    assert not any(tensor[0] == "^" for node in stripped.graph_def.node for tensor in node.input)
    np.testing.assert_array_equal(run(stripped, X)[0], X + 1)


@pytest.mark.parametrize("sign", [1, -1])
def test_in_a_condition_constants_stay_in_their_branch(sign: int, tf1_graph: tf.Graph, run: Callable[..., Any]) -> None:
    x = tf1_graph.get_tensor_by_name("x:0")

    def branch(value: float) -> tf.Tensor:
        with tf.control_dependencies([checked(x)]):
            return tf.fill(tf.constant([2]), tf.constant(value))

    tf.identity(tf1.cond(tf.reduce_sum(x) > 0, lambda: branch(1.0), lambda: branch(2.0)), name="out")
    graph = GraphView(tf1_graph.as_graph_def(), frozenset({"out"}))
    for node in graph.graph_def.node:
        # As freezing leaves it: only the check says where the constant belongs.
        if node.op == "Const" and any(graph.nodes[tensor[1:]].op == "Assert" for tensor in node.input):
            node.input[:] = [tensor for tensor in node.input if graph.nodes[tensor[1:]].op == "Assert"]
    stripped = strip_debug_ops(graph)
    assert "Assert" not in ops_of(stripped)
    x = sign * np.abs(X)
    np.testing.assert_array_equal(run(stripped, x)[0], run(graph, x)[0])


def test_in_a_loop(tf1_graph: tf.Graph, run: Callable[..., Any]) -> None:
    x = tf1_graph.get_tensor_by_name("x:0")

    def body(step: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.control_dependencies([checked(y)]):
            return step + 1, tf.debugging.check_numerics(y * 2, "y")

    _, y = tf1.while_loop(lambda step, y: step < 3, body, [tf.constant(0), x])
    tf.identity(y, name="out")
    graph = GraphView(tf1_graph.as_graph_def(), frozenset({"out"}))
    for node in graph.graph_def.node:
        if node.op == "Const" and any(graph.nodes[tensor[1:]].op == "Assert" for tensor in node.input):
            node.input[:] = [tensor for tensor in node.input if graph.nodes[tensor[1:]].op == "Assert"]
    stripped = skip_identities(strip_debug_ops(graph))
    assert not {"Assert", "CheckNumerics"} & ops_of(stripped)
    np.testing.assert_array_equal(run(stripped, X)[0], X * 8)


def test_nothing_to_strip(float_graph: Any) -> None:
    sketch = float_graph()
    sketch.named(sketch.convolve(sketch.x, "conv"), "out")
    graph = sketch.view()
    assert strip_debug_ops(graph) is graph
