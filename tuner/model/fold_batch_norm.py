"""BatchNorm with constant statistics is an affine map per channel: it goes into the convolution before it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.core.framework.node_def_pb2 import NodeDef

from tuner.model.graph_view import GraphView, node_name, tensor_name
from tuner.model.nodes import const_node, op_node

BATCH_NORM_OPS = ("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3")
# The kernel of TensorFlow's first releases; graphs of today's versions cannot have it.
OLD_BATCH_NORM_OP = "BatchNormWithGlobalNormalization"
CONVOLUTION_OPS = ("Conv2D", "DepthwiseConv2dNative")


@dataclass(frozen=True)
class Affine:
    """y = (x - centre) * factor + offset, each [channels] or [1] float64."""

    centre: NDArray[np.float64]
    factor: NDArray[np.float64]
    offset: NDArray[np.float64]


def fold_batch_norm(graph: GraphView) -> GraphView:
    """Fold BatchNorm into the convolution before it: w' = w * k, b' = (b - m) * k + beta, k = g / sqrt(v + eps).

    The convolution keeps its name; a BiasAdd takes the batch norm's name, so nothing downstream changes.
    Left alone: a batch norm in training mode, one whose convolution has another consumer, and one whose weights or
    statistics are not float32 constants.
    """
    removed: set[str] = set()
    added: list[NodeDef] = []
    for node in graph.graph_def.node:
        if node.op in (*BATCH_NORM_OPS, OLD_BATCH_NORM_OP):
            affine = _affine(graph, node)
            folded = None if affine is None else fold_affine(graph, node.input[0], [node], affine)
            if folded is not None:
                removed.update(folded[0])
                added.extend(folded[1])
    return graph.replace(removed, added)


def fold_affine(
    graph: GraphView, tensor: str, chain: Sequence[NodeDef], affine: Affine
) -> tuple[list[str], list[NodeDef]] | None:
    """What to remove and to add so that a convolution computes what `chain` makes of its result.

    tensor: what the chain reads: the convolution's result, or that of a constant BiasAdd or of the BatchToSpaceND of a
    dilated convolution behind it. chain: nodes of which each is the only reader of the one before. affine: all of them
    together. A BiasAdd takes the name of the last. None where there is no such convolution, it has another reader, is
    in a while loop, or its weights are not float32 constants.
    """
    first, last = chain[0], chain[-1]
    before: NodeDef = graph.nodes[node_name(tensor)]
    removed = [node.name for node in chain]
    # It moves and crops pixels: what is done to each channel can be done before.
    spread = before if before.op == "BatchToSpaceND" else None
    reader = first
    if spread is not None:
        if graph.only_consumer(spread.name) != reader:
            return None
        reader, before = spread, graph.nodes[node_name(spread.input[0])]
    convolution: NodeDef = before
    bias: NDArray[Any] | None = np.zeros(1)
    if before.op == "BiasAdd":
        bias = graph.constant(before.input[1])
        convolution = graph.nodes[node_name(before.input[0])]
        if graph.only_consumer(convolution.name) != before:
            return None
    if convolution.op not in CONVOLUTION_OPS or graph.only_consumer(before.name) != reader:
        return None
    if convolution.name in graph.loop_body:
        return None
    weights: NDArray[Any] | None = graph.constant(convolution.input[1])
    if weights is None or bias is None or weights.dtype != np.float32:
        return None

    factor = affine.factor
    folded_bias = np.broadcast_to(
        (bias - affine.centre) * factor + affine.offset, output_channels(convolution, weights)
    )
    if convolution.op == "DepthwiseConv2dNative" and factor.size > 1:
        factor = factor.reshape(weights.shape[2:])
    weights_name = graph.free_name(f"{convolution.name}/folded_weights")
    bias_name = graph.free_name(f"{last.name}/folded_bias")
    new_convolution = NodeDef()
    new_convolution.CopyFrom(convolution)
    new_convolution.input[1] = weights_name
    added = [
        const_node(weights_name, (weights * factor).astype(np.float32)),
        const_node(bias_name, folded_bias.astype(np.float32)),
        new_convolution,
    ]
    result = convolution.name
    if spread is not None:
        result = spread.name
        if before is not convolution:
            new_spread = NodeDef()
            new_spread.CopyFrom(spread)
            new_spread.input[0] = convolution.name
            added.append(new_spread)
            removed.append(spread.name)
    layout = data_format(convolution)
    added.append(op_node("BiasAdd", last.name, [result, bias_name], T=tf.float32, data_format=layout))
    return [*removed, convolution.name, before.name], added


def output_channels(convolution: NodeDef, weights: NDArray[np.generic]) -> int:
    """The number of channels that a convolution with these weights makes."""
    per_input = convolution.op == "DepthwiseConv2dNative"
    return int(np.prod(weights.shape[2:])) if per_input else int(weights.shape[3])


def data_format(node: NodeDef) -> str:
    """The layout of a node's images, NHWC where it says nothing."""
    return node.attr["data_format"].s.decode() or "NHWC"


def _affine(graph: GraphView, batch_norm: NodeDef) -> Affine | None:
    """What a batch norm does to each channel, or None where that is not constant."""
    if batch_norm.op == OLD_BATCH_NORM_OP:
        mean, variance, beta, gamma = (graph.constant(tensor) for tensor in batch_norm.input[1:5])
        epsilon = batch_norm.attr["variance_epsilon"].f
        if gamma is not None and not batch_norm.attr["scale_after_normalization"].b:
            gamma = np.ones_like(gamma)
    else:
        gamma, beta, mean, variance = (graph.constant(tensor) for tensor in batch_norm.input[1:5])
        epsilon = batch_norm.attr["epsilon"].f
        if batch_norm.attr["is_training"].b or _side_outputs_are_read(graph, batch_norm):
            return None
    if gamma is None or beta is None or mean is None or variance is None:
        return None
    factor = gamma.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
    return Affine(mean.astype(np.float64), factor, beta.astype(np.float64))


def _side_outputs_are_read(graph: GraphView, batch_norm: NodeDef) -> bool:
    """Whether anything reads the batch statistics, outputs 1 and up."""
    reads = [tensor for node in graph.consumers(batch_norm.name) for tensor in node.input]
    return any(node_name(read) == batch_norm.name != tensor_name(read) for read in reads)
