"""Ops that move or select values without computing: 8-bit codes go through them as they are, channel by channel."""

from collections.abc import Callable
from dataclasses import dataclass
from types import EllipsisType

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.core.framework.node_def_pb2 import NodeDef

from tuner.model.graph_view import GraphView, node_name, tensor_name
from tuner.quantization.lowering.carriers import takes

# Codes are moved as plain integers.
PLAIN_TYPES = {tf.quint8: tf.uint8, tf.qint8: tf.int8}

# Of StridedSlice, a bit for each part of the index.
MASKS = ("ellipsis", "new_axis", "shrink_axis", "begin", "end")


@dataclass(frozen=True)
class Carrier:
    """A node that carries codes. positions: which of its inputs are data; the others are sizes, axes and the like.

    sizes: the number of channels of each output where it divides them, else empty.
    kept: the channels that its output has, None for all. repeats: how many times it has them, one series after another.
    """

    node: NodeDef
    positions: tuple[int, ...]
    sizes: tuple[int, ...] = ()
    kept: slice | None = None
    repeats: int = 1

    @property
    def inputs(self) -> tuple[str, ...]:
        """The data tensors, in canonical spelling."""
        return tuple(tensor_name(self.node.input[position]) for position in self.positions)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The tensors that it makes, in canonical spelling."""
        name = str(self.node.name)
        return (name, *(f"{name}:{index}" for index in range(1, len(self.sizes))))

    def copy_on(self, tensors: dict[str, str], suffix: str) -> NodeDef:
        """The op under its name and `suffix`, on other tensors in the place of its data.

        tensors: what stands for each tensor, by its name; what the copy makes is added.
        """
        node = NodeDef()
        node.CopyFrom(self.node)
        node.name += suffix
        for position, read in zip(self.positions, self.inputs, strict=True):
            node.input[position] = tensors[read]
        for index, output in enumerate(self.outputs):
            tensors[output] = f"{node.name}:{index}" if index else node.name
        return node

    def parts(self, channels: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """The channels of each output, given those of all inputs one after the other."""
        if self.sizes:
            return np.split(channels, np.cumsum(self.sizes)[:-1])
        return [np.tile(channels[self.kept or slice(None)], self.repeats)]


def find_carrier(graph: GraphView, tensor: str) -> Carrier | None:
    """The carrier that makes a tensor, or None where it is made by another op or in a way that mixes channels."""
    node = graph.nodes.get(node_name(tensor))
    if node is None or node.name in graph.loop_body or not node.input or node.input[-1].startswith("^"):
        return None
    found = _FORMS.get(node.op)
    return (
        found(graph, node)
        if found is not None and all(takes(node.op, dtype) for dtype in PLAIN_TYPES.values())
        else None
    )


def _moved(graph: GraphView, node: NodeDef) -> Carrier | None:
    return Carrier(node, (0,))


def _padded(graph: GraphView, node: NodeDef) -> Carrier | None:
    amounts = graph.constant(node.input[1])
    keeps_channels = amounts is not None and not amounts[-1:].any()
    return Carrier(node, (0,)) if keeps_channels else None


def _blocked(graph: GraphView, node: NodeDef) -> Carrier | None:
    # The block has a size for each axis behind the batch's, and may have one for the channels' too.
    for axes in graph.shape(node_name(node.input[1])):
        if axes is not None and axes + 1 < len(graph.shape(node.name)):
            return Carrier(node, (0,))
    return None


def _pooled(graph: GraphView, node: NodeDef) -> Carrier | None:
    attributes = node.attr
    is_plain = attributes["padding"].s in (b"SAME", b"VALID") and attributes["data_format"].s in (b"NHWC", b"")
    is_apart = list(attributes["ksize"].list.i)[3:] == [1] and list(attributes["strides"].list.i)[3:] == [1]
    return Carrier(node, (0,)) if is_plain and is_apart else None


def _joined(graph: GraphView, node: NodeDef) -> Carrier | None:
    return Carrier(node, tuple(range(len(node.input) - 1))) if _is_last_axis(graph, node, node.input[-1]) else None


def _split(graph: GraphView, node: NodeDef) -> Carrier | None:
    sizes = graph.constant(node.input[1])
    if sizes is None or min(sizes.tolist(), default=0) < 1 or not _is_last_axis(graph, node, node.input[2]):
        return None
    return Carrier(node, (0,), tuple(map(int, sizes)))


def _split_evenly(graph: GraphView, node: NodeDef) -> Carrier | None:
    data, count = tensor_name(node.input[1]), int(node.attr["num_split"].i)
    # Shapes are known of first results only, and those of a SplitV differ.
    channels = () if ":" in data else graph.shape(data)[-1:]
    if not channels or channels[0] is None or not _is_last_axis(graph, node, node.input[0]):
        return None
    return Carrier(node, (1,), (channels[0] // count,) * count)


def _sliced(graph: GraphView, node: NodeDef) -> Carrier | None:
    begin, size = graph.constant(node.input[1]), graph.constant(node.input[2])
    if begin is None or size is None or not _channels(graph, node.name):
        return None
    first, count = int(begin[-1]), int(size[-1])
    return Carrier(node, (0,), kept=slice(first, None if count == -1 else first + count))


def _sliced_in_steps(graph: GraphView, node: NodeDef) -> Carrier | None:
    begin, end, step = (graph.constant(tensor) for tensor in node.input[1:])
    rank = len(graph.shape(node_name(node.input[0])))
    if begin is None or end is None or step is None or not rank or not _channels(graph, node.name):
        return None
    # As Python has it in x[..., None, 0, 1:2:3]: tensorflow.org/api_docs/python/tf/strided_slice.
    index: list[EllipsisType | slice | int | None] = []
    for place in range(len(begin)):
        ellipsis, new, one, no_begin, no_end = (int(node.attr[f"{mask}_mask"].i) >> place & 1 for mask in MASKS)
        span = slice(None if no_begin else int(begin[place]), None if no_end else int(end[place]), int(step[place]))
        index.append(... if ellipsis else None if new else 0 if one else span)
    if ... not in index:
        index.append(...)
    if sum(part is not None for part in index) > rank:
        index.remove(...)
    last = index[-1]
    if last is ...:
        return Carrier(node, (0,))
    return Carrier(node, (0,), kept=last) if isinstance(last, slice) else None


def _reshaped(graph: GraphView, node: NodeDef) -> Carrier | None:
    data = tensor_name(node.input[0])
    # Shapes are known of first results only, which all carriers have but Split and SplitV.
    before, after = 0 if ":" in data else _channels(graph, data), _channels(graph, node.name)
    # Values keep their order, so whichever axes there are, channels go round and round in it.
    return Carrier(node, (0,), repeats=after // before) if before and after and after % before == 0 else None


def _blocks_to_channels(graph: GraphView, node: NodeDef) -> Carrier | None:
    # DepthToSpace, the other way, makes one channel of several with scales of their own.
    is_plain = node.attr["data_format"].s in (b"NHWC", b"")
    return Carrier(node, (0,), repeats=int(node.attr["block_size"].i) ** 2) if is_plain else None


def _channels(graph: GraphView, name: str) -> int:
    """The length of the last axis of a node's first result, 0 where it is not known."""
    return (graph.shape(name)[-1:] or (None,))[0] or 0


def _is_last_axis(graph: GraphView, node: NodeDef, tensor: str) -> bool:
    """Whether an axis of what a node makes is the last one, that of channels."""
    axis = graph.constant(tensor)
    return axis is not None and axis.size == 1 and int(axis.reshape(())) in (-1, len(graph.shape(node.name)) - 1)


_FORMS: dict[str, Callable[[GraphView, NodeDef], Carrier | None]] = {
    **dict.fromkeys(("Identity", "ResizeNearestNeighbor"), _moved),
    **dict.fromkeys(("SpaceToBatchND", "BatchToSpaceND"), _blocked),
    **dict.fromkeys(("Pad", "MirrorPad"), _padded),
    **dict.fromkeys(("Reshape", "Squeeze", "ExpandDims"), _reshaped),
    "SpaceToDepth": _blocks_to_channels,
    "MaxPool": _pooled,
    "Slice": _sliced,
    "StridedSlice": _sliced_in_steps,
    "ConcatV2": _joined,
    "SplitV": _split,
    "Split": _split_evenly,
}
