"""Write the int8 graph of a plan: fused kernels, with QuantizeV2 and float results only where float ops are met."""

import numpy as np
import tensorflow as tf
from tensorflow.core.framework.node_def_pb2 import NodeDef

from tuner.model.graph_view import GraphView
from tuner.precision import PrecisionPlan
from tuner.quantization.lowering.codes import QuantizedConvolution, quantize_convolutions
from tuner.quantization.lowering.kernels import (
    QuantizedTensor,
    code_dtype,
    kernel_nodes,
    quantize_nodes,
    sums_to_float_nodes,
)
from tuner.quantization.nodes import op_node
from tuner.quantization.ranges import Ranges

KERNEL_SUFFIX = "/int8"


def lower(graph: GraphView, plan: PrecisionPlan, ranges: Ranges) -> GraphView:
    """Write the int8 graph of a plan. Every tensor that float ops read keeps its name.

    The kernel of the convolution `a` is the node `a/int8`. Errors: those of `quantize_convolutions`.
    """
    convolutions = quantize_convolutions(graph, plan, ranges)
    handed_over = {quantized.convolution.output: quantized for quantized in convolutions if quantized.output}
    inputs: dict[str, QuantizedTensor] = {}
    removed: set[str] = set()
    added: list[NodeDef] = []
    for quantized in convolutions:
        tensor = quantized.convolution.input
        producer = handed_over.get(tensor)
        name = _input_name(quantized)
        if producer is not None:
            inputs[name] = _kernel_output(producer)
        elif name not in inputs:
            inputs[name], nodes = quantize_nodes(tensor, quantized.scale, name)
            added += nodes
        added += _convolution_nodes(quantized, inputs[name])
        removed.update(quantized.convolution.members)
    return graph.replace(removed, added)


def _input_name(quantized: QuantizedConvolution) -> str:
    """The name of the 8-bit form of an input: one tensor may be needed with one scale and with one per channel."""
    form = "int8_per_channel" if quantized.scale.peaks.ndim else "int8_per_tensor"
    node, _, output = quantized.convolution.input.partition(":")
    return f"{node}/output_{output}/{form}" if output else f"{node}/{form}"


def _kernel_output(quantized: QuantizedConvolution) -> QuantizedTensor:
    if quantized.output is None:
        raise ValueError(f"{quantized.convolution.name} makes 32-bit sums, not codes")
    name = quantized.convolution.name + KERNEL_SUFFIX
    return QuantizedTensor(name, f"{name}:1", f"{name}:2", code_dtype(quantized.output))


def _convolution_nodes(quantized: QuantizedConvolution, data: QuantizedTensor) -> list[NodeDef]:
    """The kernel of one convolution and, where its result is read as float, the nodes that make it so."""
    convolution = quantized.convolution
    name = convolution.name + KERNEL_SUFFIX
    # Relu6 in 8 bits needs no op of its own: the codes' range ends where calibration ended, at 6 or below.
    fuses_relu = convolution.activation == "Relu" or (
        convolution.activation == "Relu6" and quantized.output is not None
    )
    if quantized.output is not None:
        return kernel_nodes(
            convolution.node,
            data,
            quantized.weights,
            quantized.weight_peaks,
            bias=quantized.bias,
            name=name,
            relu=fuses_relu,
            output=quantized.output,
        )
    # Sums come out on one scale for all channels, that of the largest weight peak: a channel with small weights would
    # be left with a few codes. So the kernel is told that every peak is 1, and each channel is brought to its own unit
    # afterwards, which Relu does not mind.
    peaks = quantized.weight_peaks
    nodes = kernel_nodes(
        convolution.node,
        data,
        quantized.weights,
        np.ones(1, np.float32),
        bias=None if quantized.bias is None else quantized.bias / peaks,
        name=name,
        relu=fuses_relu,
        output=None,
    )
    if convolution.activation == "Relu6":
        before = f"{name}/before_relu6"
        return [
            *nodes,
            *sums_to_float_nodes(name, quantized.units, before),
            op_node("Relu6", convolution.output, [before], T=tf.float32),
        ]
    return [*nodes, *sums_to_float_nodes(name, quantized.units, convolution.output)]
