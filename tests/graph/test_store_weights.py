from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tuner.graph.store_weights import store_weights_in_8_bits
from tuner.model.graph_view import GraphView

X = np.random.default_rng(7).normal(0, 1, (2, 9, 7, 8)).astype(np.float32)


def made(build: Callable[[Any], Any]) -> GraphView:
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [None, None, None, 8], name="x")
        tf.identity(build(x), name="out")
    return GraphView(graph.as_graph_def(), frozenset({"out"}))


def weights(*shape: int) -> Any:
    """Channels, the last axis, differ by powers of ten."""
    values = np.random.default_rng(1).normal(0, 1, shape) * 10.0 ** (np.arange(shape[-1]) % 4)
    return tf.constant(values.astype(np.float32), name="weights")


def kernel_of_transposed() -> Any:
    """[height, width, channels out, channels in]."""
    values = np.random.default_rng(1).normal(0, 1, (3, 3, 40, 8)) * 10.0 ** (np.arange(40) % 4)[:, np.newaxis]
    return tf.constant(values.astype(np.float32), name="weights")


def rows(x: Any) -> Any:
    return tf.reshape(x, [-1, 8])


PRODUCTS: dict[str, Callable[[Any], Any]] = {
    "convolution": lambda x: tf.nn.conv2d(x, tf.identity(weights(3, 3, 8, 40)), 1, "SAME"),
    "transposed convolution": lambda x: tf.nn.conv2d_transpose(x, kernel_of_transposed(), [2, 9, 7, 40], 1),
    "matrix product": lambda x: tf.matmul(rows(x), weights(8, 200)),
    "batch of matrix products": lambda x: tf.matmul(tf.reshape(x, [1, -1, 8]), weights(1, 8, 200)),
}


@pytest.mark.parametrize("product", PRODUCTS)
def test_each_channel_has_its_scale(product: str, run: Callable[..., Any]) -> None:
    graph = made(PRODUCTS[product])
    stored = store_weights_in_8_bits(graph)
    assert (stored.tensors, stored.kept_float, stored.worst) == (1, 0, "weights")
    assert stored.values == np.prod(graph.constant("weights").shape)  # type: ignore[union-attr]
    assert 0 < stored.largest_error <= 0.5 / 127 + 1e-6
    (before,), (after,) = run(graph, X, "weights"), run(stored.graph, X, "weights")
    axis = 2 if product == "transposed convolution" else before.ndim - 1
    channel = np.abs(before).max(tuple(index for index in range(before.ndim) if index != axis), keepdims=True)
    assert np.all(np.abs(after - before) <= channel * (0.5 / 127 + 1e-6))
    assert stored.graph.nodes["weights/codes"].attr["dtype"].type == tf.int8
    (expected,), (found,) = run(graph, X), run(stored.graph, X)
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()
    assert stored.graph.graph_def.ByteSize() < 0.7 * graph.graph_def.ByteSize()


def test_depthwise_weights_and_transposed_ones() -> None:
    spread = (10.0 ** np.arange(8)).astype(np.float32)

    def build(x: Any) -> Any:
        kernel = np.random.default_rng(2).normal(0, 1, (9, 9, 8, 1)).astype(np.float32) * spread[:, np.newaxis]
        y = tf.nn.depthwise_conv2d(x, tf.constant(kernel, name="kernel"), [1, 1, 1, 1], "SAME")
        rows_of = np.random.default_rng(3).normal(0, 1, (50, 8)).astype(np.float32) * spread[:1]
        return tf.matmul(rows(y), tf.constant(rows_of, name="transposed"), transpose_b=True)

    graph = made(build)
    stored = store_weights_in_8_bits(graph)
    assert stored.tensors == 2
    assert stored.graph.constant("kernel/scales").shape == (1, 1, 8, 1)  # type: ignore[union-attr]
    assert stored.graph.constant("transposed/scales").shape == (50, 1)  # type: ignore[union-attr]


def test_zeros_are_exact(run: Callable[..., Any]) -> None:
    values = np.zeros((3, 3, 8, 40), np.float32)
    values[..., 1] = np.random.default_rng(1).normal(0, 1, (3, 3, 8)) > 0
    graph = made(lambda x: tf.nn.conv2d(x, tf.constant(values, name="weights"), 1, "SAME"))
    stored = store_weights_in_8_bits(graph)
    np.testing.assert_array_equal(run(stored.graph, X, "weights")[0], values)
    assert (stored.largest_error, stored.worst) == (0.0, "")


@pytest.mark.parametrize(
    ("build", "kept"),
    [
        (lambda x: x + weights(9, 7, 8), 0),
        (lambda x: tf.gather(weights(400, 8), tf.zeros([3], tf.int32)), 0),
        (lambda x: tf.nn.conv2d(x, weights(1, 1, 8, 2), 1, "SAME"), 1),
        (lambda x: tf.nn.conv2d(x, tf.fill([3, 3, 8, 40], 1.0), 1, "SAME"), 0),
    ],
)
def test_left_alone(build: Callable[[Any], Any], kept: int) -> None:
    graph = made(build)
    stored = store_weights_in_8_bits(graph)
    assert stored.graph is graph
    assert (stored.tensors, stored.kept_float) == (0, kept)


def test_weights_that_something_else_reads_or_that_are_not_finite_stay() -> None:
    def shared(x: Any) -> Any:
        kernel = weights(3, 3, 8, 40)
        return tf.nn.conv2d(x, kernel, 1, "SAME") + tf.reduce_sum(kernel)

    def infinite(x: Any) -> Any:
        return tf.nn.conv2d(x, tf.constant(np.full((3, 3, 8, 40), np.inf, np.float32)), 1, "SAME")

    assert [store_weights_in_8_bits(made(build)).kept_float for build in (shared, infinite)] == [1, 1]
