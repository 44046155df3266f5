"""Write oneDNN's fused int8 convolutions, which stock TensorFlow carries but has no Python function for.

The format of the nodes: op_def of `_FusedQuantizedConv2D` and `_FusedQuantizedDepthwiseConv2D` in TensorFlow's
`mkl_nn_ops.cc`. Their inputs are data, filter, bias, then the ranges of data, filter and, for an 8-bit result, output.
"""

from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike, NDArray
from tensorflow.core.framework.node_def_pb2 import NodeDef

from tuner.quantization.lowering.scales import ActivationScale
from tuner.quantization.nodes import const_node, op_node

KERNEL_OPS = {"Conv2D": "_FusedQuantizedConv2D", "DepthwiseConv2dNative": "_FusedQuantizedDepthwiseConv2D"}


@dataclass(frozen=True, slots=True)
class QuantizedTensor:
    """An 8-bit tensor and the two scalars that say its range: three tensor names and the code's type."""

    codes: str
    low: str
    high: str
    dtype: tf.DType


def code_dtype(scale: ActivationScale) -> tf.DType:
    """quint8 or qint8."""
    return tf.quint8 if scale.is_unsigned else tf.qint8


def quantize_nodes(tensor: str, scale: ActivationScale, name: str) -> tuple[QuantizedTensor, list[NodeDef]]:
    """Nodes that turn a float tensor into codes of `scale`.

    With one scale per channel, a Mul brings each channel to -1..1 first; the codes' range is then that of the quotient.
    """
    nodes: list[NodeDef] = []
    peak = np.float32(1)
    if scale.peaks.ndim:
        nodes.append(const_node(f"{name}/reciprocal_peaks", (1 / scale.peaks).astype(np.float32)))
        nodes.append(op_node("Mul", f"{name}/normalized", [tensor, f"{name}/reciprocal_peaks"], T=tf.float32))
        tensor = f"{name}/normalized"
    else:
        peak = np.float32(scale.peaks)
    dtype = code_dtype(scale)
    nodes += [
        const_node(f"{name}/low", np.float32(0 if scale.is_unsigned else -peak)),
        const_node(f"{name}/high", peak),
        op_node(
            "QuantizeV2",
            name,
            [tensor, f"{name}/low", f"{name}/high"],
            T=dtype,
            mode="SCALED",
            round_mode="HALF_TO_EVEN",
            # oneDNN spreads signed codes over -128..127 of the range otherwise, while its convolutions divide by 127.
            narrow_range=not scale.is_unsigned,
            axis=-1,
            # The default, 0.01, would widen the range of tensors with small values.
            ensure_minimum_range=0.0,
        ),
    ]
    return QuantizedTensor(name, f"{name}:1", f"{name}:2", dtype), nodes


def kernel_nodes(
    convolution: NodeDef,
    data: QuantizedTensor,
    weights: NDArray[np.int8],
    weight_peaks: NDArray[np.float32],
    *,
    bias: NDArray[np.float32] | None,
    name: str,
    relu: bool,
    output: ActivationScale | None,
) -> list[NodeDef]:
    """One fused kernel with its constants: codes in, codes of `output` out, or 32-bit sums where `output` is None.

    convolution: the float node, for strides, padding and dilations. weights: codes, shaped as the float weights.
    weight_peaks: [channels out]. bias: [channels out] float32, in the unit of the result.
    """
    ranges = [data.low, data.high, f"{name}/weights_low", f"{name}/weights_high"]
    # Equal peaks are one scale per tensor: the kernels take a range of one value for that.
    peaks = weight_peaks[:1] if np.all(weight_peaks == weight_peaks[0]) else weight_peaks
    nodes = [
        const_node(f"{name}/weights", weights, tf.qint8),
        const_node(f"{name}/weights_low", -peaks, on_host=True),
        const_node(f"{name}/weights_high", peaks, on_host=True),
    ]
    inputs, host_types, fused = [data.codes, f"{name}/weights"], [data.dtype, tf.qint8], []
    if bias is not None:
        nodes.append(const_node(f"{name}/bias", bias.astype(np.float32)))
        inputs.append(f"{name}/bias")
        host_types.append(tf.float32)
        fused.append("BiasAdd")
    if relu:
        fused.append("Relu")
    if output is None:
        dtype = tf.qint32
    else:
        dtype = code_dtype(output)
        peak = np.float32(1) if output.peaks.ndim else np.float32(output.peaks)
        nodes.append(const_node(f"{name}/low", np.float32(0 if output.is_unsigned else -peak), on_host=True))
        nodes.append(const_node(f"{name}/high", peak, on_host=True))
        ranges += [f"{name}/low", f"{name}/high"]
        fused.append("Requantize")
    host_types += [tf.float32] * len(ranges)
    attributes = convolution.attr
    nodes.append(
        op_node(
            KERNEL_OPS[convolution.op],
            name,
            inputs + ranges,
            Tinput=data.dtype,
            Tfilter=tf.qint8,
            Tbias=tf.float32,
            Tsummand=dtype,
            out_type=dtype,
            Tdevice_inputs=list[tf.DType](),
            Tdevice_outputs=list[tf.DType](),
            Thost_inputs=host_types,
            Thost_outputs=[dtype, tf.float32, tf.float32],
            fused_ops=fused,
            strides=list(attributes["strides"].list.i),
            padding=attributes["padding"].s.decode(),
            explicit_paddings=list(attributes["explicit_paddings"].list.i),
            dilations=list(attributes["dilations"].list.i) or [1, 1, 1, 1],
            data_format="NHWC",
            is_filter_const=True,
            is_bias_const=True,
            alpha=0.0,
        )
    )
    return nodes


def sums_to_float_nodes(sums: str, units: ArrayLike, name: str) -> list[NodeDef]:
    """Nodes that read 32-bit sums as float, never rounded to 8 bits. units: the value of 1, [] or [channels out]."""
    return [
        const_node(f"{sums}/units", np.asarray(units, np.float32)),
        op_node("Bitcast", f"{sums}/int32", [sums], T=tf.qint32, type=tf.int32),
        op_node("Cast", f"{sums}/float", [f"{sums}/int32"], SrcT=tf.int32, DstT=tf.float32, Truncate=False),
        op_node("Mul", name, [f"{sums}/float", f"{sums}/units"], T=tf.float32),
    ]
