"""Where codes begin and end: float tensors rounded to codes, and codes read as float."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from tensorflow.core.framework.node_def_pb2 import NodeDef

from tuner.model.nodes import const_node, op_node
from tuner.quantization.lowering.data_movement import PLAIN_TYPES
from tuner.quantization.lowering.kernels import CodeTensor, code_dtype
from tuner.quantization.lowering.scales import ActivationScale


def quantize_nodes(tensor: str, scale: ActivationScale, name: str) -> tuple[CodeTensor, list[NodeDef]]:
    """Nodes that round a float tensor to codes of `scale`; where channels differ, a Mul brings each to -1..1 first."""
    nodes: list[NodeDef] = []
    peak = np.float32(1)
    if scale.is_uniform:
        peak = scale.peaks[0]
    else:
        nodes.append(const_node(f"{name}/reciprocal_peaks", (1 / scale.peaks).astype(np.float32)))
        nodes.append(op_node("Mul", f"{name}/normalized", [tensor, f"{name}/reciprocal_peaks"], T=tf.float32))
        tensor = f"{name}/normalized"
    dtype = code_dtype(scale)
    if scale.zero_point:
        return CodeTensor(name, dtype), [*nodes, *_uniform_quantize_nodes(tensor, peak, scale, name)]
    nodes += [
        const_node(f"{name}/low", np.float32(0 if scale.is_unsigned else -peak)),
        const_node(f"{name}/high", np.float32(peak)),
        op_node(
            "QuantizeV2",
            name,
            [tensor, f"{name}/low", f"{name}/high"],
            T=dtype,
            mode="SCALED",
            # Both settings keep the op from being rewritten to oneDNN's, which takes twice as long and spreads signed
            # codes over -128..127 of the range, while its kernels divide by 127.
            round_mode="HALF_AWAY_FROM_ZERO" if scale.is_unsigned else "HALF_TO_EVEN",
            narrow_range=not scale.is_unsigned,
            axis=-1,
            # The default, 0.01, would widen the range of tensors with small values.
            ensure_minimum_range=0.0,
        ),
    ]
    return CodeTensor(name, dtype), nodes


def _uniform_quantize_nodes(tensor: str, peak: np.float32, scale: ActivationScale, name: str) -> list[NodeDef]:
    """The one op that makes codes with a zero point exactly, in two thirds of QuantizeV2's time."""
    lowest, highest = scale.lowest_code(from_kernel=False), scale.levels
    return [
        const_node(f"{name}/step", np.float32(peak / np.float32(scale.levels))),
        const_node(f"{name}/zero_point", np.int32(scale.zero_point)),
        op_node(
            "UniformQuantize",
            name,
            [tensor, f"{name}/step", f"{name}/zero_point"],
            Tin=tf.float32,
            Tout=code_dtype(scale),
            quantization_axis=-1,
            quantization_min_val=lowest,
            quantization_max_val=highest,
        ),
    ]


def padded_nodes(
    codes: CodeTensor, pads: Sequence[tuple[int, int]], zero_point: int, name: str
) -> tuple[CodeTensor, list[NodeDef]]:
    """Nodes that add rows and columns of zeros, which are `zero_point`, around codes. pads: for each axis."""
    plain = PLAIN_TYPES[codes.dtype]
    return CodeTensor(name, codes.dtype), [
        const_node(f"{name}/pads", np.array(pads, np.int32)),
        const_node(f"{name}/zero", plain.as_numpy_dtype(zero_point)),
        op_node("Bitcast", f"{name}/plain_codes", [codes.name], T=codes.dtype, type=plain),
        op_node(
            "PadV2",
            f"{name}/plain",
            [f"{name}/plain_codes", f"{name}/pads", f"{name}/zero"],
            T=plain,
            Tpaddings=tf.int32,
        ),
        op_node("Bitcast", name, [f"{name}/plain"], T=plain, type=codes.dtype),
    ]


def dequantize_nodes(codes: CodeTensor, scale: ActivationScale, name: str) -> list[NodeDef]:
    """Nodes that read codes as the float tensor `name`."""
    plain = PLAIN_TYPES[codes.dtype]
    steps = scale.steps[0] if scale.is_uniform else scale.steps
    return [
        const_node(f"{name}/steps", np.asarray(steps, np.float32)),
        op_node("Bitcast", f"{name}/plain_codes", [codes.name], T=codes.dtype, type=plain),
        op_node("Cast", f"{name}/codes", [f"{name}/plain_codes"], SrcT=plain, DstT=tf.float32, Truncate=False),
        op_node("Mul", name, [f"{name}/codes", f"{name}/steps"], T=tf.float32),
    ]
