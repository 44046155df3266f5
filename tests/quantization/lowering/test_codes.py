"""Who hands 8-bit codes on, who makes 32-bit sums, and on which scales."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tuner.errors import QuantizationError
from tuner.precision import FP32, INT8, Dtype, Granularity, OpPrecision, PrecisionPlan
from tuner.quantization.lowering.codes import QuantizedConvolution, quantize_convolutions

DEPTHWISE = "DepthwiseConv2dNative"
PER_TENSOR = OpPrecision(Dtype.INT8, Granularity.PER_TENSOR)
X = np.random.default_rng(1).normal(0, 1, (2, 9, 7, 8)).astype(np.float32)

Decide = Callable[..., dict[str, QuantizedConvolution]]


@pytest.fixture
def decide(float_graph: Any, observe: Callable[..., Any]) -> Decide:
    """Codes of `first` and the convolutions `readers` behind it: (ops, plan changes, outputs, float readers)."""

    def decided(
        readers: tuple[str, ...] = (),
        changes: dict[str, OpPrecision] | None = None,
        outputs: tuple[str, ...] = (),
        float_readers: int = 0,
        op: str = "Conv2D",
    ) -> dict[str, QuantizedConvolution]:
        sketch = float_graph(seed=5)
        result = sketch.convolve(sketch.x, "first", op, bias=True, activation="Relu")
        ends = [sketch.convolve(result, f"reader_{index}", kind).op.name for index, kind in enumerate(readers)]
        ends += [sketch.named(result, f"float_{index}").op.name for index in range(float_readers)]
        graph = sketch.view(*(ends or ["first/activation"]), *outputs)
        names = ["first", *ends[: len(readers)]]
        plan = PrecisionPlan({**dict.fromkeys(names, INT8), **(changes or {})})
        convolutions = quantize_convolutions(graph, plan, observe(graph, X, ["x", "first/activation"]))
        return {quantized.convolution.name: quantized for quantized in convolutions}

    return decided


@pytest.mark.parametrize(
    ("readers", "settings", "output_scales"),
    [
        pytest.param((), {}, None, id="graph output"),
        pytest.param(("Conv2D",), {}, 1, id="convolution"),
        pytest.param((DEPTHWISE,), {}, 1, id="depthwise"),
        pytest.param(("Conv2D", "Conv2D"), {}, 1, id="two convolutions"),
        pytest.param((DEPTHWISE, DEPTHWISE), {}, 1, id="two depthwise"),
        pytest.param(("Conv2D", DEPTHWISE), {}, None, id="readers that need different scales"),
        pytest.param(("Conv2D",), {"float_readers": 1}, None, id="a float reader as well"),
        pytest.param((), {"float_readers": 1}, None, id="a float reader"),
        pytest.param(("Conv2D",), {"outputs": ("first/activation",)}, None, id="also a graph output"),
        pytest.param(("Conv2D",), {"changes": {"reader_0": FP32}}, None, id="a float convolution"),
        pytest.param(("Conv2D", "Conv2D"), {"changes": {"reader_1": FP32}}, None, id="one of two in float"),
        pytest.param(("Conv2D",), {"changes": {"first": PER_TENSOR}}, 0, id="producer with one weight scale"),
        pytest.param(("Conv2D",), {"changes": {"reader_0": PER_TENSOR}}, 0, id="reader with one weight scale"),
        pytest.param((DEPTHWISE,), {"changes": {"first": PER_TENSOR}}, None, id="such a producer before depthwise"),
        pytest.param((DEPTHWISE,), {"changes": {"reader_0": PER_TENSOR}}, 1, id="such a depthwise reader"),
    ],
)
def test_codes_or_sums(
    readers: tuple[str, ...], settings: dict[str, Any], output_scales: int | None, decide: Decide
) -> None:
    """output_scales: None for sums, 0 for one scale, 1 for one per channel."""
    found = decide(readers, **settings)
    output = found["first"].output
    if output_scales is None:
        assert output is None
    else:
        assert output is not None
        assert output.peaks.ndim == output_scales
        for name in found.keys() - {"first"}:
            assert found[name].scale is output or np.array_equal(found[name].scale.peaks, output.peaks)
            assert found[name].scale.is_unsigned == output.is_unsigned


def test_a_convolution_that_only_waits_keeps_the_float_result(float_graph: Any, observe: Callable[..., Any]) -> None:
    sketch = float_graph()
    result = sketch.convolve(sketch.x, "first")
    sketch.named(sketch.convolve(result, "reader"), "out")
    with sketch.graph.control_dependencies([result.op]):
        sketch.named(sketch.convolve(sketch.x, "waiting"), "waited")
    graph = sketch.view("out", "waited")
    plan = PrecisionPlan(dict.fromkeys(("first", "reader", "waiting"), INT8))
    found = quantize_convolutions(graph, plan, observe(graph, X, ["x", "first"]))
    assert [quantized.output for quantized in found] == [None, None, None]


def test_a_grouped_reader_takes_one_scale(float_graph: Any, observe: Callable[..., Any]) -> None:
    sketch = float_graph()
    result = sketch.convolve(sketch.x, "first")
    sketch.named(sketch.convolve(result, "grouped", weights=sketch.weights(3, 3, 6, 4)), "out")
    graph = sketch.view()
    plan = PrecisionPlan(dict.fromkeys(("first", "grouped"), INT8))
    found = quantize_convolutions(graph, plan, observe(graph, X, ["x", "first"]))
    assert [quantized.scale.peaks.ndim for quantized in found] == [0, 0]
    assert found[0].output is not None


def test_inputs_from_float_ops(decide: Decide) -> None:
    assert decide(op="Conv2D")["first"].scale.peaks.ndim == 0
    assert decide(op=DEPTHWISE)["first"].scale.peaks.shape == (8,)


def test_an_op_in_float_is_not_quantised(decide: Decide) -> None:
    found = decide(("Conv2D",), {"first": FP32})
    assert list(found) == ["reader_0"]
    assert found["reader_0"].scale.peaks.ndim == 0


def test_sums_have_the_unit_of_the_float_graph(decide: Decide) -> None:
    """Codes times their step, times weight codes times theirs: one of each is worth `units`."""
    first = decide()["first"]
    weight_steps = np.abs(first.convolution.weights).max((0, 1, 2)) / 127
    np.testing.assert_allclose(first.units, np.float64(first.scale.step) * weight_steps, rtol=1e-5)
    np.testing.assert_array_equal(first.bias, first.convolution.bias)


def test_a_balanced_result_is_made_as_shares_of_its_peaks(decide: Decide) -> None:
    first = decide(("Conv2D",))["first"]
    assert first.output is not None
    np.testing.assert_allclose(first.bias, first.convolution.bias / first.output.peaks, rtol=1e-6)
    weights = first.weights * first.weight_peaks / 127
    wanted = first.convolution.weights / first.output.peaks
    assert np.all(np.abs(weights - wanted) <= first.weight_peaks / 127 / 2 * (1 + 1e-5))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nowhere": INT8}, "^the plan decides about 'nowhere', which is no convolution of this graph$"),
        ({"first": OpPrecision(Dtype.BF16)}, "^first: the kernels take int8 and fp32, the plan wants bf16$"),
    ],
)
def test_plans_that_cannot_be_lowered(changes: dict[str, OpPrecision], message: str, decide: Decide) -> None:
    with pytest.raises(QuantizationError, match=message):
        decide(changes=changes)


def test_range_that_was_not_collected(float_graph: Any) -> None:
    sketch = float_graph()
    sketch.named(sketch.convolve(sketch.x, "conv"), "out")
    with pytest.raises(QuantizationError, match=r"^conv: no range was collected for its input x$"):
        quantize_convolutions(sketch.view(), PrecisionPlan({"conv": INT8}), {})
