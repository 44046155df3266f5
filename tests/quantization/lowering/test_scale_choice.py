"""Which channels share a scale, and with whom they share the type of their codes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tuner.precision import FP32, INT8, Dtype, Granularity, OpPrecision, PrecisionPlan, RangeAlgorithm
from tuner.quantization.lowering.codes import decide_codes
from tuner.quantization.lowering.convolutions import find_convolutions
from tuner.quantization.lowering.regions import possible_sources
from tuner.quantization.lowering.scales import ActivationScale, balanced_peaks, channel_peaks, tensor_peak
from tuner.quantization.ranges import Ranges

DEPTHWISE = "DepthwiseConv2dNative"
PER_TENSOR = OpPrecision(Dtype.INT8, Granularity.PER_TENSOR)
X = np.random.default_rng(1).normal(0, np.arange(1, 9), (2, 9, 7, 8)).astype(np.float32)

Choose = Callable[..., tuple[dict[str, ActivationScale], Ranges]]


@pytest.fixture
def choose(observe: Callable[..., Any]) -> Choose:
    """The scales of a graph with every convolution in int8, and its ranges: (sketch, plan changes, outputs)."""

    def chosen(
        sketch: Any, changes: dict[str, OpPrecision] | None = None, outputs: tuple[str, ...] = ("out",)
    ) -> tuple[dict[str, ActivationScale], Ranges]:
        graph = sketch.view(*outputs)
        found, _ = find_convolutions(graph)
        ranges = observe(graph, X, possible_sources(graph, found))
        plan = PrecisionPlan({**dict.fromkeys(found, INT8), **(changes or {})})
        return dict(decide_codes(graph, plan, ranges).scales), ranges

    return chosen


@pytest.mark.parametrize(
    ("readers", "changes", "peaks"),
    [
        (("Conv2D",), {}, balanced_peaks),
        (("Conv2D", "Conv2D"), {}, balanced_peaks),
        ((DEPTHWISE,), {}, channel_peaks),
        ((DEPTHWISE, DEPTHWISE), {}, channel_peaks),
        (("Conv2D", DEPTHWISE), {}, balanced_peaks),
        # Weights with one scale would lose more than the activations gain.
        (("Conv2D",), {"first": PER_TENSOR}, tensor_peak),
        (("Conv2D",), {"reader_0": PER_TENSOR}, tensor_peak),
        ((DEPTHWISE,), {"first": PER_TENSOR}, tensor_peak),
        ((DEPTHWISE,), {"reader_0": PER_TENSOR}, tensor_peak),
        (("Conv2D", DEPTHWISE), {"reader_1": FP32}, balanced_peaks),
        ((DEPTHWISE, "Conv2D"), {"reader_1": FP32}, channel_peaks),
    ],
)
def test_codes_between_kernels(
    readers: tuple[str, ...],
    changes: dict[str, OpPrecision],
    peaks: Callable[..., Any],
    float_graph: Any,
    choose: Choose,
) -> None:
    sketch = float_graph()
    result = sketch.convolve(sketch.x, "first", activation="Relu")
    ends = tuple(sketch.convolve(result, f"reader_{index}", op).op.name for index, op in enumerate(readers))
    scales, ranges = choose(sketch, changes, ends)
    scale = scales["first/activation"]
    np.testing.assert_array_equal(scale.peaks, np.broadcast_to(peaks(ranges["first/activation"]), 12))
    assert scale.is_unsigned


@pytest.mark.parametrize(
    ("readers", "changes", "peaks"),
    [
        (("Conv2D",), {}, tensor_peak),
        ((DEPTHWISE,), {}, channel_peaks),
        ((DEPTHWISE, DEPTHWISE), {}, channel_peaks),
        ((DEPTHWISE, "Conv2D"), {}, balanced_peaks),
        ((DEPTHWISE, "Conv2D"), {"reader_1": PER_TENSOR}, tensor_peak),
        ((DEPTHWISE,), {"reader_0": PER_TENSOR}, tensor_peak),
    ],
)
def test_codes_of_float_ops(
    readers: tuple[str, ...],
    changes: dict[str, OpPrecision],
    peaks: Callable[..., Any],
    float_graph: Any,
    choose: Choose,
) -> None:
    sketch = float_graph()
    ends = tuple(sketch.convolve(sketch.x, f"reader_{index}", op).op.name for index, op in enumerate(readers))
    scales, ranges = choose(sketch, changes, ends)
    np.testing.assert_array_equal(scales["x"].peaks, np.broadcast_to(peaks(ranges["x"]), 8))
    assert not scales["x"].is_unsigned


@pytest.mark.parametrize("right_activation", [None, "Relu"])
def test_channels_keep_their_scales_when_tensors_are_joined(
    right_activation: str | None, float_graph: Any, choose: Choose
) -> None:
    """Only the type becomes one: signed where any of what is joined is."""
    sketch = float_graph()
    left = sketch.convolve(sketch.x, "left", activation="Relu")
    right = sketch.convolve(sketch.x, "right", activation=right_activation)
    joined = sketch.concatenate([left, right])
    sketch.named(sketch.convolve(joined, "reader"), "out")
    scales, _ = choose(sketch)
    parts = [scales["left/activation"], scales[right.op.name]]
    whole = scales[joined.op.name]
    np.testing.assert_array_equal(whole.peaks, np.concatenate([part.peaks for part in parts]))
    assert {scale.is_unsigned for scale in (whole, *parts)} == {right_activation == "Relu"}


def test_parts_of_a_split_follow_their_readers(float_graph: Any, choose: Choose) -> None:
    sketch = float_graph()
    result = sketch.convolve(sketch.x, "first", activation="Relu")
    with sketch.graph.as_default():
        left, right = tf.split(result, [4, 8], 3, name="split")
    ends = (sketch.convolve(left, "mixed").op.name, sketch.convolve(right, "apart", DEPTHWISE).op.name)
    scales, ranges = choose(sketch, outputs=ends)
    observed = ranges["first/activation"]
    np.testing.assert_array_equal(scales["split"].peaks, balanced_peaks(observed)[:4])
    np.testing.assert_array_equal(scales["split:1"].peaks, channel_peaks(observed)[4:])
    whole = [*scales["split"].peaks, *scales["split:1"].peaks]
    np.testing.assert_array_equal(scales["first/activation"].peaks, whole)


def test_the_reader_chooses_the_range(float_graph: Any, choose: Choose) -> None:
    sketch = float_graph()
    sketch.named(sketch.convolve(sketch.x, "reader"), "out")
    mean = OpPrecision(activation_algorithm=RangeAlgorithm.MEAN)
    scales, ranges = choose(sketch, {"reader": mean})
    observed = ranges["x"]
    wanted = max(-observed.lows.min(1).mean(), observed.highs.max(1).mean())
    np.testing.assert_allclose(scales["x"].peaks, wanted, rtol=1e-6)
    assert wanted < tensor_peak(observed)
