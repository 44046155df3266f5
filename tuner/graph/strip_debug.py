"""What trains, checks and prints: an inference graph computes the same without it."""

from collections.abc import Iterator

from tensorflow.core.framework.node_def_pb2 import NodeDef

from tuner.model.graph_view import GraphView, node_name

# They hand on their first input.
PASSING_OPS = (
    "CheckNumerics", "CheckNumericsV2", "DebugGradientIdentity", "DebugIdentity", "DebugIdentityV2", "PreventGradient",
    "Print", "Snapshot", "StopGradient",
)  # fmt: skip

# Nothing reads a value of theirs that reaches an output; other ops only wait for them.
DEBUG_OPS = ("Assert", "PrintV2", "NoOp")
_CONDITIONS = ("Merge", "If", "StatelessIf")
_SUMMARIES = ("Summary", "SummaryV2")


def strip_debug_ops(graph: GraphView) -> GraphView:
    """Let what hands on a tensor and does something else on the side do nothing but hand it on, and wait for no check.

    The first become Identity nodes. A node inside a condition or a while loop that has nothing but a check to say where
    it belongs waits for what the check reads instead.
    """
    removed: set[str] = set()
    added: list[NodeDef] = []
    branching = _behind_switches(graph)
    for node in graph.graph_def.node:
        changed = NodeDef()
        changed.CopyFrom(node)
        if node.op in PASSING_OPS:
            changed.op = "Identity"
            changed.input[:] = [node.input[0], *(tensor for tensor in node.input if tensor[0] == "^")]
            for attribute in list(changed.attr):
                if attribute != "T":
                    del changed.attr[attribute]
        if any(_waits_for_check(graph, tensor) for tensor in node.input):
            changed.input[:] = list(dict.fromkeys(_without_checks(graph, changed, branching)))
        if changed != node:
            removed.add(node.name)
            added.append(changed)
    return graph.replace(removed, added) if added else graph


def _waits_for_check(graph: GraphView, tensor: str) -> bool:
    if tensor[0] != "^":
        return False
    name = node_name(tensor)
    node = graph.nodes[name]
    if node.op in DEBUG_OPS or node.op.endswith(_SUMMARIES):
        return True
    # An Assert stands in a condition of its own, whose result is only waited for; in TF2 behind an Identity.
    if node.op == "Identity" and not _is_read(graph, node.name):
        name = node_name(node.input[0])
        others = {reader.name for reader in graph.consumers(name)} - {node.name}
        return graph.nodes[name].op in _CONDITIONS and name not in graph.outputs and not others
    return node.op in _CONDITIONS and not _is_read(graph, name)


def _is_read(graph: GraphView, name: str) -> bool:
    """Whether anything takes a value of the node, and does not only wait for it."""
    reads = (read for reader in graph.consumers(name) for read in reader.input)
    return name in graph.outputs or any(read[0] != "^" and node_name(read) == name for read in reads)


def _without_checks(graph: GraphView, node: NodeDef, branching: frozenset[str]) -> Iterator[str]:
    """The inputs of a node, in their order; control inputs last, as a GraphDef has them."""
    others = [tensor for tensor in node.input if not _waits_for_check(graph, tensor)]
    yield from others
    if others:
        return
    pending = [node_name(tensor) for tensor in node.input]
    seen: set[str] = set()
    while pending:
        check = pending.pop()
        if check in seen or check not in branching:
            continue
        seen.add(check)
        inputs = [_predicate(graph, check)] if graph.nodes[check].op == "Merge" else graph.nodes[check].input
        for tensor in inputs:
            if _waits_for_check(graph, tensor):
                pending.append(node_name(tensor))
            elif node_name(tensor) in branching:
                yield f"^{node_name(tensor)}"


def _predicate(graph: GraphView, merge: str) -> str:
    """What a condition decides by: computed outside of its branches, wherever the condition as a whole belongs."""
    node = graph.nodes[merge]
    while node.op != "Switch" and node.input:
        node = graph.nodes[node_name(node.input[0])]
    return str(node.input[1] if node.op == "Switch" else node.name)


def _behind_switches(graph: GraphView) -> frozenset[str]:
    """The nodes that conditions and loops decide about, and all that follows from them."""
    reached: set[str] = set()
    pending = [node.name for node in graph.graph_def.node if node.op in ("Switch", "RefSwitch", "Enter", "RefEnter")]
    while pending:
        name = pending.pop()
        if name not in reached:
            reached.add(name)
            pending.extend(reader.name for reader in graph.consumers(name))
    return frozenset(reached)
