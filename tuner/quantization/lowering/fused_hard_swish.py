"""A convolution, its bias and x * relu6(x + 3) / 6 as one oneDNN kernel, where Grappler leaves four ops more."""

from collections.abc import Collection

import numpy as np
import tensorflow as tf
from tensorflow.core.framework.node_def_pb2 import NodeDef

from tuner.model.graph_view import GraphView, node_name, tensor_name
from tuner.model.nodes import Attribute, op_node

FUSED_OPS = {
    "Conv2D": "_MklNativeFusedConv2D",
    "DepthwiseConv2dNative": "_MklNativeFusedDepthwiseConv2dNative",
}


def fuse_hard_swish(graph: GraphView, ops: Collection[str]) -> GraphView:
    """Write those of the convolutions `ops` that end in a hard-swish as fused kernels, which keep the ops' names.

    Left alone: a convolution without a constant bias, and one of whose intermediate values something else reads.
    """
    removed: set[str] = set()
    added: list[NodeDef] = []
    for op in ops:
        convolution, bias = graph.nodes[op], graph.only_consumer(op)
        if convolution.op not in FUSED_OPS or bias is None or bias.op != "BiasAdd":
            continue
        members = _hard_swish(graph, bias.name)
        if members:
            removed.update((op, bias.name, *members))
            added.append(_fused_node(convolution, bias.input[1]))
            added.append(op_node("Identity", members[-1], [op], T=tf.DType(convolution.attr["T"].type)))
    return graph.replace(removed, added) if added else graph


def _hard_swish(graph: GraphView, x: str) -> list[str]:
    """The nodes of the hard-swish of `x`, the one with its value last; none where `x` is read in any other way."""
    shifted = [node for node in graph.consumers(x) if node.op in ("Add", "AddV2") and _factor(graph, node, x) == 3]
    clipped = graph.only_consumer(shifted[0].name) if len(shifted) == 1 else None
    if clipped is None or clipped.op != "Relu6":
        return []
    # Each value as x**a * relu6(x + 3)**b * factor: (a, b, factor). The products may come in any order.
    values = {x: (1, 0, 1.0), clipped.name: (0, 1, 1.0)}
    members = [shifted[0].name, clipped.name]
    pending = [x, clipped.name]
    while pending:
        for node in graph.consumers(pending.pop()):
            read = [tensor_name(tensor) for tensor in node.input]
            if node.op != "Mul" or node.name in values or len(read) != 2:
                continue
            terms = [values.get(tensor) or _constant_term(graph, tensor) for tensor in read]
            first, second = terms
            if first is None or second is None:
                continue
            values[node.name] = a, b, factor = (first[0] + second[0], first[1] + second[1], first[2] * second[2])
            members.append(node.name)
            if (a, b) == (1, 1) and np.isclose(factor, 1 / 6, rtol=1e-3):
                inside = {x, *members[:-1]}
                closed = all(node.name in members for name in inside for node in graph.consumers(name))
                return members if closed and not inside & graph.outputs else []
            pending.append(node.name)
    return []


def _constant_term(graph: GraphView, tensor: str) -> tuple[int, int, float] | None:
    value = graph.constant(tensor)
    return None if value is None or value.size != 1 else (0, 0, float(value.reshape(())))


def _factor(graph: GraphView, node: NodeDef, x: str) -> float | None:
    """The constant number that `node` combines with `x`."""
    for tensor in node.input:
        if node_name(tensor) != x:
            term = _constant_term(graph, tensor)
            return None if term is None else term[2]
    return None


def _fused_node(convolution: NodeDef, bias: str) -> NodeDef:
    dtype = tf.DType(convolution.attr["T"].type)
    attributes: dict[str, Attribute] = {
        "T": dtype,
        "num_args": 1,
        "strides": list(convolution.attr["strides"].list.i),
        "padding": convolution.attr["padding"].s.decode(),
        "explicit_paddings": list(convolution.attr["explicit_paddings"].list.i),
        "dilations": list(convolution.attr["dilations"].list.i) or [1, 1, 1, 1],
        "data_format": convolution.attr["data_format"].s.decode() or "NHWC",
        "fused_ops": ["BiasAdd", "_FusedHardSwish"],
        "is_filter_const": True,
        # The label under which TensorFlow registers these kernels, and asks for them when it writes such nodes itself.
        "_kernel": "MklNameChangeOp",
    }
    if convolution.op == "Conv2D":
        attributes["TArgs"] = [dtype]
    return op_node(FUSED_OPS[convolution.op], convolution.name, [*convolution.input[:2], bias], **attributes)
