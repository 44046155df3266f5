"""Identity nodes of inference graphs do nothing, but they stand between ops that belong together."""

from collections.abc import Mapping

from tensorflow.core.framework.node_def_pb2 import NodeDef

from tuner.model.graph_view import GraphView, node_name, tensor_name


def skip_identities(graph: GraphView) -> GraphView:
    """Let the readers of an Identity read what it reads.

    Left alone: outputs of the graph, those with control edges in or out, and those in while loops or behind a Switch,
    where they hold control flow.
    """
    skipped = {node.name: tensor_name(node.input[0]) for node in graph.graph_def.node if _can_skip(graph, node)}
    changed: list[NodeDef] = []
    for node in graph.graph_def.node:
        if node.name in skipped or not any(tensor_name(tensor) in skipped for tensor in node.input):
            continue
        rewired = NodeDef()
        rewired.CopyFrom(node)
        for position, tensor in enumerate(node.input):
            if tensor_name(tensor) in skipped:
                rewired.input[position] = _origin(tensor_name(tensor), skipped)
        changed.append(rewired)
    return graph.replace({node.name for node in changed} | skipped.keys(), changed)


def _origin(tensor: str, skipped: Mapping[str, str]) -> str:
    while tensor in skipped:
        tensor = skipped[tensor]
    return tensor


def _can_skip(graph: GraphView, node: NodeDef) -> bool:
    if node.op != "Identity" or len(node.input) != 1 or node.name in graph.outputs or node.name in graph.loop_body:
        return False
    if graph.nodes[node_name(node.input[0])].op == "Switch":
        return False
    return not any(f"^{node.name}" in reader.input for reader in graph.consumers(node.name))
