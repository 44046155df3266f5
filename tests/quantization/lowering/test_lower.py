"""The contract of the lowering: the int8 graph computes what the simulation of the same plan computes.

Both are made of the same codes, so they agree far below one quantisation step, and both stay near the float graph.
Codes that one convolution hands to the next may differ by one where a value lies in the middle between two: the
kernel and the float ops of the simulation multiply in another order.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tuner.model.graph_view import GraphView
from tuner.precision import Dtype, Granularity, OpPrecision, PrecisionPlan
from tuner.quantization.lowering.codes import QuantizedConvolution, quantize_convolutions
from tuner.quantization.lowering.convolutions import find_convolutions
from tuner.quantization.lowering.kernels import KERNEL_OPS
from tuner.quantization.lowering.lower import lower
from tuner.quantization.simulation import simulate

# As shares of the largest output value.
SAME_CODES = 1e-4
# As a share of the codes handed over.
TIES = 0.002
NEAR_FLOAT = {Granularity.PER_CHANNEL: 0.03, Granularity.PER_TENSOR: 0.06}

OPS = tuple(KERNEL_OPS)
ACTIVATIONS = (None, "Relu", "Relu6")
GRANULARITIES = tuple(Granularity)


@dataclass(frozen=True)
class Case:
    """One pattern: a convolution, what surrounds it, and how the plan wants it."""

    op: str
    activation: str | None
    bias: bool
    signed_input: bool
    granularity: Granularity = Granularity.PER_CHANNEL
    variation: str = "plain"
    seed: int = 0

    def __str__(self) -> str:
        facts = [
            self.op,
            str(self.activation),
            "bias" if self.bias else "no_bias",
            "s8" if self.signed_input else "u8",
            self.granularity,
            self.variation,
        ]
        return "-".join(facts)


SHAPES: dict[str, dict[str, Any]] = {
    "stride_2": {"stride": 2},
    "valid": {"padding": "VALID"},
    "dilation_2": {"dilation": 2},
    # On a depthwise convolution TensorFlow 2.21 ends the process: left out there.
    "explicit_padding": {"padding": [[0, 0], [1, 2], [0, 1], [0, 0]]},
}
WEIGHTS = ("silent_channel", "tiny_channel_with_large_bias")
FOLLOWERS = {
    "then_conv": ("Conv2D",),
    "then_grouped_conv": ("grouped",),
    "then_conv_and_grouped_conv": ("Conv2D", "grouped"),
    "then_depthwise": ("DepthwiseConv2dNative",),
    "then_two_convs": ("Conv2D", "Conv2D"),
    "then_two_depthwise": ("DepthwiseConv2dNative", "DepthwiseConv2dNative"),
    "then_conv_and_depthwise": ("Conv2D", "DepthwiseConv2dNative"),
}


def cases() -> Iterator[Case]:
    """Every pattern plainly; then each variation under four patterns, which rotate so that all of them occur."""
    yield from (Case(*pattern) for pattern in product(OPS, ACTIVATIONS, (False, True), (False, True)))
    patterns = list(product(ACTIVATIONS, (False, True), (False, True), GRANULARITIES))
    turn = 0
    for op, variation in product(OPS, (*SHAPES, *WEIGHTS, *FOLLOWERS)):
        if (op, variation) == ("DepthwiseConv2dNative", "explicit_padding"):
            continue
        for _ in range(4):
            turn += 7  # has no divisor in common with the 24 patterns
            activation, bias, signed, granularity = patterns[turn % len(patterns)]
            yield Case(op, activation, bias or "bias" in variation, signed, granularity, variation, seed=turn)


CASES = list(cases())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_int8_graph_computes_what_the_simulation_computes(
    case: Case, float_graph: Any, run: Callable[..., Any], observe: Callable[..., Any]
) -> None:
    graph, x = build(case, float_graph)
    convolutions, refused = find_convolutions(graph)
    assert not refused
    plan = PrecisionPlan(dict.fromkeys(convolutions, OpPrecision(Dtype.INT8, case.granularity)))
    ranges = observe(graph, x, [convolution.input for convolution in convolutions.values()])

    int8_graph = lower(graph, plan, ranges)

    kernels = [node.name for node in int8_graph.graph_def.node if node.op in KERNEL_OPS.values()]
    assert sorted(kernels) == sorted(f"{name}/int8" for name in convolutions)
    assert not any(node.op in KERNEL_OPS for node in int8_graph.graph_def.node)
    (exact,) = run(graph, x)
    (computed,) = run(int8_graph, x)
    simulation = simulate(graph, plan, ranges)
    (simulated,) = run(simulation, x)
    ties = differing_codes(quantize_convolutions(graph, plan, ranges), int8_graph, simulation, x, run)
    assert np.abs(computed - simulated).max() <= SAME_CODES * np.abs(exact).max() + ties
    assert 0 < relative(computed - exact, exact) < NEAR_FLOAT[case.granularity]
    assert 0 < relative(simulated - exact, exact) < NEAR_FLOAT[case.granularity]


def differing_codes(
    convolutions: list[QuantizedConvolution], int8_graph: GraphView, simulation: GraphView, x: Any, run: Any
) -> float:
    """How far the outputs may lie apart because of codes that differ; 0 where the first convolution makes no codes."""
    first, *readers = convolutions
    if first.output is None:
        return 0.0
    (codes,) = run(int8_graph, x, f"{first.convolution.name}/int8")
    (simulated,) = run(simulation, x, f"{readers[0].convolution.linear_members[-1]}/simulation/codes")
    differences = np.abs(codes.astype(np.float32) - simulated)
    assert differences.max() <= 1
    assert differences.mean() <= TIES
    largest = max(float((np.abs(reader.weights).max((0, 1)) * np.max(reader.units)).max()) for reader in readers)
    return largest * float(differences.sum())


def build(case: Case, float_graph: Any) -> tuple[Any, NDArray[np.float32]]:
    sketch = float_graph(channels=8, seed=case.seed)
    channels = 12 if case.op == "Conv2D" else 8
    weights = sketch.weights(3, 3, 8, 12 if case.op == "Conv2D" else 1)
    bias: Any = sketch.weights(channels) if case.bias else False
    channel = (..., 2) if case.op == "Conv2D" else (..., 2, 0)
    if case.variation == "silent_channel":
        weights[channel] = 0
    if case.variation == "tiny_channel_with_large_bias":
        weights[channel] *= 1e-7
        bias[2] = 3
    result = sketch.convolve(
        sketch.x,
        "first",
        case.op,
        weights=weights,
        bias=bias,
        activation=case.activation,
        **SHAPES.get(case.variation, {}),
    )
    followers = [
        (
            # Each output channel of a grouped convolution reads half of the input channels.
            sketch.convolve(
                result, f"after_{index}", "Conv2D", weights=sketch.weights(3, 3, channels // 2, 6), bias=case.bias
            )
            if op == "grouped"
            else sketch.convolve(result, f"after_{index}", op, bias=case.bias)
        )
        for index, op in enumerate(FOLLOWERS.get(case.variation, ()))
    ]
    if followers:
        result = sketch.concatenate(followers)
    sketch.named(result, "out")
    x = sketch.random.normal(0, 1, (2, 11, 13, 8)).astype(np.float32)
    return sketch.view(), x if case.signed_input else np.abs(x)


def relative(difference: NDArray[np.float32], exact: NDArray[np.float32]) -> float:
    return float(np.abs(difference).max() / np.abs(exact).max())


def test_table_holds_every_pattern() -> None:
    assert 90 <= len(CASES) <= 130
    for name, values in {
        "activation": ACTIVATIONS,
        "bias": (False, True),
        "signed_input": (False, True),
        "granularity": GRANULARITIES,
    }.items():
        for op, group in product(OPS, (SHAPES, WEIGHTS, FOLLOWERS)):
            chosen = [case for case in CASES if case.op == op and case.variation in group]
            seen = {getattr(case, name) for case in chosen}
            assert seen == set(values) or (name == "bias" and group is WEIGHTS), (op, name)
