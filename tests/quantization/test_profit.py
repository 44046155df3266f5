from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tuner.precision import INT8, PrecisionPlan
from tuner.quantization.profit import find_unprofitable
from tuner.quantization.quantize import find_quantizable_ops, prepare
from tuner.quantization.ranges import collect_ranges

DEPTHWISE = "DepthwiseConv2dNative"


def alone(sketch: Any) -> None:
    """One depthwise convolution between float ops."""
    data = tf.sigmoid(sketch.x)
    sketch.named(tf.tanh(sketch.convolve(data, "op", DEPTHWISE, bias=True)), "out")


def between(sketch: Any) -> None:
    """A depthwise convolution between two others."""
    data = sketch.convolve(sketch.x, "first", activation="Relu", out=8)
    data = sketch.convolve(data, "op", DEPTHWISE, bias=True)
    sketch.named(sketch.convolve(data, "last"), "out")


def large(sketch: Any) -> None:
    """A convolution between float ops that saves far more than it pays."""
    sketch.named(tf.tanh(sketch.convolve(tf.sigmoid(sketch.x), "op", out=64)), "out")


def small(sketch: Any) -> None:
    sketch.named(tf.tanh(sketch.convolve(tf.sigmoid(sketch.x), "op", out=4)), "out")


def read_twice(sketch: Any) -> None:
    """The border of the input is shared, so neither reader is alone."""
    data = tf.sigmoid(sketch.x)
    one, other = sketch.convolve(data, "op", out=4), sketch.convolve(data, "other", out=4)
    sketch.named(tf.tanh(sketch.concatenate([one, other])), "out")


@pytest.mark.parametrize(
    ("build", "channels", "size", "unprofitable"),
    [
        (alone, 8, 9, {"op"}),
        (alone, 64, 40, {"op"}),
        (between, 8, 9, set()),
        (large, 64, 40, set()),
        (small, 4, 9, {"op"}),
        (read_twice, 4, 9, set()),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_only_what_is_alone_and_gains_little(
    build: Any, channels: int, size: int, unprofitable: set[str], float_graph: Any
) -> None:
    sketch = float_graph(channels=channels)
    with sketch.graph.as_default():
        build(sketch)
    prepared = prepare(sketch.model())
    ops = find_quantizable_ops(prepared)
    images = [np.random.default_rng(seed).normal(0, 1, (1, size, size, channels)) for seed in range(2)]
    ranges = collect_ranges(prepared, ops.tensors, images)
    found = find_unprofitable(prepared, PrecisionPlan(dict.fromkeys(ops.names, INT8)), ranges)
    assert found.keys() == unprofitable
    assert all("between float ops" in reason for reason in found.values())
