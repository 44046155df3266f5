"""A plan as a float graph that rounds where the int8 graph does: with one scale for each tensor, which runtimes want.

Our kernels may have a scale for each channel of an activation. Here that is folded into the weights on both sides of
the tensor, exactly: what makes it divides by the channel's peak, what reads it multiplies. FakeQuant ops stand where
values are rounded, so the graph still runs in TensorFlow.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.core.framework.node_def_pb2 import NodeDef

from tuner.model.graph_view import GraphView
from tuner.model.nodes import const_node, op_node
from tuner.precision import PrecisionPlan, Scheme
from tuner.quantization.lowering.codes import Codes, QuantizedConvolution, decide_codes
from tuner.quantization.lowering.scales import SIGNED_LEVELS, UNSIGNED_LEVELS, ActivationScale
from tuner.quantization.ranges import Ranges


@dataclass(frozen=True)
class Rounding:
    """How a tensor is rounded: value = (code - zero point) * step, codes 0..255.

    Signed codes are written so too, with the zero point 128: the same values, and OpenVINO 2026.4 makes wrong results
    of signed codes behind a Concat. In a symmetric graph all are signed.
    """

    step: np.float32
    zero_point: int

    @property
    def ends(self) -> tuple[float, float]:
        """The values of the lowest and the highest code."""
        return float(-self.zero_point * self.step), float((UNSIGNED_LEVELS - self.zero_point) * self.step)


@dataclass(frozen=True)
class RoundedWeights:
    """Weights as they stand in the graph: codes of -127..127 times their channel's step.

    codes: [channels out, in, kh, kw]. steps: [channels out] float32.
    """

    codes: NDArray[np.int8]
    steps: NDArray[np.float32]

    @property
    def values(self) -> NDArray[np.float32]:
        """[channels out, in, kh, kw]."""
        return np.asarray(self.codes * self.steps.reshape(-1, 1, 1, 1), np.float32)


@dataclass(frozen=True)
class RoundedGraph:
    """roundings: by the name of the FakeQuant op. weights: by the name of the convolution or MatMul.

    symmetric: whether every tensor is rounded to -128..127 steps, so that codes need no zero point.
    """

    graph: GraphView
    roundings: Mapping[str, Rounding]
    weights: Mapping[str, RoundedWeights]
    symmetric: bool


@dataclass(frozen=True)
class _Form:
    """The form that codes of a tensor have in the graph: numbers that are the tensor's values divided by `unit`.

    unit: [channels], the channels' peaks, or ones where all tensors that end in one have the same scale.
    """

    scale: ActivationScale
    unit: NDArray[np.float32]

    @property
    def top(self) -> np.float32:
        """The number at `levels` steps, of all channels alike."""
        return np.float32(self.scale.peaks[0] / self.unit[0])

    @property
    def rounding(self) -> Rounding:
        """How the numbers are rounded."""
        zero_point = self.scale.zero_point if self.scale.is_unsigned else SIGNED_LEVELS + 1
        return Rounding(np.float32(self.top / self.scale.levels), zero_point)


def round_as_planned(
    graph: GraphView, plan: PrecisionPlan, ranges: Ranges, *, matmul_kernel: bool = True, symmetric: bool = False
) -> RoundedGraph:
    """Write the graph that computes, in float ops, what the int8 graph of a plan computes.

    Every tensor that float ops read keeps its name. symmetric: round activations to signed codes around zero instead,
    their step the largest magnitude / 127. matmul_kernel, and errors: those of `decide_codes`.
    """
    if symmetric:
        plan = PrecisionPlan({op: replace(one, activation_scheme=Scheme.SYM) for op, one in plan.items()})
    codes = decide_codes(graph, plan, ranges, matmul_kernel=matmul_kernel)
    if symmetric:
        codes = replace(codes, scales={name: replace(one, is_unsigned=False) for name, one in codes.scales.items()})
    forms = _forms(codes)
    tensors: dict[str, str] = {}
    roundings: dict[str, Rounding] = {}
    removed: set[str] = set()
    added: list[NodeDef] = []
    for tensor, source in codes.regions.sources.items():
        tensors[tensor] = name = f"{tensor.replace(':', '/output_')}/rounded"
        roundings[name] = forms[tensor].rounding
        if source.kernel is None:
            added += _rounding_nodes(tensor, forms[tensor], name)
    for carrier in codes.regions.carriers.values():
        added.append(carrier.copy_on(tensors, "/rounded"))
        if not carrier.sizes:
            output = carrier.outputs[0]
            removed.add(output)
            added.append(_value_node(tensors[output], forms[output], output))
            added.append(const_node(f"{output}/unit", _smallest(forms[output].unit)))
    for quantized in codes.kernels.values():
        removed.update(quantized.convolution.members)
        added += _kernel_nodes(quantized, forms, tensors)
    weights = {name: _rounded_weights(quantized, forms) for name, quantized in codes.kernels.items()}
    return RoundedGraph(graph.replace(removed, added), roundings, weights, symmetric)


def _forms(codes: Codes) -> dict[str, _Form]:
    """Numbers keep the tensor's unit where one scale serves all tensors of a group, and are of -1..1 elsewhere."""
    group = codes.regions.group
    peaks = np.ones(len(group), np.float32)
    for source in codes.regions.sources.values():
        peaks[source.span] = codes.scales[source.tensor].peaks
    has_one_scale = {number: np.ptp(peaks[group == number]) == 0 for number in np.unique(group)}
    return {
        tensor: _Form(
            codes.scales[tensor],
            np.where([has_one_scale[number] for number in group[channels]], np.float32(1), peaks[channels]),
        )
        for tensor, channels in codes.regions.channels.items()
    }


def _rounded_weights(quantized: QuantizedConvolution, forms: Mapping[str, _Form]) -> RoundedWeights:
    read = forms[quantized.convolution.input]
    made = np.float32(1) if quantized.output is None else forms[quantized.convolution.output].top
    # The kernel's own weights are for an input and an output of -1..1.
    steps = quantized.weight_peaks / np.float32(SIGNED_LEVELS) / read.top * made
    # Of a depthwise convolution, [kh, kw, channels, 1].
    axes = (2, 3, 0, 1) if quantized.convolution.is_depthwise else (3, 2, 0, 1)
    return RoundedWeights(np.ascontiguousarray(quantized.weights.transpose(axes)), steps.astype(np.float32))


def _kernel_nodes(
    quantized: QuantizedConvolution, forms: Mapping[str, _Form], tensors: Mapping[str, str]
) -> list[NodeDef]:
    convolution = quantized.convolution
    name, form = convolution.name, None if quantized.output is None else forms[convolution.output]
    result = convolution.output if form is None else f"{convolution.output}/unrounded"
    unit = np.float32(1) if form is None else _smallest(form.unit)
    nodes = [*_multiplication_nodes(quantized, forms, tensors[convolution.input])]
    last = nodes[-1].name
    if convolution.bias is not None:
        nodes.append(const_node(f"{name}/scaled_bias", (convolution.bias / unit).astype(np.float32)))
        nodes.append(op_node("BiasAdd", f"{name}/biased", [last, f"{name}/scaled_bias"], T=tf.float32))
        last = f"{name}/biased"
    if convolution.summand is not None and form is not None:
        ratio = forms[convolution.summand].unit[0] / form.unit[0]
        summand = tensors[convolution.summand]
        if ratio != 1:
            nodes.append(const_node(f"{name}/summand_unit", np.float32(ratio)))
            nodes.append(op_node("Mul", f"{name}/summand", [summand, f"{name}/summand_unit"], T=tf.float32))
            summand = f"{name}/summand"
        nodes.append(op_node("AddV2", f"{name}/summed", [last, summand], T=tf.float32))
        last = f"{name}/summed"
    if convolution.activation is not None:
        activation = NodeDef()
        activation.CopyFrom(convolution.activation)
        activation.name, activation.input[0] = f"{name}/activated", last
        if form is not None and activation.op == "Relu6":
            # Codes end at 6 or before: the rounding makes the upper end.
            activation.op = "Relu"
        nodes.append(activation)
        last = activation.name
    if form is None:
        return [*nodes, op_node("Identity", result, [last], T=tf.float32)]
    rounded = tensors[convolution.output]
    return [
        *nodes,
        _fake_quant(last, form.rounding, rounded),
        const_node(f"{convolution.output}/unit", unit),
        _value_node(rounded, form, convolution.output),
    ]


def _multiplication_nodes(quantized: QuantizedConvolution, forms: Mapping[str, _Form], data: str) -> list[NodeDef]:
    convolution = quantized.convolution
    values = _rounded_weights(quantized, forms).values
    weights = values.transpose((2, 3, 0, 1) if convolution.is_depthwise else (2, 3, 1, 0))
    node = NodeDef()
    node.CopyFrom(convolution.node)
    node.input[:] = [data, f"{node.name}/scaled_weights"]
    node.name = f"{node.name}/multiplied"
    if convolution.is_matmul_node:
        node.attr["transpose_b"].b, weights = False, weights[0, 0]
    if convolution.pads:
        # What the Pad in front of it did.
        node.attr["padding"].s = b"EXPLICIT"
        node.attr["explicit_paddings"].list.i[:] = [amount for axis in convolution.pads for amount in axis]
    return [const_node(node.input[1], weights), node]


def _rounding_nodes(tensor: str, form: _Form, name: str) -> list[NodeDef]:
    if np.all(form.unit == 1):
        return [_fake_quant(tensor, form.rounding, name)]
    return [
        const_node(f"{name}/per_unit", 1 / _smallest(form.unit)),
        op_node("Mul", f"{name}/unrounded", [tensor, f"{name}/per_unit"], T=tf.float32),
        _fake_quant(f"{name}/unrounded", form.rounding, name),
    ]


def _fake_quant(tensor: str, rounding: Rounding, name: str) -> NodeDef:
    low, high = rounding.ends
    return op_node("FakeQuantWithMinMaxArgs", name, [tensor], min=low, max=high, num_bits=8, narrow_range=False)


def _value_node(numbers: str, form: _Form, name: str) -> NodeDef:
    if np.all(form.unit == 1):
        return op_node("Identity", name, [numbers], T=tf.float32)
    return op_node("Mul", name, [numbers, f"{name}/unit"], T=tf.float32)


def _smallest(unit: NDArray[np.float32]) -> NDArray[np.float32]:
    """The unit as one number where channels do not differ."""
    return np.asarray(unit[0] if np.all(unit == unit[0]) else unit, np.float32)
