"""The ops that join, pick or shuffle channels, and what they make of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tensorflow.core.framework.node_def_pb2 import NodeDef

from tuner.model.graph_view import GraphView, node_name, tensor_name

# A channel by the tensor that holds it, in that tensor's original order.
Channel = tuple[str, int]
Channels = tuple[Channel, ...]
# [batch, rows, columns, channels]; None where unknown, which the channels are not.
Shape = tuple[Any, ...]


def pick(channels: Channels, picks: Sequence[int]) -> Channels:
    """The channels at some places, in the order of the places."""
    return tuple(channels[pick] for pick in picks)


def find_shuffle(graph: GraphView, last: NodeDef) -> tuple[NodeDef, ...]:
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


def keeps_pixels(graph: GraphView, shuffle: Sequence[NodeDef], shapes: Mapping[str, Shape]) -> bool:
    """Whether rows, columns and channels are the same before and after, so that each pixel stays where it is."""
    first, _, last = shuffle
    before, after = shapes.get(tensor_name(first.input[0])), shapes.get(last.name)
    if before is None or after is None or None in before[1:] or before[1:] != after[1:]:
        return False
    return bool(np.prod(np.asarray(graph.constant(first.input[1]))[-2:]) == before[3])


def shuffled(graph: GraphView, first: NodeDef, channels: Mapping[str, Channels]) -> Channels:
    """What the shuffle that begins with the Reshape `first` makes of its input's channels."""
    whole = channels[tensor_name(first.input[0])]
    groups = np.asarray(graph.constant(first.input[1]))[-2:]
    return pick(whole, np.arange(len(whole)).reshape(groups).T.ravel().tolist())


def moved(graph: GraphView, node: NodeDef, channels: Mapping[str, Channels]) -> list[Channels] | None:
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
