"""BatchNorm taken apart into Mul and Add by constants, and other factors and summands of a convolution's channels."""

import numpy as np
from numpy.typing import NDArray
from tensorflow.core.framework.node_def_pb2 import NodeDef

from tuner.model.fold_batch_norm import CONVOLUTION_OPS, Affine, data_format, fold_affine, output_channels
from tuner.model.graph_view import GraphView

_COMMUTATIVE = ("Mul", "Add", "AddV2")
_OPS = (*_COMMUTATIVE, "Sub", "RealDiv", "BiasAdd")


def fold_scale_and_shift(graph: GraphView) -> GraphView:
    """Fold what multiplies and adds constants to the channels of a convolution into its weights and bias.

    The convolution keeps its name; a BiasAdd takes the name of the last node that is folded. Left alone: a constant
    that is not one number or one for each channel, a result that anything else reads, and a bias that is all there is.
    """
    removed: set[str] = set()
    added: list[NodeDef] = []
    for convolution in graph.graph_def.node:
        weights = graph.constant(convolution.input[1]) if convolution.op in CONVOLUTION_OPS else None
        if weights is None:
            continue
        chain, affine = _chain(graph, convolution, output_channels(convolution, weights))
        folded = (
            fold_affine(graph, chain[0].input[1 - _constant_position(graph, chain[0])], chain, affine)
            if chain
            else None
        )
        if folded is not None:
            removed.update(folded[0])
            added.extend(folded[1])
    return graph.replace(removed, added) if added else graph


def _chain(graph: GraphView, convolution: NodeDef, channels: int) -> tuple[list[NodeDef], Affine]:
    """The nodes that scale and shift the result, first to last, without a BiasAdd at the beginning."""
    zero = np.zeros(1)
    factor, shift = np.ones(1), zero
    chain: list[NodeDef] = []
    node = graph.only_consumer(convolution.name)
    for between in ("BiasAdd", "BatchToSpaceND"):
        if node is not None and node.op == between:
            node = graph.only_consumer(node.name)
    while node is not None and node.op in _OPS and len(node.input) == 2:
        value = _per_channel(graph, node, data_format(convolution), channels)
        if value is None:
            break
        if node.op in ("Mul", "RealDiv"):
            by = value if node.op == "Mul" else 1 / value
            factor, shift = factor * by, shift * by
        else:
            shift = shift - value if node.op == "Sub" else shift + value
        chain.append(node)
        node = graph.only_consumer(node.name)
    return chain, Affine(zero, factor, shift)


def _per_channel(graph: GraphView, node: NodeDef, layout: str, channels: int) -> NDArray[np.float64] | None:
    """[channels] or [1]: the constant of a node, where it is one number or one for each channel of images, or None."""
    position = _constant_position(graph, node)
    value = graph.constant(node.input[position])
    if value is None or value.ndim > 4 or value.dtype != np.float32:
        return None
    if (position == 0 and node.op not in _COMMUTATIVE) or (node.op == "RealDiv" and not value.all()):
        return None
    if value.size > 1:
        axis = 1 if layout == "NCHW" and node.op != "BiasAdd" else 3
        padded = value.reshape((1,) * (4 - value.ndim) + value.shape)
        if padded.shape != tuple(channels if index == axis else 1 for index in range(4)):
            return None
    return value.reshape(-1).astype(np.float64)


def _constant_position(graph: GraphView, node: NodeDef) -> int:
    return 1 if graph.constant(node.input[0]) is None else 0
