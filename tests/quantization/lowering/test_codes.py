"""Who hands 8-bit codes on, who makes 32-bit sums, and with which weights."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tuner.errors import QuantizationError
from tuner.precision import FP32, INT8, Dtype, Granularity, OpPrecision, Output, PrecisionPlan
from tuner.quantization.lowering.codes import Codes, decide_codes

DEPTHWISE = "DepthwiseConv2dNative"
PER_TENSOR = OpPrecision(Dtype.INT8, Granularity.PER_TENSOR)
EXACT = OpPrecision(output=Output.EXACT)
X = np.random.default_rng(1).normal(0, 1, (2, 9, 7, 8)).astype(np.float32)

Decide = Callable[..., Codes]


@pytest.fixture
def decide(float_graph: Any, observe: Callable[..., Any]) -> Decide:
    """Codes of `first` and the convolutions `readers` behind it: (ops, plan changes, outputs, float readers)."""

    def decided(
        readers: tuple[str, ...] = (),
        changes: dict[str, OpPrecision] | None = None,
        outputs: tuple[str, ...] = (),
        float_readers: int = 0,
        op: str = "Conv2D",
    ) -> Codes:
        sketch = float_graph(seed=5)
        result = sketch.convolve(sketch.x, "first", op, bias=True, activation="Relu")
        ends = [sketch.convolve(result, f"reader_{index}", kind).op.name for index, kind in enumerate(readers)]
        with sketch.graph.as_default():
            ends += [(-result).op.name for _ in range(float_readers)]
        graph = sketch.view(*(ends or ["first/activation"]), *outputs)
        plan = PrecisionPlan({**dict.fromkeys(["first", *ends[: len(readers)]], INT8), **(changes or {})})
        return decide_codes(graph, plan, observe(graph, X, ["x", "first/activation", *ends[: len(readers)]]))

    return decided


@pytest.mark.parametrize(
    ("readers", "settings", "makes_codes"),
    [
        pytest.param((), {}, False, id="graph output"),
        pytest.param(("Conv2D",), {}, True, id="convolution"),
        pytest.param((DEPTHWISE,), {}, True, id="depthwise"),
        pytest.param(("Conv2D", DEPTHWISE), {}, True, id="both"),
        pytest.param(("Conv2D",), {"float_readers": 1}, True, id="a float reader as well"),
        pytest.param((), {"float_readers": 1}, False, id="a float reader"),
        pytest.param(("Conv2D",), {"outputs": ("first/activation",)}, True, id="also a graph output"),
        pytest.param(("Conv2D",), {"changes": {"reader_0": FP32}}, False, id="a float convolution"),
        pytest.param(("Conv2D", "Conv2D"), {"changes": {"reader_1": FP32}}, True, id="one of two in float"),
        pytest.param(("Conv2D",), {"changes": {"first": EXACT}}, False, id="wanted exact"),
        pytest.param(("Conv2D",), {"changes": {"reader_0": EXACT}}, True, id="a reader wanted exact"),
    ],
)
def test_codes_or_sums(readers: tuple[str, ...], settings: dict[str, Any], makes_codes: bool, decide: Decide) -> None:
    codes = decide(readers, **settings)
    first = codes.kernels["first"]
    assert (first.output is not None) == makes_codes
    for name in codes.kernels.keys() - {"first"}:
        reader = codes.kernels[name]
        assert reader.output is None
        assert reader.scale is codes.scales["first/activation"]
        assert codes.regions.sources["first/activation"].kernel == ("first" if makes_codes else None)


def test_an_op_in_float_is_not_quantised(decide: Decide) -> None:
    codes = decide(("Conv2D",), {"first": FP32})
    assert list(codes.kernels) == ["reader_0"]
    assert set(codes.scales) == {"first/activation"}


def test_a_plan_in_float_has_no_codes(decide: Decide) -> None:
    codes = decide(changes={"first": FP32})
    assert (dict(codes.kernels), dict(codes.scales), dict(codes.regions.sources)) == ({}, {}, {})


def test_a_convolution_that_only_waits_does_not_read(float_graph: Any, observe: Callable[..., Any]) -> None:
    sketch = float_graph()
    result = sketch.convolve(sketch.x, "first")
    with sketch.graph.as_default(), sketch.graph.control_dependencies([result.op]):
        sketch.named(sketch.convolve(sketch.x, "waiting"), "waited")
    sketch.named(result, "out")
    graph = sketch.view("out", "waited")
    codes = decide_codes(
        graph, PrecisionPlan(dict.fromkeys(("first", "waiting"), INT8)), observe(graph, X, ["x", "first", "waiting"])
    )
    assert [quantized.output for quantized in codes.kernels.values()] == [None, None]


@pytest.mark.parametrize("op", ["Conv2D", DEPTHWISE])
def test_kernels_read_shares_of_the_peaks(op: str, decide: Decide) -> None:
    """Weight codes times their step are the float weights times the peak of the channel that they read."""
    first = decide(op=op).kernels["first"]
    depthwise = op == DEPTHWISE
    peaks = first.scale.peaks.reshape(1, 1, -1, 1)
    weight_peaks = first.weight_peaks.reshape((1, 1, -1, 1) if depthwise else (1, 1, 1, -1))
    error = first.weights * weight_peaks / 127 - first.convolution.weights * peaks
    assert np.all(np.abs(error) <= weight_peaks / 127 / 2 * (1 + 1e-5))
    np.testing.assert_array_equal(first.bias, first.convolution.bias)
    np.testing.assert_allclose(first.units, first.weight_peaks / 127 / first.scale.levels, rtol=1e-6)


@pytest.mark.parametrize("op", ["Conv2D", DEPTHWISE])
def test_kernels_make_shares_of_the_peaks(op: str, decide: Decide) -> None:
    codes = decide(("Conv2D",), op=op)
    first, made = codes.kernels["first"], codes.scales["first/activation"]
    assert first.output is made
    assert made.is_unsigned
    np.testing.assert_allclose(first.bias, first.convolution.bias / made.peaks, rtol=1e-6)
    shape = (1, 1, -1, 1) if op == DEPTHWISE else (1, 1, 1, -1)
    peaks = first.scale.peaks.reshape(1, 1, -1, 1)
    weight_peaks = first.weight_peaks.reshape(shape)
    wanted = first.convolution.weights * peaks / made.peaks.reshape(shape)
    assert np.all(np.abs(first.weights * weight_peaks / 127 - wanted) <= weight_peaks / 127 / 2 * (1 + 1e-5))


def test_groups_read_the_peaks_of_their_own_channels(float_graph: Any, observe: Callable[..., Any]) -> None:
    sketch = float_graph()
    result = sketch.convolve(sketch.x, "first")
    sketch.named(sketch.convolve(result, "grouped", weights=sketch.weights(3, 3, 6, 4)), "out")
    graph = sketch.view()
    plan = PrecisionPlan(dict.fromkeys(("first", "grouped"), INT8))
    grouped = decide_codes(graph, plan, observe(graph, X, ["x", "first", "grouped"])).kernels["grouped"]
    peaks = grouped.scale.peaks
    assert len(set(peaks.tolist())) > 1
    wanted = grouped.convolution.weights.copy()
    wanted[..., :2] *= peaks[:6].reshape(6, 1)
    wanted[..., 2:] *= peaks[6:].reshape(6, 1)
    assert np.all(np.abs(grouped.weights * grouped.weight_peaks / 127 - wanted) <= grouped.weight_peaks / 253)
    assert not grouped.is_matmul


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nowhere": INT8}, "^the plan decides about 'nowhere', which is no convolution of this graph$"),
        ({"nowhere": FP32}, "^the plan decides about 'nowhere', which is no convolution of this graph$"),
    ],
)
def test_plans_that_cannot_be_lowered(changes: dict[str, OpPrecision], message: str, decide: Decide) -> None:
    with pytest.raises(QuantizationError, match=message):
        decide(changes=changes)


def test_range_that_was_not_collected(float_graph: Any) -> None:
    sketch = float_graph()
    sketch.named(sketch.convolve(sketch.x, "conv"), "out")
    with pytest.raises(
        QuantizationError, match=r"^no range was collected for conv, which int8 convolutions read or make$"
    ):
        decide_codes(sketch.view(), PrecisionPlan({"conv": INT8}), {})
