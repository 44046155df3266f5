from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tuner.graph.fold_constants import fold_constants
from tuner.graph.strip_dropout import strip_dropout
from tuner.model.graph_view import GraphView
from tuner.model.skip_identities import skip_identities

X = np.random.default_rng(7).normal(0, 1, (2, 9, 7, 8)).astype(np.float32)


def tf1_form(x: Any, rate: float) -> Any:
    """As TensorFlow 1.0 to 1.12 wrote it."""
    low, high = tf.constant(0.0), tf.constant(1.0)
    noise = tf.raw_ops.RandomUniform(shape=tf.shape(x), dtype=tf.float32) * (high - low) + low
    return x / tf.constant(1 - rate) * tf.floor(tf.constant(1 - rate) + noise)


def tf2_form(x: Any, rate: float) -> Any:
    """As TensorFlow 1.13 to 2.12 wrote it."""
    noise = tf.raw_ops.RandomUniform(shape=tf.shape(x), dtype=tf.float32)
    return x * tf.constant(1 / (1 - rate)) * tf.cast(noise >= tf.constant(rate), tf.float32)


def latest_form(x: Any, rate: float) -> Any:
    noise = tf.raw_ops.RandomUniform(shape=tf.shape(x), dtype=tf.float32)
    return tf.raw_ops.SelectV2(condition=noise >= rate, t=x * (1 / (1 - rate)), e=tf.zeros([]))


@pytest.mark.parametrize("form", [tf1_form, tf2_form, latest_form])
@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_dropout(form: Callable[[Any, float], Any], rate: float, run: Callable[..., Any]) -> None:
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [None, None, None, 8], name="x")
        tf.identity(form(x, rate), name="out")
    view = fold_constants(GraphView(graph.as_graph_def(), frozenset({"out"})))
    stripped = skip_identities(strip_dropout(view))
    if rate:
        assert strip_dropout(view) is view
        return
    assert {node.op for node in stripped.graph_def.node} == {"Placeholder", "Identity"}
    np.testing.assert_array_equal(run(stripped, X)[0], X)


MASKS: dict[str, tuple[Any, bool]] = {
    "of the same size": ([2, 9, 7, 8], True),
    "of one number for each channel": ([1, 1, 1, 8], True),
    "of one axis more": ([3, 2, 9, 7, 8], False),
    "that repeats the images": ([4, 9, 7, 8], False),
}


@pytest.mark.parametrize("mask", MASKS)
def test_what_the_mask_would_repeat_stays(mask: str) -> None:
    shape, goes = MASKS[mask]
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [1 if shape[0] == 4 else 2, 9, 7, 8], name="x")
        noise = tf.raw_ops.RandomUniform(shape=shape, dtype=tf.float32)
        tf.multiply(x, tf.cast(noise >= tf.constant(0.0), tf.float32), name="out")
    view = GraphView(graph.as_graph_def(), frozenset({"out"}))
    assert (strip_dropout(view) is not view) is goes


def test_a_mask_of_unknown_size_or_of_another_tensor_stays() -> None:
    for of_other in (False, True):
        with tf.Graph().as_default() as graph:
            x = tf.compat.v1.placeholder(tf.float32, [None, 8], name="x")
            other = tf.compat.v1.placeholder(tf.float32, [None, 8], name="other")
            size = tf.shape(other) if of_other else tf.compat.v1.placeholder(tf.int32, [2], name="size")
            noise = tf.raw_ops.RandomUniform(shape=size, dtype=tf.float32)
            tf.raw_ops.SelectV2(condition=noise >= tf.constant(0.0), t=x, e=tf.zeros([]), name="out")
        view = GraphView(graph.as_graph_def(), frozenset({"out"}))
        assert strip_dropout(view) is view


def test_a_mask_that_is_no_dropout_stays(run: Callable[..., Any]) -> None:
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [None, None, None, 8], name="x")
        tf.multiply(x, tf.cast(x >= 0.0, tf.float32), name="out")
    view = GraphView(graph.as_graph_def(), frozenset({"out"}))
    assert strip_dropout(view) is view
