from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tuner.model.graph_view import GraphView
from tuner.model.skip_identities import skip_identities

X = np.random.default_rng(0).normal(0, 1, (1, 5, 5, 8)).astype(np.float32)


def test_readers_read_what_an_identity_reads(float_graph: Any, run: Callable[..., Any]) -> None:
    sketch = float_graph()
    data = sketch.named(sketch.named(sketch.convolve(sketch.x, "conv"), "once"), "twice")
    with sketch.graph.as_default():
        tf.nn.relu(data, name="relu")
    sketch.named(sketch.graph.get_tensor_by_name("relu:0"), "out")
    graph = sketch.view()
    skipped = skip_identities(graph)
    assert list(skipped.nodes["relu"].input) == ["conv"]
    assert "out" in skipped.nodes
    assert not {"once", "twice"} & skipped.nodes.keys()
    np.testing.assert_array_equal(run(skipped, X)[0], run(graph, X)[0])


def test_several_at_once(run: Callable[..., Any]) -> None:
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [None, 5, 5, 8], name="x")
        first, second = tf.identity_n([x + 1, x * 2], name="both")
        tf.subtract(second, first, name="out")
    view = GraphView(graph.as_graph_def(), frozenset({"out"}))
    skipped = skip_identities(view)
    assert "both" not in skipped.nodes
    np.testing.assert_array_equal(run(skipped, X)[0], run(view, X)[0])


def test_identities_that_hold_control_flow_stay() -> None:
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [4], name="x")
        waited_for = tf.identity(x, name="waited_for")
        with tf.control_dependencies([waited_for]):
            after = tf.add(x, 1.0, name="after")
        chosen = tf.raw_ops.Switch(data=after, pred=tf.reduce_any(x > 0))
        taken = tf.identity(chosen.output_true, name="taken")
        merged = tf.raw_ops.Merge(inputs=[taken * 2, tf.identity(chosen.output_false, name="not_taken") * 3])
        tf.identity(merged.output, name="out")
    skipped = skip_identities(GraphView(graph.as_graph_def(), frozenset({"out"})))
    assert {"waited_for", "taken", "not_taken", "out"} <= skipped.nodes.keys()
