from collections.abc import Callable
from typing import Any

import pytest
import tensorflow as tf

from tuner.quantization.corrections.pairs import find_pairs
from tuner.quantization.lowering.convolutions import find_convolutions


def two_readers(sketch: Any) -> None:
    data = sketch.convolve(sketch.x, "a", activation="Relu")
    sketch.named(
        sketch.concatenate([sketch.convolve(data, "b", "DepthwiseConv2dNative"), sketch.convolve(data, "c")]), "out"
    )


def a_float_reader(sketch: Any) -> None:
    data = sketch.convolve(sketch.x, "a")
    sketch.named(sketch.concatenate([data, sketch.convolve(data, "b")]), "out")


def relu6(sketch: Any) -> None:
    sketch.named(sketch.convolve(sketch.convolve(sketch.x, "a", activation="Relu6"), "b"), "out")


def read_from_outside(sketch: Any) -> None:
    data = sketch.convolve(sketch.x, "a")
    sketch.named(data, "again")
    sketch.named(sketch.convolve(data, "b"), "out")


def grouped_reader(sketch: Any) -> None:
    data = sketch.convolve(sketch.x, "a", bias=True)
    sketch.named(sketch.convolve(data, "b", weights=sketch.weights(3, 3, 6, 4)), "out")


def chain(sketch: Any) -> None:
    data = sketch.convolve(sketch.x, "a", bias=True)
    data = sketch.convolve(data, "b", "DepthwiseConv2dNative", activation="Relu")
    sketch.named(sketch.convolve(data, "c"), "out")


def shared_weights(sketch: Any) -> None:
    weights = sketch.weights(3, 3, 12, 5)
    data = [sketch.convolve(sketch.x, name, activation="Relu") for name in "ab"]
    parts = [sketch.convolve(part, f"{part.op.name[0]}_read", weights=weights) for part in data]
    sketch.named(sketch.concatenate(parts), "out")


def a_waiting_convolution(sketch: Any) -> None:
    data = sketch.convolve(sketch.x, "a")
    with sketch.graph.as_default(), sketch.graph.control_dependencies([data.op]):
        tf.identity(sketch.convolve(sketch.x, "b"), name="out")


@pytest.mark.parametrize(
    ("build", "pairs"),
    [
        (two_readers, {"a": ["b", "c"]}),
        (a_float_reader, {}),
        (relu6, {}),
        (read_from_outside, {}),
        (grouped_reader, {}),
        (chain, {"a": ["b"], "b": ["c"]}),
        (a_waiting_convolution, {}),
        (shared_weights, {}),
    ],
)
def test_pairs(build: Callable[[Any], None], pairs: dict[str, list[str]], float_graph: Any) -> None:
    sketch = float_graph()
    build(sketch)
    graph = sketch.view("out", "again") if build is read_from_outside else sketch.view()
    assert find_pairs(graph, find_convolutions(graph)[0]) == pairs
