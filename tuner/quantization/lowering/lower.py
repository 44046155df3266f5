"""Write the int8 graph of a plan: kernels that hand each other codes, rounding and float results at the borders."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from tensorflow.core.framework.node_def_pb2 import NodeDef

from tuner.model.graph_view import GraphView
from tuner.model.nodes import const_node, op_node
from tuner.precision import PrecisionPlan
from tuner.quantization.lowering.borders import dequantize_nodes, padded_nodes, quantize_nodes
from tuner.quantization.lowering.codes import QuantizedConvolution, decide_codes
from tuner.quantization.lowering.compact import compact
from tuner.quantization.lowering.data_movement import PLAIN_TYPES, Carrier
from tuner.quantization.lowering.kernels import (
    KERNEL_SUFFIX,
    CodeTensor,
    code_dtype,
    convolution_nodes,
    end_nodes,
    matmul_nodes,
    sums_to_float_nodes,
)
from tuner.quantization.ranges import Ranges

# TensorFlow's MaxPool of plain integers goes pixel by pixel: with few channels oneDNN's takes two thirds of its time.
FEWEST_CHANNELS_OF_PLAIN_POOLS = 32


def lower(
    graph: GraphView, plan: PrecisionPlan, ranges: Ranges, *, matmul_kernel: bool = True, full_names: bool = False
) -> GraphView:
    """Write the int8 graph of a plan. Every tensor that float ops read keeps its name.

    The kernel of the convolution `a` is the node `a/int8`, the form of an op `a` that moves codes too.
    matmul_kernel, and errors: those of `decide_codes`. full_names: whether other nodes that are added are called after
    what they stand for too, not in the fewest bytes.
    """
    codes = decide_codes(graph, plan, ranges, matmul_kernel=matmul_kernel)
    tensors: dict[str, CodeTensor] = {}
    removed: set[str] = set()
    added: list[NodeDef] = end_nodes()
    for source in codes.regions.sources.values():
        scale = codes.scales[source.tensor]
        if source.kernel is None:
            tensors[source.tensor], nodes = quantize_nodes(source.tensor, scale, _quantized_name(source.tensor))
            added += nodes
        else:
            made = source.kernel + KERNEL_SUFFIX
            makes_rows = (
                codes.kernels[source.kernel].is_matmul and not codes.kernels[source.kernel].convolution.is_matmul_node
            )
            name = f"{made}/image" if makes_rows else made
            tensors[source.tensor] = CodeTensor(name, code_dtype(scale))
    for carrier in codes.regions.carriers.values():
        added += _carrier_nodes(carrier, tensors, len(codes.scales[carrier.outputs[0]].peaks))
        if not carrier.sizes:
            # Of an op with several results the float form stays: nodes cannot be named after its later results.
            name = carrier.outputs[0]
            removed.add(name)
            added += dequantize_nodes(tensors[name], codes.scales[name], name)
    for quantized in codes.kernels.values():
        removed.update(quantized.convolution.members)
        if quantized.convolution.is_matmul_node:
            added += _matmul_nodes(quantized, tensors)
        elif quantized.is_matmul:
            added += _pointwise_nodes(graph, quantized, tensors)
        else:
            added += _convolution_nodes(quantized, tensors)
    return graph.replace(removed, added if full_names else compact(added, graph.nodes))


def _quantized_name(tensor: str) -> str:
    node, _, output = tensor.partition(":")
    return f"{node}/output_{output}/quantized" if output else f"{node}/quantized"


def _carrier_nodes(carrier: Carrier, tensors: dict[str, CodeTensor], channels: int) -> list[NodeDef]:
    """The op on codes as plain integers: TensorFlow has kernels for those, and faster ones than for quantised types.

    Adds what the op makes to `tensors`. channels: of the first output.
    """
    dtype = tensors[carrier.inputs[0]].dtype
    if carrier.node.op == "MaxPool" and channels < FEWEST_CHANNELS_OF_PLAIN_POOLS:
        return _quantized_pool_nodes(carrier, tensors)
    plain = PLAIN_TYPES[dtype]
    node = NodeDef()
    node.CopyFrom(carrier.node)
    node.name += KERNEL_SUFFIX
    node.attr["T"].type = plain.as_datatype_enum
    before, after = [], []
    for position, read in zip(carrier.positions, carrier.inputs, strict=True):
        node.input[position] = f"{node.name}/input_{position}"
        before.append(op_node("Bitcast", node.input[position], [tensors[read].name], T=dtype, type=plain))
    for index, output in enumerate(carrier.outputs):
        moved, codes = f"{node.name}:{index}" if index else node.name, f"{node.name}/codes_{index}"
        after.append(op_node("Bitcast", codes, [moved], T=plain, type=dtype))
        tensors[output] = CodeTensor(codes, dtype)
    return [*before, node, *after]


def _quantized_pool_nodes(carrier: Carrier, tensors: dict[str, CodeTensor]) -> list[NodeDef]:
    data, attributes = tensors[carrier.inputs[0]], carrier.node.attr
    pooled = CodeTensor(carrier.node.name + KERNEL_SUFFIX, data.dtype)
    tensors[carrier.outputs[0]] = pooled
    sizes = {key: list(attributes[key].list.i) for key in ("ksize", "strides")}
    padding = attributes["padding"].s.decode()
    return [op_node("QuantizedMaxPool", pooled.name, [data.name, *data.ends], T=data.dtype, padding=padding, **sizes)]


def _convolution_nodes(quantized: QuantizedConvolution, tensors: dict[str, CodeTensor]) -> list[NodeDef]:
    """The kernel of a convolution and, unless nothing reads them, the nodes that make its result float."""
    convolution = quantized.convolution
    name = convolution.name + KERNEL_SUFFIX
    summand = None if convolution.summand is None else tensors[convolution.summand]
    data, nodes = tensors[convolution.input], list[NodeDef]()
    if quantized.pads:
        data, nodes = padded_nodes(data, quantized.pads, quantized.scale.zero_point, f"{name}/padded")
    nodes += convolution_nodes(quantized, data, summand, name)
    if quantized.output is not None:
        return [*nodes, *dequantize_nodes(tensors[convolution.output], quantized.output, convolution.output)]
    if convolution.activation is not None and convolution.activation.op != "Relu":
        activation = NodeDef()
        activation.CopyFrom(convolution.activation)
        activation.input[0] = f"{name}/before_activation"
        return [*nodes, *sums_to_float_nodes(name, quantized.units, activation.input[0]), activation]
    return [*nodes, *sums_to_float_nodes(name, quantized.units, convolution.output)]


def _matmul_nodes(quantized: QuantizedConvolution, tensors: dict[str, CodeTensor]) -> list[NodeDef]:
    """The kernel of a MatMul, whose data are rows already; as float under the float op's name."""
    convolution = quantized.convolution
    name = convolution.name + KERNEL_SUFFIX
    nodes = matmul_nodes(quantized, tensors[convolution.input], name)
    if quantized.output is None:
        return [*nodes, op_node("Identity", convolution.output, [name], T=tf.float32)]
    return [*nodes, *dequantize_nodes(tensors[convolution.output], quantized.output, convolution.output)]


def _pointwise_nodes(
    graph: GraphView, quantized: QuantizedConvolution, tensors: dict[str, CodeTensor]
) -> list[NodeDef]:
    """The same for a matrix product: of the pixels in one row each, and back to an image."""
    convolution = quantized.convolution
    name = convolution.name + KERNEL_SUFFIX
    data = tensors[convolution.input]
    channels_in, channels_out = quantized.weights.shape[2:]
    pixels = CodeTensor(f"{name}/pixels", data.dtype)
    shape = f"{name}/image_shape"
    nodes = [
        const_node(f"{name}/pixels_shape", np.array([-1, channels_in], np.int32)),
        op_node("Reshape", pixels.name, [data.name, f"{name}/pixels_shape"], T=data.dtype, Tshape=tf.int32),
        *matmul_nodes(quantized, pixels, name),
        *_image_shape_nodes(graph.shape(convolution.name), data, channels_out, shape),
    ]
    if quantized.output is None:
        return [*nodes, op_node("Reshape", convolution.output, [name, shape], T=tf.float32, Tshape=tf.int32)]
    image = tensors[convolution.output]
    return [
        *nodes,
        op_node("Reshape", image.name, [name, shape], T=image.dtype, Tshape=tf.int32),
        *dequantize_nodes(image, quantized.output, convolution.output),
    ]


def _image_shape_nodes(known: Sequence[int | None], data: CodeTensor, channels: int, name: str) -> list[NodeDef]:
    """The shape [N, H, W, channels]: a constant where only the batch is unknown, else read from the data."""
    if len(known) == 4 and None not in known[1:3]:
        return [const_node(name, np.array([-1, known[1], known[2], channels], np.int32))]
    slice_ends = {f"{name}/begin": [0], f"{name}/end": [3], f"{name}/step": [1]}
    return [
        op_node("Shape", f"{name}/data", [data.name], T=data.dtype, out_type=tf.int32),
        *(const_node(end, np.array(value, np.int32)) for end, value in slice_ends.items()),
        op_node(
            "StridedSlice",
            f"{name}/rows_and_columns",
            [f"{name}/data", *slice_ends],
            T=tf.int32,
            Index=tf.int32,
            begin_mask=0,
            end_mask=0,
            ellipsis_mask=0,
            new_axis_mask=0,
            shrink_axis_mask=0,
        ),
        const_node(f"{name}/channels", np.array([channels], np.int32)),
        const_node(f"{name}/axis", np.int32(0)),
        op_node(
            "ConcatV2",
            name,
            [f"{name}/rows_and_columns", f"{name}/channels", f"{name}/axis"],
            T=tf.int32,
            N=2,
            Tidx=tf.int32,
        ),
    ]
