"""Pad before a depthwise convolution: the convolution can pad by itself, without writing the padded tensor."""

from collections.abc import Collection

import numpy as np
from tensorflow.core.framework.node_def_pb2 import NodeDef

from tuner.model.graph_view import GraphView, node_name
from tuner.model.nodes import const_node


def fold_padding(graph: GraphView, ops: Collection[str]) -> GraphView:
    """Let those of the depthwise convolutions `ops` that read a Pad of half their kernel's size pad with SAME.

    With stride 1 that is the same thing. With stride 2, SAME pads one less in front where the size is even; a kernel
    that is wider by a row and a column of zeros at the end makes it the same for every size.
    Left alone: other paddings, strides and dilations. TensorFlow itself fuses Pad with Conv2D.
    """
    removed: list[str] = []
    added: list[NodeDef] = []
    for op in ops:
        nodes = _padding_by_itself(graph, graph.nodes[op])
        if nodes:
            removed.append(op)
            added += nodes
    return graph.replace(removed, added) if added else graph


def _padding_by_itself(graph: GraphView, convolution: NodeDef) -> list[NodeDef]:
    """The convolution with its new weights, or nothing where the Pad before it has to stay."""
    pad = graph.nodes[node_name(convolution.input[0])]
    weights = graph.constant(convolution.input[1])
    attributes = convolution.attr
    strides, dilations = list(attributes["strides"].list.i), list(attributes["dilations"].list.i)
    if (
        convolution.op != "DepthwiseConv2dNative"
        or pad.op != "Pad"
        or attributes["padding"].s != b"VALID"
        or attributes["data_format"].s not in (b"NHWC", b"")
        or strides not in ([1, 1, 1, 1], [1, 2, 2, 1])
        or dilations not in ([], [1, 1, 1, 1])
        or weights is None
        or weights.shape[0] != weights.shape[1]
        or weights.shape[0] % 2 == 0
    ):
        return []
    half = weights.shape[0] // 2
    sizes = graph.constant(pad.input[1])
    if sizes is None or not np.array_equal(sizes, [[0, 0], [half, half], [half, half], [0, 0]]):
        return []
    changed = NodeDef()
    changed.CopyFrom(convolution)
    changed.input[0] = pad.input[0]
    changed.attr["padding"].s = b"SAME"
    if strides[1] == 1:
        return [changed]
    changed.input[1] = f"{convolution.name}/wider_weights"
    return [changed, const_node(changed.input[1], np.pad(weights, [(0, 1), (0, 1), (0, 0), (0, 0)]))]
