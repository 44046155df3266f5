"""Nodes that compute the same from the same are computed once."""

import hashlib
from collections.abc import Mapping

from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.python.framework import op_def_registry

from tuner.model.graph_view import GraphView, node_name, tensor_name

# They belong to one place each, by their name or by what is done to them later.
_NOT_MERGED = (
    *("Placeholder", "NoOp", "Enter", "RefEnter", "Exit", "RefExit", "Switch", "Merge", "NextIteration", "LoopCond"),
    *("TensorArray", "TensorList", "Stack", "Queue", "Variable", "VarHandle"),
)
# What they say has no influence on what a node computes.
_ANNOTATIONS = ("_class", "_output_shapes")


def merge_duplicates(graph: GraphView) -> GraphView:
    """Let the readers of equal nodes (op, attributes, device, inputs) all read the first of them.

    Left alone: ops with a state, such as random numbers, ops of control flow, outputs of the graph, and in an int8
    graph all but constants: oneDNN's kernels write sums over a summand, which must have no other reader then.
    """
    nodes = list(graph.graph_def.node)
    if any(node.op.startswith("_FusedQuantized") for node in nodes):
        nodes = [node for node in nodes if node.op == "Const"]
    kinds = {node.name: _kind(node) for node in nodes if _can_merge(node)}
    same: dict[str, str] = {}
    before = -1
    # What two equal nodes feed may be equal in turn, once they are one.
    while len(same) > before:
        before = len(same)
        first: dict[tuple[str, ...], str] = {}
        # An output cannot go, so it comes first.
        for name in sorted(kinds, key=lambda name: name not in graph.outputs):
            if name not in same:
                kept = first.setdefault((kinds[name], *_inputs(graph.nodes[name], same)), name)
                if kept != name and name not in graph.outputs:
                    same[name] = kept
    changed = []
    for node in graph.graph_def.node:
        inputs = _inputs(node, same)
        if node.name not in same and any(node_name(tensor) in same for tensor in node.input):
            rewired = NodeDef()
            rewired.CopyFrom(node)
            rewired.input[:] = inputs
            changed.append(rewired)
    return graph.replace(same.keys() | {node.name for node in changed}, changed) if same else graph


def _can_merge(node: NodeDef) -> bool:
    definition = op_def_registry.get(node.op)
    return definition is not None and not definition.is_stateful and not node.op.startswith(_NOT_MERGED)


def _kind(node: NodeDef) -> str:
    """Op, device and attributes, equal for nodes that differ in name and inputs alone."""
    attributes = sorted(
        (key, value.SerializeToString(deterministic=True))
        for key, value in node.attr.items()
        if key not in _ANNOTATIONS
    )
    return hashlib.sha256(repr((node.op, node.device, attributes)).encode()).hexdigest()


def _inputs(node: NodeDef, same: Mapping[str, str]) -> list[str]:
    """The inputs that a node has when the nodes in `same` are those they are equal to; each control input once."""
    data = [_renamed(tensor_name(tensor), same) for tensor in node.input if tensor[0] != "^"]
    return [*data, *sorted({_renamed(tensor, same) for tensor in node.input if tensor[0] == "^"})]


def _renamed(tensor: str, same: Mapping[str, str]) -> str:
    """Follows what was merged in earlier rounds into a node that was merged later."""
    name = node_name(tensor)
    while name in same:
        name = same[name]
    _, colon, index = tensor.partition(":")
    return f"{'^' if tensor[0] == '^' else ''}{name}{colon}{index}"
