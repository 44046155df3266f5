from typing import Any

import numpy as np

from tuner.quantization.corrections.parameters import Parameters, with_parameters
from tuner.quantization.lowering.convolutions import find_convolutions

IMAGE = np.random.default_rng(0).normal(0, 1, (1, 6, 6, 8)).astype(np.float32)


def test_parameters_are_replaced_again_and_again(float_graph: Any, run: Any) -> None:
    sketch = float_graph()
    shared = sketch.weights(3, 3, 8, 8)
    data = sketch.convolve(sketch.x, "first", weights=shared, bias=True)
    sketch.named(sketch.convolve(data, "second", weights=shared), "out")
    graph = sketch.view()
    for factor in (2, 3):
        convolutions, _ = find_convolutions(graph)
        first = convolutions["first"]
        assert first.bias is not None
        changed = Parameters(first.weights * factor, first.bias * factor)
        graph = with_parameters(graph, convolutions, {"first": changed})
    found, _ = find_convolutions(graph)
    assert list(found) == ["first", "second"]
    np.testing.assert_array_equal(found["first"].weights, shared * 2 * 3)
    np.testing.assert_array_equal(found["second"].weights, shared)
    np.testing.assert_allclose(run(graph, IMAGE)[0], 6 * run(sketch.view(), IMAGE)[0], rtol=1e-4, atol=1e-4)


def test_nothing_changed_is_the_same_graph(float_graph: Any) -> None:
    sketch = float_graph()
    sketch.named(sketch.convolve(sketch.x, "first"), "out")
    graph = sketch.view()
    assert list(with_parameters(graph, find_convolutions(graph)[0], {}).graph_def.node) == list(graph.graph_def.node)
