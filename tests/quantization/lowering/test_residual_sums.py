"""Residual sums: which of them a kernel makes, and that they are right either way."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tuner.precision import FP32, INT8, OpPrecision, Output, PrecisionPlan
from tuner.quantization.lowering.codes import decide_codes
from tuner.quantization.lowering.convolutions import find_convolutions
from tuner.quantization.lowering.lower import lower
from tuner.quantization.lowering.regions import possible_sources
from tuner.quantization.ranges import Ranges, TensorRange
from tuner.quantization.simulation import simulate

X = np.random.default_rng(3).normal(0, 1, (2, 9, 7, 8)).astype(np.float32)
SAME_CODES = 1e-4


class Block:
    """`first`, then `second` behind it, whose result is added to a shortcut, with Relu; then `last`.

    shortcut: "identity" (what `first` reads too), "projection" (a convolution without activation), "relu projection",
    "float" (a float op's result).
    """

    def __init__(
        self,
        float_graph: Any,
        shortcut: str = "identity",
        activation: str | None = "Relu",
        size: tuple[int, int] | None = (9, 7),
    ) -> None:
        self.sketch = sketch = float_graph(seed=4, size=size)
        self.outputs = ["out"]
        stem = sketch.convolve(sketch.x, "stem", out=8, bias=True, activation="Relu")
        data = sketch.convolve(stem, "first", out=8, bias=True, activation="Relu")
        data = sketch.convolve(data, "second", out=8, bias=True)
        with sketch.graph.as_default():
            self.summand = {
                "identity": lambda: stem,
                "projection": lambda: sketch.convolve(stem, "projection", out=8, bias=True),
                "relu projection": lambda: sketch.convolve(stem, "projection", out=8, activation="Relu"),
                "float": lambda: tf.nn.sigmoid(stem),
            }[shortcut]()
            data = tf.add(data, self.summand, name="sum")
            if activation is not None:
                data = {"Relu": tf.nn.relu, "Relu6": tf.nn.relu6, "Tanh": tf.nn.tanh}[activation](data, name="after")
        self.result = data
        sketch.named(sketch.convolve(data, "last"), "out")

    def also_read(self, tensor: tf.Tensor, name: str) -> None:
        with self.sketch.graph.as_default():
            tf.negative(tensor, name=name)
        self.outputs.append(name)

    def finish(self, observe: Callable[..., Any]) -> tuple[Any, PrecisionPlan, Ranges]:
        graph = self.sketch.view(*self.outputs)
        found, _ = find_convolutions(graph)
        plan = PrecisionPlan(dict.fromkeys(found, INT8))
        return graph, plan, observe(graph, X, possible_sources(graph, found))


def fused(graph: Any, plan: PrecisionPlan, ranges: Ranges) -> set[str]:
    kernels = decide_codes(graph, plan, ranges).kernels.values()
    return {kernel.convolution.name for kernel in kernels if kernel.convolution.summand is not None}


def assert_right(graph: Any, plan: PrecisionPlan, ranges: Ranges, outputs: list[str], run: Callable[..., Any]) -> None:
    int8, simulation = lower(graph, plan, ranges), simulate(graph, plan, ranges)
    for computed, simulated, exact in zip(
        run(int8, X, *outputs), run(simulation, X, *outputs), run(graph, X, *outputs), strict=True
    ):
        largest = np.abs(exact).max()
        # A sum that lies between two codes may round either way: the kernel multiplies and adds in one go.
        assert np.mean(np.abs(computed - simulated) > SAME_CODES * largest) < 0.02
        assert np.abs(computed - simulated).max() < 0.02 * largest
        assert 0 < np.abs(simulated - exact).max() < 0.06 * largest


@pytest.mark.parametrize(
    ("shortcut", "activation", "sums"),
    [
        pytest.param("relu projection", "Relu", 1, id="projection with Relu"),
        pytest.param("projection", "Relu", 1, id="projection with negative values"),
        pytest.param("projection", "Relu6", 1, id="Relu6"),
        pytest.param("float", "Relu", 0, id="a float op's result"),
        pytest.param("projection", "Tanh", 0, id="another function behind the sum"),
        pytest.param("projection", None, 0, id="no function behind the sum"),
    ],
)
def test_who_makes_the_sum(
    shortcut: str,
    activation: str | None,
    sums: int,
    *,
    float_graph: Any,
    observe: Callable[..., Any],
    run: Callable[..., Any],
) -> None:
    """sums: how many, whichever of the two convolutions in front makes one."""
    block = Block(float_graph, shortcut, activation)
    graph, plan, ranges = block.finish(observe)
    assert len(fused(graph, plan, ranges)) == sums
    assert_right(graph, plan, ranges, block.outputs, run)


@pytest.mark.parametrize("changed", ["stem", "first", "second", "last"])
@pytest.mark.parametrize("decision", [FP32, OpPrecision(output=Output.EXACT)], ids=["float", "exact"])
@pytest.mark.parametrize("shortcut", ["identity", "projection", "relu projection"])
def test_sums_beside_ops_that_make_no_codes(
    shortcut: str,
    decision: OpPrecision,
    changed: str,
    *,
    float_graph: Any,
    observe: Callable[..., Any],
    run: Callable[..., Any],
) -> None:
    block = Block(float_graph, shortcut)
    graph, plan, ranges = block.finish(observe)
    assert_right(graph, plan.with_ops([changed], decision), ranges, block.outputs, run)


@pytest.mark.parametrize("shortcut", ["identity", "projection", "relu projection"])
def test_a_summand_that_others_read_is_not_overwritten(
    shortcut: str, float_graph: Any, observe: Callable[..., Any], run: Callable[..., Any]
) -> None:
    """The kernel writes its result over the summand: whoever else reads that must get its values all the same."""
    block = Block(float_graph, shortcut)
    block.also_read(block.summand, "beside")
    graph, plan, ranges = block.finish(observe)
    assert fused(graph, plan, ranges) <= {"projection"}
    assert_right(graph, plan, ranges, block.outputs, run)


@pytest.mark.parametrize("shortcut", ["identity", "projection", "relu projection"])
def test_a_summand_that_is_an_output(
    shortcut: str, float_graph: Any, observe: Callable[..., Any], run: Callable[..., Any]
) -> None:
    block = Block(float_graph, shortcut)
    block.outputs.append(block.summand.op.name)
    graph, plan, ranges = block.finish(observe)
    assert fused(graph, plan, ranges) <= {"projection"}
    assert_right(graph, plan, ranges, block.outputs, run)


def test_rows_and_columns_that_are_not_known(
    float_graph: Any, observe: Callable[..., Any], run: Callable[..., Any]
) -> None:
    """The kernel does not broadcast: it ends the process."""
    block = Block(float_graph, "projection", size=None)
    graph, plan, ranges = block.finish(observe)
    assert fused(graph, plan, ranges) == set()
    assert_right(graph, plan, ranges, block.outputs, run)


def test_without_fusing(float_graph: Any, observe: Callable[..., Any]) -> None:
    graph, plan, ranges = Block(float_graph, "relu projection").finish(observe)
    kernels = decide_codes(graph, plan, ranges, fuse_sums=False).kernels.values()
    assert all(kernel.convolution.summand is None for kernel in kernels)


def test_a_raised_summand_has_unsigned_codes(float_graph: Any, observe: Callable[..., Any]) -> None:
    graph, plan, ranges = Block(float_graph, "projection").finish(observe)
    codes = decide_codes(graph, plan, ranges)
    (maker,) = (kernel for kernel in codes.kernels.values() if kernel.convolution.summand is not None)
    summand = maker.convolution.summand or ""
    lowest = ranges[summand].low
    assert lowest < 0
    scale = codes.scales[summand]
    assert scale.is_unsigned
    assert scale.is_uniform
    np.testing.assert_allclose(scale.peaks, ranges[summand].high - lowest, rtol=1e-6)


def test_a_tensor_added_to_itself(float_graph: Any, observe: Callable[..., Any], run: Callable[..., Any]) -> None:
    sketch = float_graph()
    data = sketch.convolve(sketch.x, "conv", out=8)
    with sketch.graph.as_default():
        data = tf.nn.relu(data + data)
    sketch.named(sketch.convolve(data, "last"), "out")
    graph = sketch.view()
    found, _ = find_convolutions(graph)
    ranges = observe(graph, X, possible_sources(graph, found))
    assert_right(graph, PrecisionPlan(dict.fromkeys(found, INT8)), ranges, ["out"], run)


def test_a_summand_of_another_shape(float_graph: Any, observe: Callable[..., Any], run: Callable[..., Any]) -> None:
    """Broadcast along rows and columns, which the kernel cannot."""
    sketch = float_graph(size=(9, 7))
    data = sketch.convolve(sketch.x, "conv", out=8, bias=True)
    weights = sketch.weights(9, 7, 8, 8)
    other = sketch.convolve(sketch.x, "other", weights=weights, padding="VALID", activation="Relu")
    with sketch.graph.as_default():
        data = tf.nn.relu(data + other)
    sketch.named(sketch.convolve(data, "last"), "out")
    graph = sketch.view()
    found, _ = find_convolutions(graph)
    ranges = observe(graph, X, possible_sources(graph, found))
    plan = PrecisionPlan(dict.fromkeys(found, INT8))
    assert fused(graph, plan, ranges) == set()
    assert_right(graph, plan, ranges, ["out"], run)


ALIASES: dict[str, Callable[..., Any]] = {
    "Identity": tf.identity,
    "Pad": lambda x: tf.pad(x, [[0, 0]] * 4),
    "SplitV": lambda x: tf.split(x, [8], 3)[0],
    "MirrorPad": lambda x: tf.pad(x, [[0, 0]] * 4, "REFLECT"),
    "Slice": lambda x: tf.slice(x, [0] * 4, [-1] * 4),
    "StridedSlice": lambda x: x[:, :],
    "Reshape": lambda x: tf.reshape(x, [-1, 9, 7, 8]),
    "Reshape twice": lambda x: tf.reshape(tf.reshape(x, [-1, 8]), [-1, 9, 7, 8]),
    "Squeeze of ExpandDims": lambda x: tf.squeeze(tf.expand_dims(x, 1), [1]),
}


@pytest.mark.parametrize("is_added", [False, True], ids=["beside the sum", "added"])
@pytest.mark.parametrize("alias", ALIASES)
def test_a_summand_whose_memory_another_op_hands_on(
    alias: str, is_added: bool, float_graph: Any, run: Callable[..., Any]
) -> None:
    """These ops may pass on the memory that they read, so whoever reads their result reads the summand's."""
    forward = ALIASES[alias]
    sketch = float_graph(size=(9, 7))
    summand = sketch.convolve(sketch.x, "projection", out=8, activation="Relu")
    with sketch.graph.as_default():
        passed_on = forward(summand)
    data = sketch.convolve(passed_on, "first", out=8, bias=True)
    with sketch.graph.as_default():
        data = tf.nn.relu(data + (passed_on if is_added else summand))
    sketch.named(sketch.convolve(data, "last"), "out")
    sketch.named(sketch.convolve(sketch.concatenate([passed_on, data]), "late"), "also")
    graph = sketch.view("out", "also")
    found, _ = find_convolutions(graph)
    ranges = {
        name: TensorRange(values.reshape(-1, 8).min(0)[np.newaxis], values.reshape(-1, 8).max(0)[np.newaxis])
        for name in possible_sources(graph, found)
        for values in run(graph, X, name)
    }
    plan = PrecisionPlan(dict.fromkeys(found, INT8))
    assert fused(graph, plan, ranges) == set()
    assert_right(graph, plan, ranges, ["out", "also"], run)


def test_a_negative_summand_behind_an_activation_is_not_raised(
    float_graph: Any, observe: Callable[..., Any], run: Callable[..., Any]
) -> None:
    """What is added to a bias in front of LeakyRelu comes out changed; both graphs would be wrong alike."""
    sketch = float_graph(seed=4, size=(9, 7))
    leaky = sketch.convolve(sketch.x, "leaky", weights=sketch.weights(1, 1, 8, 8), bias=True, activation="LeakyRelu")
    data = sketch.convolve(sketch.x, "second", out=8, bias=True)
    with sketch.graph.as_default():
        data = tf.nn.relu(tf.add(data, leaky), name="after")
    sketch.named(sketch.convolve(data, "last"), "out")
    graph = sketch.view()
    found, _ = find_convolutions(graph)
    ranges = observe(graph, X, possible_sources(graph, found))
    assert ranges[found["leaky"].output].low < 0
    lowered = lower(graph, PrecisionPlan(dict.fromkeys(found, INT8)), ranges)
    exact, value = run(graph, X)[0], run(lowered, X)[0]
    assert np.linalg.norm(value - exact) < 0.03 * np.linalg.norm(exact)
