"""Checks and their machinery go, control flow stays, and every result is the same to the last bit."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework.graph_pb2 import GraphDef

from tests.graph.conftest import tf1_graph, view
from tuner.graph.strip_debug import strip_debug_ops
from tuner.model.frozen_graph import import_graph
from tuner.model.skip_identities import skip_identities

tf1 = tf.compat.v1

VALUES = np.array([1.0, 2.0, 3.0], np.float32)


def run(graph_def: GraphDef, outputs: Sequence[str], x: Any) -> list[Any]:
    with tf.Graph().as_default(), tf1.Session() as session:
        import_graph(graph_def)
        return list(session.run([f"{name}:0" for name in outputs], {"x:0": x}))


def stripped(write: Callable[[tf.Tensor], tf.Tensor]) -> tuple[GraphDef, Counter[str]]:
    """Strip the graph of one function of a placeholder x; its results must stay."""
    with tf1_graph() as graph:
        tf.identity(write(tf1.placeholder(tf.float32, [3], name="x")), name="y")
    before = view(graph.as_graph_def(), ["y"])
    after = skip_identities(strip_debug_ops(before)).graph_def
    for x in (VALUES, VALUES + 4):
        np.testing.assert_array_equal(run(after, ["y"], x), run(before.graph_def, ["y"], x))
    return after, Counter(node.op for node in after.node)


def checked(x: tf.Tensor) -> tf.Tensor:
    """x behind an Assert in its guard, as TF1 writes it."""
    with tf1.control_dependencies([tf1.Assert(tf.reduce_all(x > -5.0), [x])]):
        return tf.identity(x)


def test_pass_through_nodes_go() -> None:
    def write(x: tf.Tensor) -> tf.Tensor:
        x = tf.debugging.check_numerics(tf.stop_gradient(tf.identity(x)), "bad")
        return tf1.Print(x, [x + 1.0], first_n=0) * 2.0

    graph_def, ops = stripped(write)
    assert ops == {"Placeholder": 1, "Const": 1, "Mul": 1, "Identity": 1}
    assert [node.name for node in graph_def.node if node.op == "Identity"] == ["y"]


def test_the_machinery_of_an_assert_goes_with_it() -> None:
    _, ops = stripped(lambda x: checked(checked(x) + 1.0) * 2.0)
    assert ops == {"Placeholder": 1, "Const": 2, "AddV2": 1, "Mul": 1, "Identity": 1}


def test_groups_of_checks_and_summaries_go() -> None:
    def write(x: tf.Tensor) -> tf.Tensor:
        finite = tf.debugging.check_numerics(x, "bad")
        watched = [tf1.summary.scalar("mean", tf.reduce_mean(x)), tf1.Assert(x[0] > -5.0, [x]), finite]
        two = tf.constant(2.0)
        with tf1.control_dependencies([tf.group(*watched)]):
            return x * two

    _, ops = stripped(write)
    assert ops == {"Placeholder": 1, "Const": 1, "Mul": 1, "Identity": 1}


def test_a_constant_waits_for_no_check() -> None:
    def write(x: tf.Tensor) -> tf.Tensor:
        with tf1.control_dependencies([tf1.Assert(x[0] > -5.0, [x])]):
            return x * tf.constant(3.0)

    _, ops = stripped(write)
    assert (ops["Assert"], ops["Merge"]) == (0, 0)


def test_the_guard_of_an_assert_may_be_an_if() -> None:
    with tf.Graph().as_default() as graph:
        tf.multiply(checked(tf1.placeholder(tf.float32, [3], name="x")), 2.0, name="y")
    before = view(graph.as_graph_def(), ["y"])
    assert "If" in {node.op for node in before.graph_def.node}
    after = skip_identities(strip_debug_ops(before)).graph_def
    assert sorted(node.op for node in after.node) == ["Const", "Mul", "Placeholder"]
    np.testing.assert_array_equal(run(after, ["y"], VALUES), [VALUES * 2])


def test_branches_stay() -> None:
    def write(x: tf.Tensor) -> tf.Tensor:
        def high() -> tf.Tensor:
            with tf1.control_dependencies([tf1.Assert(x[1] > -5.0, [x])]):
                return tf.constant([1.0, 2.0, 3.0])

        return tf1.cond(checked(x)[0] > 2.0, high, lambda: tf.stop_gradient(checked(x)) + 1.0)

    _, ops = stripped(write)
    assert ops["Switch"] > 0 and ops["Merge"] > 0
    assert ops["StopGradient"] == 0


@pytest.mark.parametrize("unused_counter", [False, True])
def test_loops_stay(unused_counter: bool) -> None:
    def write(x: tf.Tensor) -> tf.Tensor:
        limit = checked(x)[0]
        gain = x * 0.5

        def body(step: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            # Of loop constants alone: what it waits for says when it runs.
            with tf1.control_dependencies([tf1.Assert(total[0] > -50.0, [total])]):
                more = gain * 2.0
            return (step if unused_counter else step + 1), total + tf.debugging.check_numerics(more + total, "bad")

        def goes_on(step: tf.Tensor, total: tf.Tensor) -> tf.Tensor:
            return (total[0] < 20.0 + limit) & (step < 5)

        return tf1.while_loop(goes_on, body, [0, checked(x)])[1]

    _, ops = stripped(write)
    assert ops["CheckNumerics"] == 0
    assert ops["LoopCond"] == 1
