from typing import Any

import numpy as np
import pytest

from tuner.quantization.corrections.equalize import equalize
from tuner.quantization.lowering.convolutions import find_convolutions

IMAGES = np.random.default_rng(3).normal(0, 1, (4, 9, 9, 8)).astype(np.float32)
DEPTHWISE = "DepthwiseConv2dNative"


@pytest.mark.parametrize("middle", ["Conv2D", DEPTHWISE])
@pytest.mark.parametrize("bias", [True, False])
def test_results_stay_and_ranges_are_those_of_the_new_graph(
    middle: str, bias: bool, uneven_chain: Any, run: Any, observe: Any
) -> None:
    graph = uneven_chain(middle, bias=bias).view()
    tensors = ["x", "first/activation", "middle/activation"]
    ranges = observe(graph, IMAGES, tensors)
    equal, rescaled = equalize(graph, ranges)
    np.testing.assert_allclose(run(equal, IMAGES)[0], run(graph, IMAGES)[0], rtol=1e-5, atol=1e-5)
    for tensor, expected in observe(equal, IMAGES, tensors).items():
        np.testing.assert_allclose(rescaled[tensor].highs, expected.highs, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(rescaled[tensor].lows, expected.lows, rtol=1e-5, atol=1e-6)
    assert rescaled["x"] is ranges["x"]
    assert not len(rescaled["first/activation"].counts)


@pytest.mark.parametrize("middle", ["Conv2D", DEPTHWISE])
def test_weights_that_make_and_read_a_channel_are_of_like_size(middle: str, uneven_chain: Any, observe: Any) -> None:
    graph = uneven_chain(middle).view()

    def apart(view: Any) -> float:
        found, _ = find_convolutions(view)
        sizes = {name: np.abs(one.weights) for name, one in found.items()}
        middle_made = sizes["middle"].max((0, 1) if middle == DEPTHWISE else (0, 1, 2)).ravel()
        ratios = [
            sizes["first"].max((0, 1, 2)) / sizes["middle"].max((0, 1, 3)),
            middle_made / sizes["last"].max((0, 1, 3)),
        ]
        return float(np.abs(np.log2(ratios)).max())

    assert apart(graph) > 3
    assert apart(equalize(graph, {})[0]) <= 1.01


def test_channels_that_nothing_makes_or_reads_stay(float_graph: Any, run: Any) -> None:
    sketch = float_graph()
    first, last = sketch.weights(3, 3, 8, 12) * 100, sketch.weights(3, 3, 12, 5)
    first[..., 3] = 0
    last[:, :, 4] = 0
    data = sketch.convolve(sketch.x, "first", weights=first, bias=True, activation="Relu")
    sketch.named(sketch.convolve(data, "last", weights=last), "out")
    equal, _ = equalize(sketch.view(), {})
    np.testing.assert_array_equal(find_convolutions(equal)[0]["first"].weights[..., [3, 4]], first[..., [3, 4]])
    np.testing.assert_allclose(run(equal, IMAGES)[0], run(sketch.view(), IMAGES)[0], rtol=1e-5, atol=1e-4)


def test_where_there_is_no_pair_nothing_changes(uneven_chain: Any) -> None:
    graph = uneven_chain(activation="Relu6").view()
    assert list(equalize(graph, {})[0].graph_def.node) == list(graph.graph_def.node)
