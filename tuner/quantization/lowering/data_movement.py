"""Ops that move or select values without computing: 8-bit codes go through them as they are, channel by channel."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tensorflow.core.framework.node_def_pb2 import NodeDef

from tuner.model.graph_view import GraphView, node_name, tensor_name


@dataclass(frozen=True)
class Carrier:
    """A node that carries codes. positions: which of its inputs are data; the others are sizes, axes and the like.

    sizes: the number of channels of each output where it divides them, else empty.
    """

    node: NodeDef
    positions: tuple[int, ...]
    sizes: tuple[int, ...] = ()

    @property
    def inputs(self) -> tuple[str, ...]:
        """The data tensors, in canonical spelling."""
        return tuple(tensor_name(self.node.input[position]) for position in self.positions)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The tensors that it makes, in canonical spelling."""
        name = str(self.node.name)
        return (name, *(f"{name}:{index}" for index in range(1, len(self.sizes))))

    def parts(self, channels: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """The channels of each output, given those of all inputs one after the other."""
        return np.split(channels, np.cumsum(self.sizes)[:-1]) if self.sizes else [channels]


def find_carrier(graph: GraphView, tensor: str) -> Carrier | None:
    """The carrier that makes a tensor, or None where it is made by another op or in a way that mixes channels."""
    node = graph.nodes.get(node_name(tensor))
    if node is None or node.name in graph.loop_body or not node.input or node.input[-1].startswith("^"):
        return None
    if node.op in ("Identity", "MaxPool"):
        return _moves(node) if node.op == "Identity" or _pools_rows_and_columns(node) else None
    if node.op in ("ResizeNearestNeighbor", "SpaceToBatchND", "BatchToSpaceND"):
        return _moves(node)
    if node.op in ("Pad", "MirrorPad"):
        amounts = graph.constant(node.input[1])
        keeps_channels = amounts is not None and amounts.shape == (4, 2) and not amounts[3].any()
        return _moves(node) if keeps_channels else None
    if node.op == "ConcatV2":
        return Carrier(node, tuple(range(len(node.input) - 1))) if _is_last_axis(graph, node.input[-1]) else None
    if node.op == "SplitV":
        sizes = graph.constant(node.input[1])
        if sizes is None or min(sizes.tolist(), default=0) < 0 or not _is_last_axis(graph, node.input[2]):
            return None
        return Carrier(node, (0,), tuple(map(int, sizes)))
    return None


def _moves(node: NodeDef) -> Carrier:
    return Carrier(node, (0,))


def _pools_rows_and_columns(node: NodeDef) -> bool:
    layout = node.attr["data_format"].s.decode() or "NHWC"
    if node.attr["padding"].s not in (b"SAME", b"VALID"):
        return False
    return layout == "NHWC" and _is_one(node.attr["ksize"].list.i[3:]) and _is_one(node.attr["strides"].list.i[3:])


def _is_one(values: Sequence[int]) -> bool:
    return list(values) == [1]


def _is_last_axis(graph: GraphView, tensor: str) -> bool:
    """Whether an axis is the channels' one, of the four axes of images."""
    axis = graph.constant(tensor)
    return axis is not None and axis.size == 1 and int(axis.reshape(())) in (-1, 3)
