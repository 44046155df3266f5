"""Columns taken apart and put together without turning the table."""

import numpy as np
import pytest
import tensorflow as tf

from tests.graph.conftest import tf1, tf1_graph, view
from tuner.graph.fuse_transposes import fuse_transposes
from tuner.model.graph_view import GraphView


def run(graph: GraphView, table: np.ndarray) -> np.ndarray:
    with tf.Graph().as_default() as imported:
        tf.import_graph_def(graph.graph_def, name="")
        with tf1.Session(graph=imported) as session:
            return np.asarray(session.run("out:0", {"table:0": table}))


@pytest.mark.parametrize(("shared", "left"), [(False, 0), (True, 1)])
def test_columns(shared: bool, left: int) -> None:
    """A transposed table that something else reads, too, is still made for that."""
    with tf1_graph() as graph:
        table = tf1.placeholder(tf.float32, [None, 4], name="table")
        turned = tf.transpose(table, [1, 0])
        first, second, third, fourth = tf.unstack(turned)
        together = tf.transpose(tf.stack([first + third, second * fourth]), [1, 0])
        tf.add(together, tf.reduce_mean(turned[1]) if shared else 1.0, name="out")
    before = view(graph.as_graph_def(), ["out"])
    after = fuse_transposes(before)
    assert sum(node.op == "Transpose" for node in after.graph_def.node) == left
    table = np.random.default_rng(3).normal(size=(7, 4)).astype(np.float32)
    np.testing.assert_array_equal(run(before, table), run(after, table))


@pytest.mark.parametrize("order", [[0, 1], [1, 0, 2]])
def test_another_order_stays(order: list[int]) -> None:
    with tf1_graph() as graph:
        table = tf1.placeholder(tf.float32, [4] * len(order), name="table")
        tf.add_n(tf.unstack(tf.transpose(table, order)), name="out")
    before = view(graph.as_graph_def(), ["out"])
    assert fuse_transposes(before) is before
