"""Decide the 8-bit codes of a plan: what kernels and simulation are both written from.

A tensor of codes has one type and a scale for each channel, which the channel keeps wherever it is moved to. Kernels
never see those scales: the weights that read a channel are multiplied by its peak and the weights that make it are
divided by it, so that every kernel reads and makes numbers of -1..1.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tuner.errors import QuantizationError
from tuner.model.graph_view import GraphView
from tuner.precision import Dtype, Granularity, OpPrecision, Output, PrecisionPlan, RangeAlgorithm
from tuner.quantization.lowering.convolutions import Convolution, find_convolutions
from tuner.quantization.lowering.regions import Regions, Source, find_regions, possible_sources
from tuner.quantization.lowering.scales import (
    SIGNED_LEVELS,
    ActivationScale,
    balanced_peaks,
    channel_peaks,
    tensor_peak,
    weight_codes,
    weight_peaks,
)
from tuner.quantization.range_estimators import estimate
from tuner.quantization.ranges import Ranges


@dataclass(frozen=True)
class QuantizedConvolution:
    """A convolution with everything that decides its codes.

    scale: of the input. output: of the result where that leaves as codes, None where it leaves as 32-bit sums.
    weights: codes, shaped as the float weights. weight_peaks: [channels out] float32.
    bias: [channels out] float32, or None.
    Weights and bias are those of the kernel, which sees an input of -1..1 and makes an output of -1..1 where that
    leaves as codes, in the tensor's own unit otherwise.
    """

    convolution: Convolution
    scale: ActivationScale
    output: ActivationScale | None
    weights: NDArray[np.int8]
    weight_peaks: NDArray[np.float32]
    bias: NDArray[np.float32] | None

    @property
    def is_matmul(self) -> bool:
        """Whether the kernel is that of a matrix product: for 1x1 convolutions without groups."""
        return self.convolution.is_pointwise and len(self.scale.peaks) == self.weights.shape[2]

    @property
    def sums_unit(self) -> np.float32:
        """The value of 1 in the 32-bit sums of a kernel that is told that every weight peak is 1."""
        return np.float32(1 / self.scale.levels) * (np.float32(1) / np.float32(SIGNED_LEVELS))

    @property
    def units(self) -> NDArray[np.float32]:
        """The value of 1 in the 32-bit sums, as the kernel sees it: [], or [channels out] where they differ."""
        # The order in which the kernel multiplies: another one differs in the last bit.
        units = np.float32(1 / self.scale.levels) * (self.weight_peaks / np.float32(SIGNED_LEVELS))
        return np.asarray(units[0] if np.all(units == units[0]) else units, np.float32)


@dataclass(frozen=True)
class Codes:
    """All codes of a plan. scales: of every tensor in `regions`. kernels: by op name, in the graph's order."""

    regions: Regions
    scales: Mapping[str, ActivationScale]
    kernels: Mapping[str, QuantizedConvolution]


def decide_codes(graph: GraphView, plan: PrecisionPlan, ranges: Ranges) -> Codes:
    """Decide the codes of every convolution that the plan wants in int8, and of all tensors between them.

    Raises QuantizationError for an op that the graph does not have or that cannot be int8, and for a tensor without a
    range.
    """
    chosen = _chosen(graph, plan)
    missing = [tensor for tensor in possible_sources(graph, chosen) if tensor not in ranges]
    if missing:
        raise QuantizationError(f"no range was collected for {missing[0]}, which int8 convolutions read or make")
    makes_codes = {name: convolution for name, convolution in chosen.items() if plan[name].output is Output.INT8}
    channels = {tensor: observed.channels for tensor, observed in ranges.items()}
    regions = find_regions(graph, [convolution.input for convolution in chosen.values()], makes_codes, channels)
    peaks, is_unsigned = _peaks(regions, chosen, plan, ranges)
    scales = {
        tensor: ActivationScale(peaks[channels], bool(is_unsigned[channels].all()))
        for tensor, channels in regions.channels.items()
    }
    kernels = {
        name: _quantize(
            convolution,
            plan[name],
            scales[convolution.input],
            _output_scale(convolution, regions, scales),
        )
        for name, convolution in chosen.items()
    }
    return Codes(regions, scales, kernels)


def _output_scale(
    convolution: Convolution, regions: Regions, scales: Mapping[str, ActivationScale]
) -> ActivationScale | None:
    source = regions.sources.get(convolution.output)
    return None if source is None or source.kernel is None else scales[source.tensor]


def _chosen(graph: GraphView, plan: PrecisionPlan) -> dict[str, Convolution]:
    found, refused = find_convolutions(graph)
    for name, precision in plan.items():
        if name not in found and name not in refused:
            raise QuantizationError(f"the plan decides about {name!r}, which is no convolution of this graph")
        if precision.dtype is Dtype.INT8 and name in refused:
            raise QuantizationError(f"{name} cannot be int8: {refused[name]}")
    return {name: found[name] for name in found if name in plan and plan[name].dtype is Dtype.INT8}


def _peaks(
    regions: Regions, chosen: Mapping[str, Convolution], plan: PrecisionPlan, ranges: Ranges
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The value at the highest code, and whether codes are unsigned, for each channel of all sources."""
    total = len(regions.group)
    read_depthwise, read_mixed, read_per_tensor = (np.zeros(total, bool) for _ in range(3))
    algorithm = np.full(total, RangeAlgorithm.MINMAX, object)
    for name, convolution in chosen.items():
        channels = regions.channels[convolution.input]
        (read_depthwise if convolution.is_depthwise else read_mixed)[channels] = True
        read_per_tensor[channels] |= plan[name].weight_granularity is Granularity.PER_TENSOR
        algorithm[channels] = plan[name].activation_algorithm
    peaks, is_signed = np.ones(total, np.float32), np.zeros(total, bool)
    for source in regions.sources.values():
        observed = estimate(ranges[source.tensor], algorithm[source.first_channel])
        is_signed[source.span] = observed.low < 0
        own, whole = channel_peaks(observed), tensor_peak(observed)
        depthwise, per_tensor = read_depthwise[source.span], read_per_tensor[source.span]
        if _is_uniform(source, plan) or per_tensor.any():
            # A scale for each channel costs a Mul in front of QuantizeV2: only depthwise readers are worth it. And a
            # weight tensor with one scale would lose more than activations gain.
            peaks[source.span] = own if depthwise.all() and source.kernel is None else whole
        else:
            mixed = read_mixed[source.span]
            peaks[source.span] = np.where(depthwise & ~mixed, own, balanced_peaks(observed))
    signed_groups = np.unique(regions.group[is_signed])
    return peaks, ~np.isin(regions.group, signed_groups)


def _is_uniform(source: Source, plan: PrecisionPlan) -> bool:
    return source.kernel is None or plan[source.kernel].weight_granularity is Granularity.PER_TENSOR


def _quantize(
    convolution: Convolution, precision: OpPrecision, scale: ActivationScale, output: ActivationScale | None
) -> QuantizedConvolution:
    weights, bias = convolution.weights * _input_peaks(convolution, scale), convolution.bias
    if output is not None:
        weights = weights / (output.peaks.reshape(-1, 1) if convolution.is_depthwise else output.peaks)
        bias = None if bias is None else (bias / output.peaks).astype(np.float32)
    weights = weights.astype(np.float32)
    depthwise = convolution.is_depthwise
    peaks = weight_peaks(weights, bias, 1 / scale.levels, precision.weight_granularity, is_depthwise=depthwise)
    return QuantizedConvolution(
        convolution, scale, output, weight_codes(weights, peaks, is_depthwise=depthwise), peaks, bias
    )


def _input_peaks(convolution: Convolution, scale: ActivationScale) -> NDArray[np.float32]:
    """The peaks of the input channels that each weight reads, to multiply weights [kh, kw, in, out] with."""
    weights_in, weights_out = convolution.weights.shape[2:]
    groups = 1 if convolution.is_depthwise else len(scale.peaks) // weights_in
    if groups == 1:
        return scale.peaks.reshape(1, 1, -1, 1)
    of_group = np.repeat(scale.peaks.reshape(groups, weights_in), weights_out // groups, axis=0)
    return np.asarray(of_group.T.reshape(1, 1, weights_in, weights_out), np.float32)
