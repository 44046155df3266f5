"""Identity nodes of inference graphs do nothing, but they stand between ops that belong together."""

from collections.abc import Mapping

from tensorflow.core.framework.node_def_pb2 import NodeDef

from tuner.model.graph_view import GraphView, node_name, tensor_name


def skip_identities(graph: GraphView) -> GraphView:
    """Let the readers of an Identity or IdentityN read what it reads.

    Left alone: outputs of the graph, those with control edges in or out, and those in while loops or behind a Switch,
    where they hold control flow.
    """
    nodes = [node for node in graph.graph_def.node if _can_skip(graph, node)]
    skipped = {
        tensor_name(f"{node.name}:{index}"): tensor_name(tensor)
        for node in nodes
        for index, tensor in enumerate(node.input)
    }
    names = {node.name for node in nodes}
    changed: list[NodeDef] = []
    for node in graph.graph_def.node:
        if node.name in names or not any(tensor_name(tensor) in skipped for tensor in node.input):
            continue
        rewired = NodeDef()
        rewired.CopyFrom(node)
        for position, tensor in enumerate(node.input):
            if tensor_name(tensor) in skipped:
                rewired.input[position] = _origin(tensor_name(tensor), skipped)
        changed.append(rewired)
    return graph.replace({node.name for node in changed} | names, changed)


def _origin(tensor: str, skipped: Mapping[str, str]) -> str:
    while tensor in skipped:
        tensor = skipped[tensor]
    return tensor


def _can_skip(graph: GraphView, node: NodeDef) -> bool:
    if node.op not in ("Identity", "IdentityN") or node.name in graph.outputs or node.name in graph.loop_body:
        return False
    if any(tensor[0] == "^" or graph.nodes[node_name(tensor)].op == "Switch" for tensor in node.input):
        return False
    return not any(f"^{node.name}" in reader.input for reader in graph.consumers(node.name))
