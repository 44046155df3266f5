"""BatchNorm with constant statistics is an affine map per channel: it goes into the convolution before it."""

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.core.framework.node_def_pb2 import NodeDef

from tuner.model.graph_view import GraphView, node_name, tensor_name
from tuner.quantization.nodes import const_node, op_node

BATCH_NORM_OPS = ("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3")
CONVOLUTION_OPS = ("Conv2D", "DepthwiseConv2dNative")


def fold_batch_norm(graph: GraphView) -> GraphView:
    """Fold FusedBatchNorm into the convolution before it: w' = w * k, b' = (b - m) * k + beta, k = g / sqrt(v + eps).

    The convolution keeps its name; a BiasAdd takes the batch norm's name, so nothing downstream changes.
    Left alone: a batch norm in training mode, one whose convolution has another consumer, and one whose weights or
    statistics are not float32 constants.
    """
    removed: set[str] = set()
    added: list[NodeDef] = []
    for batch_norm in graph.graph_def.node:
        if batch_norm.op in BATCH_NORM_OPS:
            folded = _fold_one(graph, batch_norm)
            if folded is not None:
                removed.update(folded[0])
                added.extend(folded[1])
    return graph.replace(removed, added)


def _fold_one(graph: GraphView, batch_norm: NodeDef) -> tuple[list[str], list[NodeDef]] | None:
    before: NodeDef = graph.nodes[node_name(batch_norm.input[0])]
    convolution: NodeDef = before
    bias: NDArray[np.generic] | None = np.zeros(1)
    if before.op == "BiasAdd":
        bias = graph.constant(before.input[1])
        convolution = graph.nodes[node_name(before.input[0])]
        if graph.only_consumer(convolution.name) != before:
            return None
    if convolution.op not in CONVOLUTION_OPS or graph.only_consumer(before.name) != batch_norm:
        return None
    if batch_norm.attr["is_training"].b or _side_outputs_are_read(graph, batch_norm):
        return None
    weights = graph.constant(convolution.input[1])
    gamma, beta, mean, variance = (graph.constant(tensor) for tensor in batch_norm.input[1:5])
    if weights is None or bias is None or gamma is None or beta is None or mean is None or variance is None:
        return None

    if weights.dtype != np.float32:
        return None
    factor = gamma.astype(np.float64) / np.sqrt(variance.astype(np.float64) + batch_norm.attr["epsilon"].f)
    folded_bias = (bias - mean.astype(np.float64)) * factor + beta
    per_weight = factor.reshape(weights.shape[2:]) if convolution.op == "DepthwiseConv2dNative" else factor

    weights_name, bias_name = f"{convolution.name}/folded_weights", f"{batch_norm.name}/folded_bias"
    new_convolution = NodeDef()
    new_convolution.CopyFrom(convolution)
    new_convolution.input[1] = weights_name
    return [convolution.name, before.name, batch_norm.name], [
        const_node(weights_name, (weights * per_weight).astype(np.float32)),
        const_node(bias_name, folded_bias.astype(np.float32)),
        new_convolution,
        op_node(
            "BiasAdd",
            batch_norm.name,
            [convolution.name, bias_name],
            T=tf.float32,
            data_format=convolution.attr["data_format"].s.decode() or "NHWC",
        ),
    ]


def _side_outputs_are_read(graph: GraphView, batch_norm: NodeDef) -> bool:
    """Whether anything reads the batch statistics, outputs 1 and up."""
    reads = [tensor for node in graph.consumers(batch_norm.name) for tensor in node.input]
    return any(node_name(read) == batch_norm.name != tensor_name(read) for read in reads)
