from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tuner.quantization.lowering.fold_padding import fold_padding


def padded_convolution(sketch: Any, kernel: int, stride: int, sizes: list[list[int]], **changes: Any) -> None:
    with sketch.graph.as_default():
        data = tf.pad(sketch.x, sizes, name="pad")
    settings = {"weights": sketch.weights(kernel, kernel, 8, 1), "stride": stride, "padding": "VALID", **changes}
    sketch.named(sketch.convolve(data, "conv", "DepthwiseConv2dNative", bias=True, **settings), "out")


def around(rows: int, columns: int) -> list[list[int]]:
    return [[0, 0], [rows, rows], [columns, columns], [0, 0]]


@pytest.mark.parametrize("size", [(8, 8), (9, 9), (8, 7), (1, 2)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5])
def test_same_result(
    kernel: int, stride: int, size: tuple[int, int], float_graph: Any, run: Callable[..., Any]
) -> None:
    sketch = float_graph()
    padded_convolution(sketch, kernel, stride, around(kernel // 2, kernel // 2))
    graph = sketch.view()
    folded = fold_padding(graph, ["conv"])
    assert "pad" not in folded.nodes
    x = np.random.default_rng(1).normal(0, 1, (2, *size, 8)).astype(np.float32)
    (expected,), (found,) = run(graph, x), run(folded, x)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "kernel, stride, sizes, changes",
    [
        (3, 1, around(2, 2), {}),
        (3, 1, around(1, 0), {}),
        (3, 1, [[0, 0], [0, 1], [0, 1], [0, 0]], {}),
        (3, 1, around(1, 1), {"padding": "SAME"}),
        (3, 1, around(1, 1), {"dilation": 2}),
        (3, 3, around(1, 1), {}),
        (4, 2, around(2, 2), {}),
    ],
)
def test_left_alone(
    kernel: int, stride: int, sizes: list[list[int]], changes: dict[str, Any], float_graph: Any
) -> None:
    sketch = float_graph()
    padded_convolution(sketch, kernel, stride, sizes, **changes)
    graph = sketch.view()
    assert fold_padding(graph, ["conv"]) is graph
