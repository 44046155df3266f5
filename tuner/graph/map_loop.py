"""`tf.map_fn` as TF1 wrote it into graphs: TensorArrays filled before a while loop, and read after it."""

from collections.abc import Sequence
from dataclasses import dataclass

from tensorflow.core.framework.node_def_pb2 import NodeDef

from tuner.model.graph_view import GraphView, node_name, tensor_name


class NotRecognisedError(Exception):
    """A subgraph is not what a transformation can rewrite; the message says what was found where."""


@dataclass(frozen=True)
class MapLoop:
    """One map over the first axis of some tensors.

    frame: name of the while loop. scope: name scope of the map, without a slash at its end.
    reads: TensorArrayReadV3 node inside -> the tensor outside whose rows it reads.
    writes: TensorArrayGatherV3 node outside -> the tensor inside that is written as its rows.
    """

    frame: str
    scope: str
    reads: dict[str, str]
    writes: dict[str, str]

    def body(self, graph: GraphView) -> dict[str, NodeDef]:
        """The nodes between what the loop reads and what it writes; an Enter among them brings in something else."""
        found: set[str] = set()
        pending = [node_name(tensor) for tensor in self.writes.values()]
        while pending:
            name = pending.pop()
            if name not in found and name not in self.reads:
                found.add(name)
                if graph.nodes[name].op != "Enter":
                    pending += [node_name(tensor) for tensor in graph.nodes[name].input if tensor[0] != "^"]
        return {name: node for name, node in graph.nodes.items() if name in found}


def find_map_loops(graph: GraphView) -> list[MapLoop]:
    """Every while loop of the graph that is a map and nothing else: each iteration reads row i and writes row i."""
    frames: dict[str, list[NodeDef]] = {}
    for node in graph.graph_def.node:
        if node.op == "Enter":
            frames.setdefault(node.attr["frame_name"].s.decode(), []).append(node)
    found = (_read_loop(graph, frame, enters) for frame, enters in frames.items())
    return [loop for loop in found if loop is not None]


def resolve(graph: GraphView, tensor: str) -> NodeDef:
    """The node behind a tensor, with Identity nodes looked through."""
    node: NodeDef = graph.nodes[node_name(tensor)]
    while node.op == "Identity":
        node = graph.nodes[node_name(node.input[0])]
    return node


def _read_loop(graph: GraphView, frame: str, enters: Sequence[NodeDef]) -> MapLoop | None:
    counters = _counters(graph, enters)
    reads: dict[str, str] = {}
    writes: dict[str, str] = {}
    for enter in enters:
        array: NodeDef = graph.nodes[node_name(enter.input[0])]
        if array.op != "TensorArrayV3" or tensor_name(enter.input[0]) != array.name:
            continue
        for user in graph.consumers(enter.name):
            if user.op not in ("TensorArrayReadV3", "TensorArrayWriteV3") or not _is_counter(graph, user, counters):
                return None
            if user.op == "TensorArrayReadV3":
                scatter = next(
                    (node for node in graph.consumers(array.name) if node.op == "TensorArrayScatterV3"), None
                )
                if scatter is None or not _is_whole_range(graph, scatter.input[1]):
                    return None
                reads[user.name] = scatter.input[2]
            else:
                gathers = [node for node in graph.consumers(array.name) if node.op == "TensorArrayGatherV3"]
                if len(gathers) != 1 or not _is_whole_range(graph, gathers[0].input[1]):
                    return None
                writes[gathers[0].name] = user.input[2]
    if not reads or not writes:
        return None
    if _leaves_otherwise(graph, enters, writes):
        return None
    scope = frame.removesuffix("/").removesuffix("while_context").removesuffix("/").removesuffix("while")
    return MapLoop(frame, scope.removesuffix("/"), reads, writes)


def _counters(graph: GraphView, enters: Sequence[NodeDef]) -> set[str]:
    """The Identity nodes that hold the number of the iteration: from 0 on, one more each time."""
    found = set()
    for enter in enters:
        start = graph.constant(enter.input[0])
        merges = [node for node in graph.consumers(enter.name) if node.op == "Merge"]
        if start is None or start.ndim or start != 0 or len(merges) != 1:
            continue
        step = resolve(graph, graph.nodes[node_name(merges[0].input[1])].input[0])
        if step.op not in ("Add", "AddV2"):
            continue
        one = graph.constant(step.input[1])
        if one is None or one != 1:
            continue
        held = graph.nodes[node_name(step.input[0])]
        switch = graph.nodes[node_name(held.input[0])] if held.op == "Identity" else held
        if switch.op == "Switch" and node_name(switch.input[0]) == merges[0].name:
            found.add(held.name)
    return found


def _is_counter(graph: GraphView, user: NodeDef, counters: set[str]) -> bool:
    return node_name(user.input[1]) in counters


def _is_whole_range(graph: GraphView, tensor: str) -> bool:
    node = graph.nodes[node_name(tensor)]
    if node.op != "Range":
        return False
    start, step = graph.constant(node.input[0]), graph.constant(node.input[2])
    return start is not None and step is not None and bool(start == 0) and bool(step == 1)


def _leaves_otherwise(graph: GraphView, enters: Sequence[NodeDef], writes: dict[str, str]) -> bool:
    """Whether anything but the written TensorArrays is read of the loop outside."""
    exits: set[str] = set()
    for enter in enters:
        for merge in graph.consumers(enter.name):
            if merge.op == "Merge":
                for switch in graph.consumers(merge.name):
                    if switch.op == "Switch":
                        exits.update(node.name for node in graph.consumers(switch.name) if node.op == "Exit")
    readers = {reader.name for name in exits for reader in graph.consumers(name)}
    return any(name not in writes and graph.nodes[name].op != "TensorArraySizeV3" for name in readers)
