"""Where each channel of each feature map comes from, and which ops care about the order of channels."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from graphlib import TopologicalSorter
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework.node_def_pb2 import NodeDef

from tuner.model.graph_view import GraphView, node_name, tensor_name

# A channel by the tensor that holds it, in that tensor's original order.
Channel = tuple[str, int]
Channels = tuple[Channel, ...]
# [batch, rows, columns, channels]; None where unknown, which the channels are not.
Shape = tuple[Any, ...]

# Functions of one value at a time, and of two where one is a constant or both come from one tensor.
ELEMENTWISE_OPS = (
    *("Abs", "Ceil", "Elu", "Erf", "Exp", "Floor", "Identity", "LeakyRelu", "Log1p", "Neg", "Relu", "Relu6", "Round"),
    *("Rsqrt", "Selu", "Sigmoid", "Softplus", "Softsign", "Sqrt", "Square", "Tanh"),
    *("Add", "AddV2", "BiasAdd", "Maximum", "Minimum", "Mul", "RealDiv", "Sub"),
)
SPATIAL_OPS = ("MaxPool", "AvgPool", "ResizeBilinear", "ResizeNearestNeighbor", "ResizeBicubic")
PAD_OPS = ("Pad", "PadV2", "MirrorPad")


class Order(Enum):
    """What a node makes of the order of the channels that it reads."""

    FIXED = "it must be the original one"
    KEPT = "the result has the same"
    FREE = "it may read its channels in any order, and a convolution may write them in any order"


@dataclass(frozen=True)
class Reader:
    """A node that reads or makes feature maps and does not only move channels.

    data: positions of the inputs whose channels may be in another order.
    per_channel: position and axis of each constant that must follow their order.
    outputs: the feature maps among what it makes.
    """

    node: NodeDef
    order: Order = Order.FIXED
    data: tuple[int, ...] = ()
    per_channel: tuple[tuple[int, int], ...] = ()
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class ChannelFlow:
    """The channels of every feature map of a graph: float32, rank 4, the last axis of a known size.

    channels: of each tensor, in its original order; a tensor that no mover makes holds channels of its own.
    readers: every node in topological order, but for constants and what only joins, picks or shuffles channels.
    shuffles: the tensors that a Reshape, Transpose, Reshape makes.
    """

    channels: Mapping[str, Channels]
    readers: Sequence[Reader]
    shuffles: Sequence[str]


def trace_channels(graph: GraphView) -> ChannelFlow:
    """Follow the channels through a float graph, NHWC. A graph without shuffles is not looked at: the flow is empty."""
    waited_for = {name[1:] for node in graph.graph_def.node for name in node.input if name.startswith("^")}
    waiting = {node.name for node in graph.graph_def.node if any(name.startswith("^") for name in node.input)}
    kept_as_they_are = graph.outputs | graph.loop_body | waited_for | waiting
    candidates = [_shuffle(graph, node) for node in graph.graph_def.node if node.op == "Reshape"]
    candidates = [nodes for nodes in candidates if kept_as_they_are.isdisjoint(node.name for node in nodes)]
    shapes = _feature_maps(graph) if any(candidates) else {}
    shuffles = {nodes[-1].name: nodes for nodes in candidates if nodes and _keeps_pixels(graph, nodes, shapes)}
    if not shuffles:
        return ChannelFlow({}, (), ())
    inner = {node.name for first, middle, _ in shuffles.values() for node in (first, middle)}
    makes: dict[str, list[str]] = defaultdict(list)
    for tensor in shapes:
        makes[node_name(tensor)].append(tensor)
    channels: dict[str, Channels] = {}
    origin: dict[str, Channels] = {}
    readers = []
    for node in _in_topological_order(graph):
        if node.name in inner or node.op == "Const":
            continue
        moved, reader = None, Reader(node)
        if node.name not in kept_as_they_are:
            if node.name in shuffles:
                moved = [_shuffled(graph, shuffles[node.name][0], channels)]
            else:
                moved = _moved(graph, node, channels)
                reader = _reader(graph, node, channels, origin)
        if moved and all(moved):
            channels.update({_output(node, index): part for index, part in enumerate(moved)})
            continue
        outputs = tuple(makes[node.name])
        channels.update({name: tuple((name, index) for index in range(shapes[name][3])) for name in outputs})
        if reader.order is Order.KEPT:
            read = channels[tensor_name(node.input[reader.data[0]])]
            if len(channels.get(node.name, ())) == len(read):
                origin[node.name] = _origin(read, channels, origin)
            else:
                reader = Reader(node)
        readers.append(replace(reader, outputs=outputs))
    return ChannelFlow(channels, readers, tuple(shuffles))


def _feature_maps(graph: GraphView) -> dict[str, Shape]:
    imported = tf.Graph()
    with imported.as_default():
        tf.import_graph_def(graph.graph_def, name="")
    return {
        tensor_name(tensor.name): tuple(tensor.shape)
        for operation in imported.get_operations()
        for tensor in operation.outputs
        if operation.type != "Const" and tensor.dtype == tf.float32 and tensor.shape.rank == 4 and tensor.shape[3]
    }


def _in_topological_order(graph: GraphView) -> Iterator[NodeDef]:
    before = {
        name: [source for source in map(node_name, node.input) if graph.nodes[source].op != "NextIteration"]
        for name, node in graph.nodes.items()
    }
    return map(graph.nodes.__getitem__, TopologicalSorter(before).static_order())


def _output(node: NodeDef, index: int) -> str:
    return f"{node.name}:{index}" if index else str(node.name)


def _origin(read: Channels, channels: Mapping[str, Channels], origin: Mapping[str, Channels]) -> Channels:
    """The channels whose order these follow: a tensor and its functions are in one order, parts of them need not be."""
    tensor = read[0][0]
    if {tensor} != {name for name, _ in read} or len(read) != len(channels[tensor]):
        return read
    return _pick(origin.get(tensor, channels[tensor]), [index for _, index in read])


def _pick(channels: Channels, picks: Sequence[int]) -> Channels:
    return tuple(channels[pick] for pick in picks)


def _shuffle(graph: GraphView, last: NodeDef) -> tuple[NodeDef, ...]:
    """The nodes of a shuffle that ends with this Reshape: into groups, two axes swapped, back; empty for any other."""
    middle = graph.nodes[node_name(last.input[0])]
    first = graph.nodes[node_name(middle.input[0])] if middle.op == "Transpose" else middle
    if first.op != "Reshape" or graph.only_consumer(first.name) != middle or graph.only_consumer(middle.name) != last:
        return ()
    split, permutation = graph.constant(first.input[1]), graph.constant(middle.input[1])
    if split is None or permutation is None or split.size < 2 or min(split[-2:]) < 1:
        return ()
    *leading, before_last, final = range(permutation.size)
    return (first, middle, last) if permutation.tolist() == [*leading, final, before_last] else ()


def _keeps_pixels(graph: GraphView, shuffle: Sequence[NodeDef], shapes: Mapping[str, Shape]) -> bool:
    """Whether rows, columns and channels are the same before and after, so that each pixel stays where it is."""
    first, _, last = shuffle
    before, after = shapes.get(tensor_name(first.input[0])), shapes.get(last.name)
    if before is None or after is None or None in before[1:] or before[1:] != after[1:]:
        return False
    return bool(np.prod(np.asarray(graph.constant(first.input[1]))[-2:]) == before[3])


def _shuffled(graph: GraphView, first: NodeDef, channels: Mapping[str, Channels]) -> Channels:
    whole = channels[tensor_name(first.input[0])]
    groups = np.asarray(graph.constant(first.input[1]))[-2:]
    return _pick(whole, np.arange(len(whole)).reshape(groups).T.ravel().tolist())


def _moved(graph: GraphView, node: NodeDef, channels: Mapping[str, Channels]) -> list[Channels] | None:
    """The channels of each output of a node that only joins or picks channels; None for any other node."""
    inputs = [channels.get(tensor_name(tensor)) for tensor in node.input]
    constants = [graph.constant(tensor) for tensor in node.input]
    match node.op, inputs, constants:
        case "ConcatV2", [*parts, _], [*_, axis] if axis in (3, -1) and all(parts):
            joined = tuple(channel for part in parts if part for channel in part)
            return [joined] if len(set(joined)) == len(joined) else None
        case "Split", [_, tuple(whole)], [axis, _] if axis in (3, -1):
            return _cut(whole, [len(whole) // node.attr["num_split"].i] * node.attr["num_split"].i)
        case "SplitV", [tuple(whole), *_], [_, np.ndarray() as sizes, axis] if axis in (3, -1):
            rest = len(whole) - int(sizes[sizes >= 0].sum())
            return _cut(whole, [rest if size < 0 else int(size) for size in sizes])
        case "Slice", [tuple(whole), *_], [_, np.ndarray() as begin, np.ndarray() as size]:
            if not begin[:3].any() and (size[:3] == -1).all():
                return [whole[begin[3] :] if size[3] < 0 else whole[begin[3] : begin[3] + size[3]]]
        case "StridedSlice", [tuple(whole), *_], [_, np.ndarray(), np.ndarray(), np.ndarray()]:
            return _strided_slice(graph, node, whole)
    return None


def _cut(whole: Channels, sizes: Sequence[int]) -> list[Channels]:
    ends = np.cumsum(sizes).tolist()
    return [whole[end - size : end] for size, end in zip(sizes, ends, strict=True)]


def _strided_slice(graph: GraphView, node: NodeDef, whole: Channels) -> list[Channels] | None:
    begin, end, stride = (np.asarray(graph.constant(tensor)).tolist() for tensor in node.input[1:4])
    masks = {name: node.attr[f"{name}_mask"].i for name in ("begin", "end", "ellipsis", "new_axis", "shrink_axis")}
    spelled_out = len(begin) == 4 and masks["ellipsis"] == 0 and masks["begin"] & masks["end"] & 7 == 7
    if masks["new_axis"] or masks["shrink_axis"] or not (spelled_out or (len(begin) == 2 and masks["ellipsis"] == 1)):
        return None
    if spelled_out and stride[:3] != [1, 1, 1]:
        return None
    last = len(begin) - 1
    first = None if masks["begin"] >> last & 1 else begin[last]
    return [whole[first : None if masks["end"] >> last & 1 else end[last] : stride[last]]]


def _reader(
    graph: GraphView, node: NodeDef, channels: Mapping[str, Channels], origin: Mapping[str, Channels]
) -> Reader:
    """What a node that is free to be changed makes of the order of its channels."""
    data = tuple(index for index, tensor in enumerate(node.input) if tensor_name(tensor) in channels)
    if not data or node.attr["data_format"].s not in (b"", b"NHWC"):
        return Reader(node)
    read = [channels[tensor_name(node.input[index])] for index in data]
    if node.op == "Shape":
        return Reader(node, Order.FREE, data)
    if node.op in ("Conv2D", "DepthwiseConv2dNative"):
        return _convolution(graph, node, len(read[0]))
    if node.op in ELEMENTWISE_OPS and len({_origin(each, channels, origin) for each in read}) == 1:
        return _elementwise(graph, node, data, len(read[0]))
    return Reader(node, Order.KEPT, (0,)) if _is_spatial(graph, node) else Reader(node)


def _convolution(graph: GraphView, node: NodeDef, width: int) -> Reader:
    weights = graph.constant(node.input[1])
    if weights is not None and weights.shape[2] == width:
        if node.op == "Conv2D":
            return Reader(node, Order.FREE, (0,), ((1, 2),))
        if weights.shape[3] == 1:
            return Reader(node, Order.KEPT, (0,), ((1, 2),))
    return Reader(node)


def _elementwise(graph: GraphView, node: NodeDef, data: tuple[int, ...], width: int) -> Reader:
    per_channel = []
    for index, tensor in enumerate(node.input):
        if index not in data:
            value = graph.constant(tensor)
            if value is None or value.ndim > 4 or (value.ndim and value.shape[-1] not in (1, width)):
                return Reader(node)
            if value.ndim and value.shape[-1] > 1:
                per_channel.append((index, -1))
    return Reader(node, Order.KEPT, data, tuple(per_channel))


def _is_spatial(graph: GraphView, node: NodeDef) -> bool:
    """Whether rows and columns are padded, pooled or resized, and channels are not."""
    if node.op in PAD_OPS:
        amounts = graph.constant(node.input[1])
        return amounts is not None and not amounts[3].any()
    return node.op in SPATIAL_OPS and {*node.attr["ksize"].list.i[3:], *node.attr["strides"].list.i[3:]} <= {1}
