"""Decide the 8-bit codes of every convolution of a plan: what kernels and simulation are both written from."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tuner.errors import QuantizationError
from tuner.model.graph_view import GraphView
from tuner.precision import Dtype, Granularity, OpPrecision, PrecisionPlan
from tuner.quantization.lowering.convolutions import Convolution, find_convolutions
from tuner.quantization.lowering.scales import (
    SIGNED_LEVELS,
    ActivationScale,
    balanced_scales,
    channel_scales,
    tensor_scale,
    weight_codes,
    weight_peaks,
)
from tuner.quantization.ranges import Ranges


@dataclass(frozen=True)
class QuantizedConvolution:
    """A convolution with everything that decides its codes.

    scale: of the input; one for each channel where the convolution is depthwise or its producer balances channels.
    output: the scale of an 8-bit result, None where the result stays in 32-bit sums for float readers.
    weights: codes, shaped as the float weights. weight_peaks: [channels out] float32.
    bias: [channels out] float32, or None.
    Weights and bias are those of the kernel, which sees an input with scales per channel as -1..1 and makes an output
    with scales per channel as -1..1.
    """

    convolution: Convolution
    scale: ActivationScale
    output: ActivationScale | None
    weights: NDArray[np.int8]
    weight_peaks: NDArray[np.float32]
    bias: NDArray[np.float32] | None

    @property
    def sums_unit(self) -> np.float32:
        """The value of 1 in the 32-bit sums of a kernel that is told that every weight peak is 1."""
        return np.float32(_input_step(self.scale)) * (np.float32(1) / np.float32(SIGNED_LEVELS))

    @property
    def units(self) -> NDArray[np.float32]:
        """The value of 1 in the 32-bit sums, as the kernel sees it: [], or [channels out] where they differ."""
        # The order in which the kernel multiplies: another one differs in the last bit.
        units = np.float32(_input_step(self.scale)) * (self.weight_peaks / np.float32(SIGNED_LEVELS))
        return np.asarray(units[0] if np.all(units == units[0]) else units, np.float32)


def quantize_convolutions(graph: GraphView, plan: PrecisionPlan, ranges: Ranges) -> list[QuantizedConvolution]:
    """Decide the codes of every convolution that the plan wants in int8, in the graph's order.

    Raises QuantizationError for an op that the graph does not have or that cannot be int8, for a dtype that the
    kernels do not have, and for an input without a range.
    """
    found, refused = find_convolutions(graph)
    for name, precision in plan.items():
        if name not in found and name not in refused:
            raise QuantizationError(f"the plan decides about {name!r}, which is no convolution of this graph")
        if precision.dtype is Dtype.BF16:
            raise QuantizationError(f"{name}: the kernels take int8 and fp32, the plan wants {precision.dtype}")
        if precision.dtype is Dtype.INT8 and name in refused:
            raise QuantizationError(f"{name} cannot be int8: {refused[name]}")
    chosen = {name: found[name] for name in found if name in plan and plan[name].dtype is Dtype.INT8}
    readers = {convolution.output: _readers(graph, convolution, chosen) for convolution in chosen.values()}
    producers = {convolution.output: name for name, convolution in chosen.items()}
    scales: dict[str, ActivationScale] = {}
    for name, convolution in chosen.items():
        observed = ranges.get(convolution.input)
        if observed is None:
            raise QuantizationError(f"{name}: no range was collected for its input {convolution.input}")
        fellow_readers = readers.get(convolution.input, [])
        if convolution.is_depthwise:
            scales[name] = channel_scales(observed)
        elif (
            fellow_readers
            and plan[producers[convolution.input]].weight_granularity is Granularity.PER_CHANNEL
            and all(_can_balance(chosen[op], plan[op], observed.channels) for op in fellow_readers)
        ):
            scales[name] = balanced_scales(observed)
        else:
            scales[name] = tensor_scale(observed)
    quantized = []
    for name, convolution in chosen.items():
        output = scales[readers[convolution.output][0]] if readers[convolution.output] else None
        if output is not None and output.peaks.ndim and plan[name].weight_granularity is not Granularity.PER_CHANNEL:
            # Scales per channel are folded into the weights that make the result: exact only with a scale for each.
            output = None
        quantized.append(_quantize(convolution, plan[name], scales[name], output))
    return quantized


def _can_balance(reader: Convolution, precision: OpPrecision, channels: int) -> bool:
    """Whether scales of so many input channels fold into the weights: not into those of a grouped convolution."""
    return precision.weight_granularity is Granularity.PER_CHANNEL and reader.weights.shape[2] == channels


def _readers(graph: GraphView, convolution: Convolution, chosen: Mapping[str, Convolution]) -> list[str]:
    """The int8 convolutions that can read a result as codes, or none where anything needs it as float.

    Readers have to agree on a scale, so all are Conv2D or all are depthwise.
    """
    consumers = graph.consumers(convolution.output)
    readers = [node.name for node in consumers if node.name in chosen]
    # A node that only waits for the result does not read codes: it keeps the float result in the graph.
    readers = [name for name in readers if chosen[name].input == convolution.output]
    if convolution.output in graph.outputs or len(readers) < len(consumers):
        return []
    return readers if len({chosen[name].node.op for name in readers}) == 1 else []


def _quantize(
    convolution: Convolution, precision: OpPrecision, scale: ActivationScale, output: ActivationScale | None
) -> QuantizedConvolution:
    depthwise = convolution.is_depthwise
    weights = (convolution.weights * _kernel_factor(convolution, scale, output)).astype(np.float32)
    bias = convolution.bias
    if bias is not None and output is not None:
        bias = (bias / (output.peaks if output.peaks.ndim else 1)).astype(np.float32)
    peaks = weight_peaks(weights, bias, _input_step(scale), precision.weight_granularity, is_depthwise=depthwise)
    codes = weight_codes(weights, peaks, is_depthwise=depthwise)
    return QuantizedConvolution(convolution, scale, output, codes, peaks, bias)


def _input_step(scale: ActivationScale) -> float:
    """The value of one input code as the kernel sees it."""
    return float(1 / scale.levels if scale.peaks.ndim else scale.step)


def _kernel_factor(
    convolution: Convolution, scale: ActivationScale, output: ActivationScale | None
) -> NDArray[np.float32]:
    """What float weights are multiplied by for the kernel: input peaks over output peaks, where those are per channel.

    Broadcasts against weights [kh, kw, in, out], or [kh, kw, channels, 1] of a depthwise convolution.
    """
    factor = np.ones((1, 1, 1, 1), np.float32)
    if scale.peaks.ndim:
        factor = factor * scale.peaks.reshape(1, 1, -1, 1)
    if output is not None and output.peaks.ndim:
        factor = factor / output.peaks.reshape((1, 1, -1, 1) if convolution.is_depthwise else (1, 1, 1, -1))
    return factor.astype(np.float32)
