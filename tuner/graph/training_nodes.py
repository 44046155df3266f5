"""What only training needs goes: checks, prints, summaries, gradient barriers, and nodes that hand a tensor on."""

from collections.abc import Mapping

from tensorflow.core.framework.node_def_pb2 import NodeDef

from tuner.model.graph_view import GraphView, node_name, tensor_name

# Output 0 is input 0.
_HAND_ON = frozenset(
    ("Identity", "Snapshot", "StopGradient", "PreventGradient", "CheckNumerics", "CheckNumericsV2", "Print")
)
_CHECKS = frozenset(("Assert", "CheckNumerics", "CheckNumericsV2", "Print", "PrintV2"))
_SUMMARY = "Summary"
_ENTERS = frozenset(("Enter", "RefEnter"))
_SWITCHES = frozenset(("Switch", "RefSwitch"))
# Behind these it depends on a value, and not on a check, what runs.
_CONTROL_FLOW = _ENTERS | _SWITCHES | {"Exit", "RefExit", "NextIteration", "RefNextIteration", "LoopCond"}


def strip_training_nodes(graph: GraphView) -> GraphView:
    """The graph without nodes that change no result: what the outputs say stays the same to the last bit.

    - Nobody waits for a check any more (Assert, Print, CheckNumerics, summaries), nor for what is only there to wait
      for one.
    - Whoever reads a node that hands its input on reads that input.

    A node that reads nothing, or constants of a loop only, goes on waiting where a check was: it says when it runs. An
    Identity stays that is an output, is waited for, waits, reads a Switch or is in a while loop, where it holds control
    flow.
    """
    without_checks = _forget_checks(graph)
    return _skip(without_checks, {node.name for node in graph.graph_def.node if _hands_on(without_checks, node.name)})


def _forget_checks(graph: GraphView) -> GraphView:
    waits = _waiting_points(graph)
    changed = []
    for node in graph.graph_def.node:
        kept = [tensor for tensor in node.input if not (tensor[0] == "^" and node_name(tensor) in waits)]
        reads = [node_name(tensor) for tensor in kept if tensor[0] != "^"]
        if len(kept) < len(node.input) and any(graph.nodes[name].op not in _ENTERS for name in reads):
            changed.append(_with_inputs(node, kept))
    return graph.replace([node.name for node in changed], changed)


def _waiting_points(graph: GraphView) -> set[str]:
    """The checks, and what comes after them and hands its value to nothing else: `group`, the guard of an Assert."""
    found: set[str] = set()
    # TensorFlow 2 writes the guard of an Assert as an If whose branches are functions.
    checking = {
        function.signature.name
        for function in graph.graph_def.library.function
        if any(node.op in _CHECKS for node in function.node_def)
    }
    pending = [node.name for node in graph.graph_def.node if _is_check(node, checking)]
    while pending:
        name = pending.pop()
        if name not in found:
            found.add(name)
            pending += [reader.name for reader in graph.consumers(name) if reader.op not in _CONTROL_FLOW]
    pending = list(found)
    while pending:
        name = pending.pop()
        if name in found and (name in graph.outputs or _is_read_outside(graph, name, found)):
            found.remove(name)
            pending += [node_name(tensor) for tensor in graph.nodes[name].input]
    return found


def _is_check(node: NodeDef, checking: set[str]) -> bool:
    if node.op in ("If", "StatelessIf"):
        return bool(checking & {node.attr[branch].func.name for branch in ("then_branch", "else_branch")})
    return node.op in _CHECKS or _SUMMARY in node.op


def _is_read_outside(graph: GraphView, name: str, inside: set[str]) -> bool:
    return any(
        tensor[0] != "^" and node_name(tensor) == name
        for reader in graph.consumers(name)
        if reader.name not in inside
        for tensor in reader.input
    )


def _hands_on(graph: GraphView, name: str) -> bool:
    node = graph.nodes.get(name)
    if node is None or node.op not in _HAND_ON or name in graph.outputs:
        return False
    if node.op == "Identity" and name in graph.loop_body:
        return False
    # The Identity behind a Switch is what the nodes of a branch wait for.
    if graph.nodes[node_name(node.input[0])].op in _SWITCHES:
        return False
    waits = any(tensor[0] == "^" for tensor in node.input)
    return not waits and not any(f"^{name}" in reader.input for reader in graph.consumers(name))


def _skip(graph: GraphView, skipped: set[str]) -> GraphView:
    sources = {name: tensor_name(graph.nodes[name].input[0]) for name in skipped}
    changed = []
    for node in graph.graph_def.node:
        if node.name not in skipped and any(tensor_name(tensor) in sources for tensor in node.input):
            changed.append(_with_inputs(node, [_origin(tensor, sources) for tensor in node.input]))
    return graph.replace(skipped | {node.name for node in changed}, changed)


def _origin(tensor: str, sources: Mapping[str, str]) -> str:
    while tensor_name(tensor) in sources:
        tensor = sources[tensor_name(tensor)]
    return tensor


def _with_inputs(node: NodeDef, inputs: list[str]) -> NodeDef:
    rewired = NodeDef()
    rewired.CopyFrom(node)
    rewired.input[:] = inputs
    return rewired
