"""A summary says of an int8 graph what the lowering put into it, and of a float one what it could."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tuner.errors import ModelError
from tuner.precision import INT8, PrecisionPlan
from tuner.quantization.quantize import find_quantizable_ops, prepare, quantize
from tuner.summary import summarize

X = np.random.default_rng(7).normal(0, 1, (2, 20, 20, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def model(float_graph: Any) -> Any:
    """A wide convolution, a depthwise one, and one that reads an image of three channels."""
    sketch = float_graph(channels=3, size=(20, 20))
    y = sketch.convolve(sketch.x, "first", out=64, bias=True, activation="Relu")
    y = sketch.convolve(y, "wide", out=256, bias=True, activation="Relu")
    y = sketch.convolve(y, "depthwise", "DepthwiseConv2dNative", bias=True)
    sketch.named(sketch.convolve(y, "last", out=64), "out")
    return sketch.model()


def test_a_float_model(model: Any) -> None:
    found = summarize(model)
    precisions = found.precisions
    assert (precisions.int8, precisions.bf16, precisions.fp32) == (0, 0, 4)
    assert precisions.int8_possible == ("first", "wide", "depthwise", "last")
    assert "wide" in precisions.bf16_possible
    assert "first" in precisions.bf16_refused
    assert not isinstance(found.flops, str)
    assert found.flops.shapes == ((1, 20, 20, 3),)


def test_an_int8_model(model: Any, run: Callable[..., Any]) -> None:
    from tuner.quantization.ranges import collect_ranges  # noqa: PLC0415

    prepared = prepare(model)
    ops = find_quantizable_ops(prepared)
    ranges = collect_ranges(prepared, ops.tensors, [X[:1, ..., :3]])
    int8 = quantize(prepared, PrecisionPlan(dict.fromkeys(ops.names, INT8)), ranges)
    found = summarize(int8)
    precisions = found.precisions
    assert (precisions.int8, precisions.fp32, precisions.int8_possible) == (4, 0, ())
    flops, before = found.flops, summarize(model).flops
    assert not isinstance(flops, str)
    assert not isinstance(before, str)
    assert flops.total == before.total


def test_json(model: Any) -> None:
    table = json.loads(json.dumps(summarize(model, [2, 20, 20, 3]).to_json()))
    assert table["inputs"] == [{"name": "x:0", "dtype": "float32", "shape": [None, 20, 20, 3]}]
    assert table["flops"]["input_shapes"] == [[2, 20, 20, 3]]
    assert table["flops"]["total"] == sum(table["flops"]["by_op"].values())
    assert table["flops_unknown"] is None
    assert table["ops"]["Conv2D"] == 3
    assert table["precisions"]["int8_possible"] == ["first", "wide", "depthwise", "last"]


def test_a_shape_that_is_asked_for_and_does_not_fit(model: Any) -> None:
    with pytest.raises(ModelError, match="takes the shape"):
        summarize(model, [1, 21, 20, 3])
