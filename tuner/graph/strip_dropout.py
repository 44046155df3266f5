"""Dropout that keeps everything: written into a graph for training, it only takes time in inference."""

import numpy as np
from tensorflow.core.framework.node_def_pb2 import NodeDef

from tuner.graph.map_loop import resolve
from tuner.model.graph_view import GraphView


def strip_dropout(graph: GraphView) -> GraphView:
    """Let a dropout whose rate is the constant 0 hand on its input: it becomes an Identity of the same name.

    Known are the forms of all TensorFlow releases: x / keep * floor(keep + random), x * scale * (random >= rate), and
    select(random >= rate, x * scale, 0). Random ops that are left without a reader go with them.
    """
    changed = []
    for node in graph.graph_def.node:
        kept = _kept(graph, node)
        if kept is not None:
            identity = NodeDef(op="Identity", name=node.name, device=node.device, input=[kept])
            identity.attr["T"].CopyFrom(node.attr["T"])
            changed.append(identity)
    return graph.replace({node.name for node in changed}, changed) if changed else graph


def _kept(graph: GraphView, node: NodeDef) -> str | None:
    """The tensor that dropout would take values from, where it takes none."""
    if node.op == "Mul" and len(node.input) == 2:
        for scaled, mask in (node.input, reversed(node.input)):
            if _is_all_ones(graph, mask):
                return _unscaled(graph, scaled)
    if node.op in ("Select", "SelectV2") and len(node.input) == 3 and _is_never_less(graph, node.input[0]):
        return _unscaled(graph, node.input[1])
    return None


def _is_all_ones(graph: GraphView, tensor: str) -> bool:
    node = resolve(graph, tensor)
    if node.op == "Cast":
        return _is_never_less(graph, node.input[0])
    if node.op == "Floor":
        total = resolve(graph, node.input[0])
        if total.op in ("Add", "AddV2"):
            first, second = total.input[:2]
            return (_equals(graph, first, 1) and _is_random(graph, second)) or (
                _equals(graph, second, 1) and _is_random(graph, first)
            )
    return False


def _is_never_less(graph: GraphView, tensor: str) -> bool:
    """Whether the tensor is random >= 0 of random numbers from 0 to 1."""
    node = resolve(graph, tensor)
    return node.op == "GreaterEqual" and _is_random(graph, node.input[0]) and _equals(graph, node.input[1], 0)


def _is_random(graph: GraphView, tensor: str) -> bool:
    """Whether the tensor is uniform between 0 and 1: TF1 writes the op's result times (1 - 0), plus 0."""
    node = resolve(graph, tensor)
    while node.op in ("Add", "AddV2", "Mul") and _equals(graph, node.input[1], 1 if node.op == "Mul" else 0):
        node = resolve(graph, node.input[0])
    return node.op in ("RandomUniform", "StatelessRandomUniform", "StatelessRandomUniformV2")


def _unscaled(graph: GraphView, tensor: str) -> str:
    """Dropout multiplies what it keeps by 1 / (1 - rate), here 1."""
    node = resolve(graph, tensor)
    if node.op in ("Mul", "RealDiv") and _equals(graph, node.input[1], 1):
        return str(node.input[0])
    return tensor


def _equals(graph: GraphView, tensor: str, value: float) -> bool:
    constant = graph.constant(tensor)
    return constant is not None and bool(np.all(constant == value)) and constant.size > 0
