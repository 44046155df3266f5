from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tuner.graph.fold_constants import fold_constants
from tuner.graph.fold_scale_and_shift import fold_scale_and_shift
from tuner.model.fold_batch_norm import CONVOLUTION_OPS

X = np.random.default_rng(7).normal(0, 1, (2, 9, 7, 8)).astype(np.float32)


def ops_of(graph: Any) -> list[str]:
    return sorted(node.op for node in graph.graph_def.node if node.op not in ("Const", "Placeholder", "Identity"))


def values(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).uniform(0.5, 2, shape).astype(np.float32)


CHAINS: dict[str, Callable[[Any, int], Any]] = {
    "multiply": lambda y, n: y * values(1, n),
    "multiply and add": lambda y, n: y * values(1, n) + values(2, n),
    "constant first": lambda y, n: values(2, n) + values(1, 1, 1, 1, n) * y,
    "numbers": lambda y, n: (y - 0.5) / 3.0 * 2.0,
    "add": lambda y, n: y + values(2, n),
    "bias at the end": lambda y, n: tf.nn.bias_add(y * values(1, n), values(2, n)),
    "subtract and divide": lambda y, n: (y - values(1, 1, n)) / values(2, n),
    "batch norm": lambda y, n: tf.nn.batch_normalization(
        y, values(1, n), values(2, n), values(3, n), values(4, n), 1e-3
    ),
}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("op", CONVOLUTION_OPS)
@pytest.mark.parametrize("chain", CHAINS)
def test_folded_graph_computes_the_same(
    chain: str, op: str, bias: bool, float_graph: Any, run: Callable[..., Any]
) -> None:
    sketch = float_graph(seed=3)
    with sketch.graph.as_default():
        convolved = sketch.convolve(sketch.x, "conv", op, bias=bias)
        sketch.named(CHAINS[chain](convolved, convolved.shape[-1]), "out")
    folded = fold_scale_and_shift(fold_constants(sketch.view()))
    assert ops_of(folded) == ["BiasAdd", op]
    (expected,), (found,) = run(sketch.view(), X), run(folded, X)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_channels_first(float_graph: Any, run: Callable[..., Any]) -> None:
    sketch = float_graph(seed=3)
    with sketch.graph.as_default():
        x = tf.transpose(sketch.x, [0, 3, 1, 2])
        y = tf.nn.conv2d(x, sketch.weights(3, 3, 8, 7), 1, "SAME", data_format="NCHW", name="conv")
        y = tf.nn.bias_add(y * values(1, 7, 1, 1), values(2, 7), data_format="NCHW")
        # As wide as there are channels: what is multiplied is a column.
        sketch.named(y * values(3, 7), "out")
    folded = fold_scale_and_shift(sketch.view())
    assert ops_of(folded) == ["BiasAdd", "Conv2D", "Mul", "Transpose"]
    (expected,), (found,) = run(sketch.view(), X), run(folded, X)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    "chain",
    [
        lambda y, x: tf.nn.bias_add(y, values(1, 12)),
        lambda y, x: 1.0 - y,
        lambda y, x: values(1, 12) / y,
        lambda y, x: y * values(1, 9, 7, 1),
        lambda y, x: y * values(1, 2, 1, 1, 1, 12),
        lambda y, x: y / np.float32(0),
        lambda y, x: y * tf.reduce_mean(x),
        lambda y, x: y * y,
        lambda y, x: tf.concat([y * values(1, 12), y], -1),
    ],
)
def test_left_alone(chain: Callable[[Any, Any], Any], float_graph: Any) -> None:
    sketch = float_graph()
    with sketch.graph.as_default():
        sketch.named(chain(sketch.convolve(sketch.x, "conv"), sketch.x), "out")
    graph = sketch.view()
    assert fold_scale_and_shift(graph) is graph


def test_one_channel_is_not_many(float_graph: Any) -> None:
    sketch = float_graph()
    with sketch.graph.as_default():
        sketch.named(sketch.convolve(sketch.x, "conv", out=1) * values(1, 12), "out")
    graph = sketch.view()
    assert fold_scale_and_shift(graph) is graph


def test_an_output_ends_the_chain(float_graph: Any, run: Callable[..., Any]) -> None:
    sketch = float_graph()
    with sketch.graph.as_default():
        scaled = tf.multiply(sketch.convolve(sketch.x, "conv"), 2.0, name="scaled")
        tf.add(scaled, 1.0, name="out")
    graph = sketch.view("scaled", "out")
    folded = fold_scale_and_shift(graph)
    assert ops_of(folded) == ["AddV2", "BiasAdd", "Conv2D"]
    for expected, found in zip(run(graph, X, "scaled", "out"), run(folded, X, "scaled", "out"), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
