"""Tables of boxes are transposed to be taken apart by column, and transposed again when they are put together."""

from collections.abc import Sequence

from tensorflow.core.framework.node_def_pb2 import NodeDef

from tuner.model.graph_view import GraphView, node_name


def fuse_transposes(graph: GraphView) -> GraphView:
    """Unpack and Pack along the other axis of a matrix, without the Transpose before or after them."""
    added: dict[str, NodeDef] = {}
    for transpose in graph.graph_def.node:
        if not _swaps_two_axes(graph, transpose):
            continue
        source = graph.nodes[node_name(transpose.input[0])]
        # Whatever has two axes and is packed along the first one is made of vectors.
        if source.op == "Pack" and source.attr["axis"].i == 0:
            added[transpose.name] = _along_second_axis(source, transpose.name, source.input)
        for reader in graph.consumers(transpose.name):
            if reader.op == "Unpack" and reader.attr["axis"].i == 0:
                added[reader.name] = _along_second_axis(reader, reader.name, [transpose.input[0]])
    return graph.replace(added.keys(), list(added.values())) if added else graph


def _swaps_two_axes(graph: GraphView, node: NodeDef) -> bool:
    if node.op != "Transpose":
        return False
    order = graph.constant(node.input[1])
    return order is not None and order.tolist() == [1, 0]


def _along_second_axis(node: NodeDef, name: str, inputs: Sequence[str]) -> NodeDef:
    changed = NodeDef()
    changed.CopyFrom(node)
    changed.name = name
    changed.input[:] = inputs
    changed.attr["axis"].i = 1
    return changed
