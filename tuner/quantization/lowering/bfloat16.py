"""Float operators in bfloat16: half the memory, and twice the products of a cycle where the CPU has AVX512_BF16 or AMX.

Rounding keeps 8 bits of a number, so only what lies between the operators that a plan names goes along with them:
preprocessing, box decoding and scores stay float32.
"""

import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.python.framework import op_def_registry

from tuner.errors import QuantizationError, did_you_mean
from tuner.model.graph_view import GraphView, node_name, tensor_name
from tuner.model.nodes import const_node, op_node
from tuner.quantization.lowering.fold_padding import fold_padding
from tuner.quantization.lowering.fused_hard_swish import fuse_hard_swish
from tuner.quantization.lowering.pointwise_matmul import pointwise_to_matmul
from tuner.quantization.lowering.static_shapes import Shape, static_shapes

OPS = ("Conv2D", "DepthwiseConv2dNative", "MatMul")

# Fused with the convolution or MatMul before them, where nothing else reads what that makes.
FOLLOWING_OPS = ("BiasAdd", "Relu", "Relu6", "LeakyRelu", "Elu", "Identity")

# They only move values, so rounding before them is rounding after them.
MOVING_OPS = (
    "ConcatV2", "DepthToSpace", "ExpandDims", "Identity", "MirrorPad", "Pack", "Pad", "PadV2", "Reshape", "Slice",
    "SpaceToDepth", "Split", "SplitV", "Squeeze", "StridedSlice", "Transpose",
)  # fmt: skip

# All of TensorFlow's CPU kernels take bfloat16. ResizeBilinear makes float32 of it.
BETWEEN_OPS = frozenset({
    *MOVING_OPS, *FOLLOWING_OPS, "Add", "AddV2", "AvgPool", "MaxPool", "Maximum", "Mean", "Minimum", "Mul",
    "ResizeBilinear", "ResizeNearestNeighbor", "Sigmoid", "Softplus", "Sub", "Tanh",
})  # fmt: skip

# Measured on AVX512_BF16, two cores: a convolution saves 6 ns for each thousand products (a depthwise one nothing),
# a Cast takes 5 us and 0.16 ns for each element.
SAVED_NS_PER_PRODUCT = 0.006
CAST_NS = 5000.0
CAST_NS_PER_ELEMENT = 0.16

# Of an image's 8 bits bfloat16 keeps 8, less what scaling and resizing put below: 1 to 4 % of mAP on small detectors,
# for no time at all.
MAX_IMAGE_CHANNELS = 4


@dataclass(frozen=True, slots=True)
class _Cast:
    """A tensor to be read in another type, and the node of the region that makes or reads it."""

    tensor: str
    dtype: tf.DType
    member: str


def to_bfloat16(graph: GraphView, ops: Collection[str]) -> GraphView:
    """Compute the operators `ops` of a float or int8 graph in bfloat16, and with them what is worth it around them.

    BatchNorm should be folded before. The ops keep their names; a 1x1 convolution becomes a MatMul. Stay float: an op
    that reads an image, an output of the graph, and ops whose Casts to and from float32 take longer than they save.
    Raises QuantizationError for a name that is not a float32 Conv2D, DepthwiseConv2dNative or MatMul.
    """
    for op in ops:
        _check(graph, op)
    if not ops:
        return graph
    shapes = static_shapes(graph, _grow(graph, frozenset(ops)))
    seeds = frozenset(op for op in ops if op not in graph.outputs and not _reads_image(graph.nodes[op], shapes))
    seeds = _worthwhile(graph, seeds, shapes)
    # In the graph's order: that of a set differs from process to process, and the graph would too.
    ordered = [node.name for node in graph.graph_def.node if node.name in seeds]
    graph = pointwise_to_matmul(fuse_hard_swish(fold_padding(graph, ordered), ordered), ordered, shapes)
    return _write(graph, _grow(graph, seeds))


def _check(graph: GraphView, op: str) -> None:
    node = graph.nodes.get(op)
    if node is None:
        raise QuantizationError(f"{op}: no such op to compute in bf16{did_you_mean(op, graph.nodes)}")
    if node.op not in OPS or node.attr["T"].type != tf.float32:
        dtype = tf.DType(node.attr["T"].type).name if "T" in node.attr else "no dtype"
        raise QuantizationError(
            f"{op}: got {node.op} of {dtype} to compute in bf16; allowed are float32 {', '.join(OPS)}"
        )


def _reads_image(node: NodeDef, shapes: Mapping[str, Shape]) -> bool:
    weights = shapes.get(tensor_name(node.input[1]), ())
    return node.op == "Conv2D" and len(weights) == 4 and (weights[2] or 0) <= MAX_IMAGE_CHANNELS


def _grow(graph: GraphView, seeds: frozenset[str]) -> set[str]:
    """The seeds, the bias and activation of each, and what lies between.

    Between lies an op all of whose float inputs are bfloat16 already and of whose readers one is again, and an op that
    moves values, some of them bfloat16, to readers that all are.
    """
    region = set(seeds)
    for seed in seeds:
        after = graph.only_consumer(seed)
        while after is not None and after.op in FOLLOWING_OPS and after.name not in graph.outputs:
            region.add(after.name)
            after = graph.only_consumer(after.name)
    fixed = frozenset(region)
    region.update(
        node.name
        for node in graph.graph_def.node
        if node.op in BETWEEN_OPS
        and node.attr["T"].type == tf.float32
        and node.name not in graph.outputs
        and node.name not in graph.loop_body
    )
    pending = sorted(region - fixed)
    while pending:
        name = pending.pop()
        if name in region and name not in fixed and not _lies_between(graph, graph.nodes[name], region):
            region.remove(name)
            neighbours = {reader.name for reader in graph.consumers(name)}
            neighbours.update(node_name(tensor) for tensor in graph.nodes[name].input)
            pending.extend(neighbours & region)
    return region


def _lies_between(graph: GraphView, node: NodeDef, region: set[str]) -> bool:
    readers = [reader.name in region for reader in graph.consumers(node.name)]
    made_of = [graph.nodes[node_name(node.input[index])] for index in _float_inputs(node)]
    inputs = [_makes_bfloat16(made, region) for made in made_of if not _is_constant(graph, made)]
    if node.op in MOVING_OPS and any(inputs) and all(readers):
        return True
    return any(readers) and any(inputs) and all(inputs)


def _is_constant(graph: GraphView, node: NodeDef) -> bool:
    while node.op == "Identity":
        node = graph.nodes[node_name(node.input[0])]
    return bool(node.op == "Const")


def _makes_bfloat16(node: NodeDef, region: Collection[str]) -> bool:
    return node.name in region and node.op != "ResizeBilinear"


def _worthwhile(graph: GraphView, seeds: frozenset[str], shapes: Mapping[str, Shape]) -> frozenset[str]:
    """The seeds of those connected regions that save more time than the Casts at their borders take."""
    region = _grow(graph, seeds)
    part_of = _connected_parts(graph, region)
    saved_ns: dict[int, float] = defaultdict(float)
    for seed in seeds:
        saved_ns[part_of[seed]] += SAVED_NS_PER_PRODUCT * _products(graph.nodes[seed], shapes)
    casts = dict.fromkeys((part_of[cast.member], cast.tensor, cast.dtype) for cast in _casts(graph, region))
    for part, tensor, _ in casts:
        saved_ns[part] -= CAST_NS + CAST_NS_PER_ELEMENT * _size(shapes.get(tensor))
    return frozenset(seed for seed in seeds if saved_ns[part_of[seed]] > 0)


def _connected_parts(graph: GraphView, region: Collection[str]) -> dict[str, int]:
    """A number for each node of a region, equal where tensors connect nodes without leaving the region."""
    part_of: dict[str, int] = {}
    for number, start in enumerate(region):
        pending = [start]
        while pending:
            name = pending.pop()
            if name in region and name not in part_of:
                part_of[name] = number
                pending.extend(reader.name for reader in graph.consumers(name))
                pending.extend(map(node_name, graph.nodes[name].input))
    return part_of


def _casts(graph: GraphView, region: Collection[str]) -> Iterator[_Cast]:
    """What is read in another type than it is made in, once for each reader."""
    for node in graph.graph_def.node:
        wants = node.name in region
        for index in _float_inputs(node) if wants else range(len(node.input)):
            tensor = tensor_name(node.input[index])
            made = graph.nodes[node_name(tensor)]
            if (
                tensor.startswith("^")
                or _makes_bfloat16(made, region) == wants
                or (wants and _is_constant(graph, made))
            ):
                continue
            yield _Cast(tensor, tf.bfloat16 if wants else tf.float32, node.name if wants else made.name)


def _products(node: NodeDef, shapes: Mapping[str, Shape]) -> float:
    """Multiplications of an operator: none of a depthwise convolution, which bfloat16 does not make faster.

    Infinite where shapes are not known but at run time: what a plan says counts for more than no knowledge.
    """
    if node.op == "DepthwiseConv2dNative":
        return 0.0
    weights, result = shapes.get(tensor_name(node.input[1])), shapes.get(node.name)
    if weights is None or result is None or None in result[1:]:
        return math.inf
    return _size(result) * _size(weights[:-1])


def _size(shape: Shape | None) -> float:
    """Number of elements, unknown dimensions counted as 1."""
    return float(np.prod([size or 1 for size in shape])) if shape else 1.0


def _write(graph: GraphView, region: Collection[str]) -> GraphView:
    """The graph with the nodes of the region in bfloat16, their constants too, and Casts where types meet."""
    removed: set[str] = set()
    added: dict[str, NodeDef] = {}
    casts = {(cast.tensor, cast.dtype) for cast in _casts(graph, region)}
    for node in graph.graph_def.node:
        wants = node.name in region
        changed = NodeDef()
        changed.CopyFrom(node)
        if wants:
            for attribute in changed.attr.values():
                if attribute.type == tf.float32:
                    attribute.type = tf.bfloat16.as_datatype_enum
                for index, kind in enumerate(attribute.list.type):
                    if kind == tf.float32:
                        attribute.list.type[index] = tf.bfloat16.as_datatype_enum
        dtype = tf.bfloat16 if wants else tf.float32
        for index in _float_inputs(node) if wants else range(len(node.input)):
            tensor = tensor_name(node.input[index])
            value = graph.constant(tensor) if wants else None
            name = f"{tensor.replace(':', '/')}/{dtype.name}"
            if value is not None:
                added[name] = _constant(name, value)
                changed.input[index] = name
            elif (tensor, dtype) in casts:
                source = tf.float32 if wants else tf.bfloat16
                added[name] = op_node("Cast", name, [tensor], SrcT=source, DstT=dtype, Truncate=False)
                changed.input[index] = name
        if changed != node:
            removed.add(node.name)
            added[node.name] = changed
    return graph.replace(removed, list(added.values()))


def _float_inputs(node: NodeDef) -> list[int]:
    """The numbers of the inputs whose type is one of the node's own float32 types."""
    found: list[int] = []
    position = 0
    for argument in op_def_registry.get(node.op).input_arg:
        if argument.type_list_attr:
            kinds = list(node.attr[argument.type_list_attr].list.type)
        else:
            kind = node.attr[argument.type_attr].type if argument.type_attr else 0
            kinds = [kind] * (node.attr[argument.number_attr].i if argument.number_attr else 1)
        found += [position + index for index, kind in enumerate(kinds) if kind == tf.float32]
        position += len(kinds)
    return found


def _constant(name: str, value: NDArray[np.generic]) -> NodeDef:
    """A constant rounded to bfloat16, in two bytes for each number."""
    rounded = value.astype(tf.bfloat16.as_numpy_dtype)
    # TensorFlow itself writes bfloat16 as a list of integers, three bytes each, except where there is one number only.
    return const_node(name, rounded) if value.size == 1 else const_node(name, rounded.view(np.int16), tf.bfloat16)
