from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tuner.quantization.lowering.pointwise_matmul import pointwise_to_matmul
from tuner.quantization.lowering.static_shapes import static_shapes

X = np.random.default_rng(3).normal(0, 1, (2, 6, 5, 8)).astype(np.float32)


@pytest.fixture
def sketch(float_graph: Any) -> Any:
    sketch = float_graph()
    sketch.graph = tf.Graph()
    with sketch.graph.as_default():
        sketch.x = tf.compat.v1.placeholder(tf.float32, [None, 6, 5, 8], name="x")
    return sketch


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("activation", [None, "Relu", "Relu6"])
def test_same_result(sketch: Any, run: Callable[..., Any], activation: str | None, padding: str) -> None:
    weights = sketch.weights(1, 1, 8, 12)
    data = sketch.convolve(sketch.x, "conv", weights=weights, bias=True, activation=activation, padding=padding)
    sketch.named(data, "out")
    graph = sketch.view()
    changed = pointwise_to_matmul(graph, ["conv"], static_shapes(graph, ["conv"]))
    assert changed.nodes["conv"].op == "MatMul"
    assert not any(node.op == "Conv2D" for node in changed.graph_def.node)
    (expected,), (found,) = run(graph, X), run(changed, X)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"weights": np.ones((3, 3, 8, 4), np.float32)},
        {"stride": 2},
        {"bias": False},
        {"weights": np.ones((1, 1, 8, 21_000), np.float32)},  # 6 * 5 * 8 * 21,000 products are too many
        {"op": "DepthwiseConv2dNative", "weights": np.ones((1, 1, 8, 1), np.float32)},
        {"padding": [[0, 0], [1, 1], [0, 0], [0, 0]]},
    ],
)
def test_left_alone(sketch: Any, changes: dict[str, Any]) -> None:
    settings = {"weights": np.ones((1, 1, 8, 4), np.float32), "bias": True, **changes}
    sketch.named(sketch.convolve(sketch.x, "conv", **settings), "out")
    graph = sketch.view()
    assert pointwise_to_matmul(graph, ["conv"], static_shapes(graph, ["conv"])).nodes == graph.nodes


def test_left_alone_where_shapes_are_not_known(float_graph: Any) -> None:
    sketch = float_graph()
    sketch.named(sketch.convolve(sketch.x, "conv", weights=sketch.weights(1, 1, 8, 4), bias=True), "out")
    graph = sketch.view()
    assert pointwise_to_matmul(graph, ["conv"], static_shapes(graph, ["conv"])).nodes == graph.nodes
