from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tuner.graph.merge_duplicates import merge_duplicates
from tuner.model.graph_view import GraphView

X = np.random.default_rng(7).normal(0, 1, (2, 9, 7, 8)).astype(np.float32)


def merged(graph: tf.Graph, *outputs: str) -> tuple[GraphView, GraphView, Counter[str]]:
    before = GraphView(graph.as_graph_def(), frozenset(outputs))
    after = merge_duplicates(before)
    return before, after, Counter(node.op for node in after.graph_def.node)


def test_equal_chains_become_one(run: Callable[..., Any]) -> None:
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [None, None, None, 8], name="x")
        parts = [tf.split(tf.nn.relu(x * 2.0), 2, axis=3)[index % 2] for index in range(4)]
        tf.concat(parts, 3, name="out")
    before, after, counts = merged(graph, "out")
    assert (counts["Mul"], counts["Relu"], counts["Split"], counts["ConcatV2"]) == (1, 1, 1, 1)
    np.testing.assert_array_equal(run(after, X)[0], run(before, X)[0])


def test_different_ones_stay() -> None:
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [None, None, None, 8], name="x")
        with tf.device("/device:CPU:0"):
            placed = tf.nn.relu(x)
        pools = [tf.nn.max_pool2d(x, size, 1, "SAME") for size in (2, 3)]
        noise = [tf.random.uniform([]) for _ in range(2)]
        tf.add_n([placed, tf.nn.relu(x), *pools, x - 1.0, 1.0 - x, *(x * one for one in noise)], name="out")
    _, _, counts = merged(graph, "out")
    assert (counts["Relu"], counts["MaxPool"], counts["Sub"], counts["RandomUniform"]) == (2, 2, 2, 2)


def test_outputs_stay_and_are_read_by_others(run: Callable[..., Any]) -> None:
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [None, None, None, 8], name="x")
        inner = tf.nn.relu(x, name="inner")
        tf.nn.relu(x, name="first")
        tf.nn.relu(x, name="second")
        tf.add(inner, 1.0, name="out")
    before, after, counts = merged(graph, "out", "first", "second")
    assert counts["Relu"] == 2
    assert after.nodes["out"].input[0] == "first"
    for name in ("out", "first", "second"):
        np.testing.assert_array_equal(run(after, X, name)[0], run(before, X, name)[0])


def test_control_inputs_count() -> None:
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [None, None, None, 8], name="x")
        plain = tf.nn.relu(x)
        with tf.control_dependencies([tf.identity(x)]):
            waiting = tf.nn.relu(x)
        tf.add(plain, waiting, name="out")
    _, _, counts = merged(graph, "out")
    assert counts["Relu"] == 2


def test_nothing_to_merge(float_graph: Any) -> None:
    sketch = float_graph()
    sketch.named(sketch.convolve(sketch.x, "conv"), "out")
    graph = sketch.view()
    assert merge_duplicates(graph) is graph
