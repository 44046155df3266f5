"""Write oneDNN's fused int8 kernels, which stock TensorFlow carries but has no Python function for.

The format of the nodes: op_def of `_FusedQuantizedConv2D`, `_FusedQuantizedDepthwiseConv2D` and `_QuantizedMatMul` in
TensorFlow's `mkl_nn_ops.cc`. Their inputs are data, filter, bias, then the ranges of data, filter and, for an 8-bit
result, output. Scales of activations are folded into the weights (`codes`), so all codes stand for 0..1 or -1..1.
"""

from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike
from tensorflow.core.framework.node_def_pb2 import NodeDef

from tuner.model.nodes import const_node, op_node
from tuner.quantization.lowering.codes import QuantizedConvolution
from tuner.quantization.lowering.scales import ActivationScale

CONVOLUTION_KERNELS = {"Conv2D": "_FusedQuantizedConv2D", "DepthwiseConv2dNative": "_FusedQuantizedDepthwiseConv2D"}
MATMUL_KERNEL = "_QuantizedMatMul"
KERNEL_OPS = (*CONVOLUTION_KERNELS.values(), MATMUL_KERNEL)

KERNEL_SUFFIX = "/int8"

# The attribute's default, which takes no room in a file.
UNUSED_ALPHA = 0.2

# The ends of all codes' ranges: constants that every graph with codes has once.
MINUS_ONE, ZERO, ONE = "tuner/int8/minus_one", "tuner/int8/zero", "tuner/int8/one"


@dataclass(frozen=True, slots=True)
class CodeTensor:
    """An 8-bit tensor: its name and the code's type, quint8 or qint8."""

    name: str
    dtype: tf.DType

    @property
    def ends(self) -> list[str]:
        """The names of the two scalars that say its range."""
        return [ZERO if self.dtype == tf.quint8 else MINUS_ONE, ONE]


def end_nodes() -> list[NodeDef]:
    """The constants for the ends of codes' ranges. HostConst is what the kernels expect."""
    return [const_node(name, np.float32(value), on_host=True) for name, value in ((MINUS_ONE, -1), (ZERO, 0), (ONE, 1))]


def code_dtype(scale: ActivationScale) -> tf.DType:
    """quint8 or qint8."""
    return tf.quint8 if scale.is_unsigned else tf.qint8


def convolution_nodes(
    quantized: QuantizedConvolution, data: CodeTensor, summand: CodeTensor | None, name: str
) -> list[NodeDef]:
    """One fused convolution `name` with its constants: codes in, codes out, or 32-bit sums without an output scale.

    data: padded already where `quantized` says what is added around it.
    summand: unsigned codes that are added before the activation, into whose buffer the kernel may write.

    The sums of a kernel are on one scale for all channels, that of the largest weight peak, so a channel with small
    weights would be left with a few codes. For sums the kernel is told that every peak is 1, and `sums_to_float_nodes`
    brings each channel to its own unit afterwards, which Relu does not mind.
    """
    convolution, output = quantized.convolution, quantized.output
    peaks, bias = quantized.weight_peaks, quantized.bias
    if summand is not None and bias is None:
        bias = np.zeros(len(peaks), np.float32)  # the kernel does not add without one
    fused = [] if bias is None else ["BiasAdd"]
    if summand is not None:
        fused.append("Sum")
    # Relu6 in 8 bits needs no op of its own: the codes' range ends where calibration ended, at 6 or below.
    activation = None if convolution.activation is None else convolution.activation.op
    if activation == "Relu" or (activation == "Relu6" and output is not None):
        fused.append("Relu")
    if output is None:
        dtype = tf.qint32
        peaks, bias = np.ones(1, np.float32), None if bias is None else bias / peaks
        results: list[str] = []
    else:
        dtype = code_dtype(output)
        fused.append("Requantize")
        results = CodeTensor(name, dtype).ends
    nodes, inputs, host_types = _weight_nodes(quantized, name, peaks, bias, data)
    ends = [*data.ends, *_weight_ends(name)]
    if summand is not None and quantized.summand_peak is not None:
        inputs.append(summand.name)
        host_types.append(summand.dtype)
        nodes.append(const_node(f"{name}/summand_high", quantized.summand_peak, on_host=True))
        ends += [ZERO, f"{name}/summand_high"]
    ends += results
    attributes = convolution.node.attr
    padding, pads = attributes["padding"].s.decode(), list(attributes["explicit_paddings"].list.i)
    if quantized.pads:
        padding, pads = "VALID", []
    elif convolution.pad is not None:
        padding, pads = "EXPLICIT", [amount for pair in convolution.pads for amount in pair]
    return [
        *nodes,
        op_node(
            CONVOLUTION_KERNELS[convolution.node.op],
            name,
            [data.name, *inputs, *ends],
            Tinput=data.dtype,
            Tfilter=tf.qint8,
            Tbias=tf.float32,
            Tsummand=dtype,
            out_type=dtype,
            Tdevice_inputs=list[tf.DType](),
            Tdevice_outputs=list[tf.DType](),
            Thost_inputs=host_types + [tf.float32] * len(ends),
            Thost_outputs=[dtype, tf.float32, tf.float32],
            fused_ops=fused,
            strides=list(attributes["strides"].list.i),
            padding=padding,
            explicit_paddings=pads,
            dilations=list(attributes["dilations"].list.i) or [1, 1, 1, 1],
            data_format="NHWC",
            is_filter_const=True,
            is_bias_const=True,
            alpha=0.0,
        ),
    ]


def matmul_nodes(quantized: QuantizedConvolution, data: CodeTensor, name: str) -> list[NodeDef]:
    """A 1x1 convolution as one matrix product `name`: codes [pixels, in] to [pixels, out], codes or exact floats.

    This kernel is faster than the convolution one, fuses more functions, and its floats were never rounded.
    """
    activation, output = quantized.convolution.activation, quantized.output
    channels = len(quantized.weight_peaks)
    bias = np.zeros(channels, np.float32) if quantized.bias is None else quantized.bias
    nodes, inputs, host_types = _weight_nodes(quantized, name, quantized.weight_peaks, bias, data)
    fused = ["BiasAdd"]
    if activation is not None:
        fused.append("Relu" if activation.op == "Relu6" and output is not None else activation.op)
    fused.append("Dequantize" if output is None else "Requantize")
    dtype = tf.float32 if output is None else code_dtype(output)
    results = [] if output is None else CodeTensor(name, dtype).ends
    alpha = activation.attr["alpha"].f if activation is not None and activation.op == "LeakyRelu" else UNUSED_ALPHA
    return [
        *nodes,
        op_node(
            MATMUL_KERNEL,
            name,
            [data.name, *inputs, *data.ends, *_weight_ends(name), *results],
            T1=data.dtype,
            T2=tf.qint8,
            Tbias=tf.float32,
            U=tf.float32,
            Tout=dtype,
            Tdevice_inputs=list[tf.DType](),
            Tdevice_outputs=list[tf.DType](),
            Thost_inputs=host_types + [tf.float32] * (4 + len(results)),
            Thost_outputs=[dtype, *([] if output is None else [tf.float32, tf.float32])],
            transpose_a=False,
            transpose_b=False,
            is_weight_const=True,
            is_bias_const=True,
            fused_ops=fused,
            input_quant_mode="SCALED",
            output_quant_mode="SCALED",
            leakyrelu_alpha=float(alpha),
        ),
    ]


def sums_to_float_nodes(sums: str, units: ArrayLike, name: str) -> list[NodeDef]:
    """Nodes that read 32-bit sums as float, never rounded to 8 bits. units: the value of 1, [] or [channels out]."""
    return [
        const_node(f"{sums}/units", np.asarray(units, np.float32)),
        op_node("Bitcast", f"{sums}/int32", [sums], T=tf.qint32, type=tf.int32),
        op_node("Cast", f"{sums}/float", [f"{sums}/int32"], SrcT=tf.int32, DstT=tf.float32, Truncate=False),
        op_node("Mul", name, [f"{sums}/float", f"{sums}/units"], T=tf.float32),
    ]


def _weight_ends(name: str) -> list[str]:
    """The ends of the range of weights: the kernels take the larger magnitude, so the high end is enough."""
    return [f"{name}/weights_high"] * 2


def _weight_nodes(
    quantized: QuantizedConvolution,
    name: str,
    peaks: ArrayLike,
    bias: ArrayLike | None,
    data: CodeTensor,
) -> tuple[list[NodeDef], list[str], list[tf.DType]]:
    """The constants of a kernel, the names of weights and bias, and the types of data, weights and bias."""
    known = np.asarray(peaks, np.float32)
    # Equal peaks are one scale per tensor: the kernels take a range of one value for that.
    known = known[:1] if np.all(known == known[0]) else known
    weights = quantized.weights[0, 0] if quantized.is_matmul else quantized.weights
    weights_name = f"{quantized.weights_of or quantized.convolution.name}{KERNEL_SUFFIX}/weights"
    nodes = [] if quantized.weights_of else [const_node(weights_name, weights, tf.qint8)]
    nodes.append(const_node(f"{name}/weights_high", known, on_host=True))
    inputs, types = [weights_name], [data.dtype, tf.qint8]
    if bias is not None:
        nodes.append(const_node(f"{name}/bias", np.asarray(bias, np.float32)))
        inputs.append(f"{name}/bias")
        types.append(tf.float32)
    return nodes, inputs, types
