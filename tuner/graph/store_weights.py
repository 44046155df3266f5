"""Weights kept as 8-bit integers and computed with as floats: a small file that any TensorFlow on any CPU can run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.core.framework.node_def_pb2 import NodeDef

from tuner.model.graph_view import GraphView, node_name, tensor_name
from tuner.model.nodes import const_node, op_node

# The input that holds weights, and the axes of its channels: those that one scale each is kept for.
_WEIGHTS = {
    "Conv2D": (1, (3,)),
    "DepthwiseConv2dNative": (1, (2, 3)),
    "Conv2DBackpropInput": (1, (2,)),
    "Conv3D": (1, (4,)),
    "MatMul": (1, (1,)),
    "BatchMatMul": (1, (-1,)),
    "BatchMatMulV2": (1, (-1,)),
}
_TRANSPOSED = {"MatMul": "transpose_b", "BatchMatMul": "adj_y", "BatchMatMulV2": "adj_y"}

HIGHEST_CODE = 127
# What two more nodes and a constant take in a file.
_NODES_BYTES = 400


@dataclass(frozen=True)
class StoredWeights:
    """A graph whose weights are stored in 8 bits.

    tensors, values: how many weight tensors, and numbers in them. kept_float: weight tensors that stay as they are.
    largest_error: of a weight, as a share of the largest of its tensor, at `worst`; 0.0 and "" without tensors.
    """

    graph: GraphView
    tensors: int
    values: int
    kept_float: int
    largest_error: float
    worst: str


def store_weights_in_8_bits(graph: GraphView) -> StoredWeights:
    """Store the weights of convolutions and matrix products as int8, times one float scale for each output channel.

    Symmetric: scale = max |w| / 127 of the channel, code = round(w / scale), 0 is exact and no weight is off by more
    than half a scale. A constant becomes int8 Const -> Cast -> Mul, which has the constant's name. Left alone: weights
    that take less room as they are, that something else reads too, that wait for a control input, or that are not
    finite float32. No other constant is touched: anchors and sizes are exact for a reason.
    """
    removed: list[str] = []
    added: list[NodeDef] = []
    values, kept_float, largest_error, worst = 0, 0, 0.0, ""
    for node in graph.graph_def.node:
        readers = _readers(graph, node) if node.op == "Const" else []
        axes = {_channel_axes(reader, position) for reader, position in readers}
        if axes <= {None}:
            continue
        weights: NDArray[Any] | None = graph.constant(node.name)
        axis = next(iter(axes))
        if weights is None or axis is None or len(axes) > 1 or not _can_store(graph, node, weights):
            kept_float += 1
            continue
        codes, scales = _codes(weights, axis)
        if codes.nbytes + scales.nbytes + _NODES_BYTES >= weights.nbytes:
            kept_float += 1
            continue
        removed.append(node.name)
        added += _nodes(node.name, codes, scales)
        values += weights.size
        error = float(np.abs(codes * scales - weights).max() / max(np.abs(weights).max(), np.finfo(np.float32).tiny))
        if error > largest_error:
            largest_error, worst = error, node.name
    stored = graph.replace(removed, added) if removed else graph
    return StoredWeights(stored, len(removed), values, kept_float, largest_error, worst)


def find_stored_weights(graph: GraphView) -> dict[str, NDArray[np.int8]]:
    """What `store_weights_in_8_bits` wrote: the Mul that gives weights, by its name, and its codes."""
    found = {}
    for node in graph.graph_def.node:
        if node.op == "Mul" and len(node.input) == 2:
            cast = graph.nodes[node_name(node.input[0])]
            codes = graph.constant(cast.input[0]) if cast.op == "Cast" else None
            if codes is not None and codes.dtype == np.int8 and graph.constant(node.input[1]) is not None:
                found[node.name] = codes.astype(np.int8, copy=False)
    return found


def _readers(graph: GraphView, node: NodeDef) -> list[tuple[NodeDef, int]]:
    """Who reads a constant, directly or through Identity nodes, and as which of its inputs."""
    found = []
    pending = [node]
    while pending:
        name = pending.pop().name
        for reader in graph.consumers(name):
            if reader.op == "Identity" and reader.name not in graph.outputs:
                pending.append(reader)
            else:
                found += [(reader, index) for index, tensor in enumerate(reader.input) if tensor_name(tensor) == name]
    return found


def _channel_axes(reader: NodeDef, position: int) -> tuple[int, ...] | None:
    """The axes of the channels of an op's weights, or None where the input holds something else."""
    index, axes = _WEIGHTS.get(reader.op, (-1, ()))
    if position != index:
        return None
    transposed = _TRANSPOSED.get(reader.op)
    if transposed is not None and reader.attr[transposed].b:
        return tuple(-2 if axis == -1 else 0 for axis in axes)
    return axes


def _can_store(graph: GraphView, node: NodeDef, weights: NDArray[Any]) -> bool:
    is_finite = weights.dtype == np.float32 and weights.size > 0 and bool(np.isfinite(weights).all())
    return is_finite and weights.ndim >= 2 and not node.input and node.name not in graph.outputs


def _codes(weights: NDArray[Any], axes: Sequence[int]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes in the shape of the weights, and scales that are broadcast to it."""
    channel_axes = {axis % weights.ndim for axis in axes}
    others = tuple(axis for axis in range(weights.ndim) if axis not in channel_axes)
    scales = (np.abs(weights).max(others, keepdims=True) / HIGHEST_CODE).astype(np.float32)
    codes = np.rint(weights / np.where(scales > 0, scales, 1))
    return np.clip(codes, -HIGHEST_CODE, HIGHEST_CODE).astype(np.int8), scales


def _nodes(name: str, codes: NDArray[np.int8], scales: NDArray[np.float32]) -> list[NodeDef]:
    return [
        const_node(f"{name}/codes", codes),
        op_node("Cast", f"{name}/as_float", [f"{name}/codes"], SrcT=tf.int8, DstT=tf.float32, Truncate=False),
        const_node(f"{name}/scales", scales),
        op_node("Mul", name, [f"{name}/as_float", f"{name}/scales"], T=tf.float32),
    ]
