from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tuner.errors import ModelError
from tuner.model.graph_view import GraphView, node_name, tensor_name
from tuner.model.nodes import const_node, op_node

tf1 = tf.compat.v1


@pytest.fixture
def graph() -> GraphView:
    """x -> split -> (left, right), `waiting` waits for left; a constant behind two Identity nodes."""
    with tf.Graph().as_default() as built:
        x = tf1.placeholder(tf.float32, [2, 4], name="x")
        parts = tf.raw_ops.Split(axis=tf.constant(1, name="axis"), value=x, num_split=2, name="split")
        left = tf.negative(parts[0], name="left")
        tf.abs(parts[1], name="right")
        tf.add(left, left, name="twice")
        with tf.control_dependencies([left]):
            tf.constant(1.0, name="waiting")
        constant = tf.constant([1.5, 2.5], name="constant")
        tf.identity(tf.identity(constant, name="once"), name="again")
    return GraphView(built.as_graph_def(), frozenset({"right", "twice"}))


def names(nodes: Any) -> list[str]:
    return [node.name for node in nodes]


@pytest.mark.parametrize(
    ("tensor", "node", "canonical"), [("a", "a", "a"), ("a:0", "a", "a"), ("a:1", "a", "a:1"), ("^a", "a", "^a")]
)
def test_spellings_of_a_tensor(tensor: str, node: str, canonical: str) -> None:
    assert node_name(tensor) == node
    assert tensor_name(tensor) == canonical


def test_consumers_are_told_once_and_include_who_waits(graph: GraphView) -> None:
    assert names(graph.consumers("split")) == ["left", "right"]
    assert names(graph.consumers("left")) == ["twice", "waiting"]
    assert list(graph.consumers("twice")) == []
    assert list(graph.consumers("no such node")) == []


def test_only_consumer(graph: GraphView) -> None:
    assert graph.only_consumer("x") == graph.nodes["split"]
    assert graph.only_consumer("split") is None
    assert graph.only_consumer("left") is None
    assert GraphView(graph.graph_def, frozenset({"x"})).only_consumer("x") is None


@pytest.mark.parametrize(
    ("reads", "is_only"), [(["a"], True), (["a:0"], True), (["a:1"], False), (["^a"], False), (["a", "a"], False)]
)
def test_only_consumer_reads_output_0_once(reads: list[str], is_only: bool) -> None:
    nodes = [const_node("a", np.float32(1)), op_node("AnyOp", "b", reads)]
    graph_def = tf1.GraphDef(node=nodes)
    assert (GraphView(graph_def, frozenset({"b"})).only_consumer("a") is not None) == is_only


def test_constants_directly_and_behind_identities(graph: GraphView) -> None:
    for tensor in ("constant", "constant:0", "once", "again:0"):
        value = graph.constant(tensor)
        assert value is not None
        assert value.tolist() == [1.5, 2.5]
    for tensor in ("x", "split:1", "left", "no such node"):
        assert graph.constant(tensor) is None


def test_body_of_a_while_loop() -> None:
    tf1.disable_control_flow_v2()
    try:
        with tf.Graph().as_default() as built:
            x = tf1.placeholder(tf.float32, [], name="x")
            before = tf.negative(x, name="before")
            result = tf1.while_loop(lambda value: value < 3, lambda value: tf.add(value, 1, name="step"), [before])
            tf.identity(result, name="after")
    finally:
        tf1.enable_control_flow_v2()
    body = GraphView(built.as_graph_def(), frozenset({"after"})).loop_body
    assert any(name.endswith("step") for name in body)
    assert not body & {"x", "before", "after"}
    assert GraphView(tf1.GraphDef(), frozenset()).loop_body == frozenset()


def test_replacing_nodes_makes_a_new_graph(graph: GraphView) -> None:
    before = graph.graph_def.SerializeToString(deterministic=True)
    changed = graph.replace({"left"}, [op_node("Abs", "left", ["split"], T=tf.float32)])
    assert changed.nodes["left"].op == "Abs"
    assert changed.outputs == graph.outputs
    assert graph.graph_def.SerializeToString(deterministic=True) == before


def test_what_no_output_needs_any_more_is_left_out(graph: GraphView) -> None:
    changed = graph.replace({"twice"}, [op_node("Neg", "twice", ["x"], T=tf.float32)])
    assert set(changed.nodes) == {"x", "axis", "split", "right", "twice"}


@pytest.mark.parametrize("added", [["left"], ["new", "new"]])
def test_a_name_is_never_given_twice(added: list[str], graph: GraphView) -> None:
    with pytest.raises(ModelError, match=f"^the graph has a node called '{added[0]}' already"):
        graph.replace({"twice"}, [const_node(name, np.float32(1)) for name in added])
