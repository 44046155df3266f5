"""Which part of a detector a node belongs to, told from the graph that ran: no names are looked at."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from enum import StrEnum

from tensorflow.core.framework.graph_pb2 import GraphDef
from tensorflow.core.framework.node_def_pb2 import NodeDef

from tuner.model.graph_view import node_name


class Stage(StrEnum):
    """A part of a detector.

    PREPROCESSING: what depends on the image, on no convolution, and leads to one. PRODUCTS: convolutions and matrix
    products by constant weights. POSTPROCESSING: all that the raw heads do not need, a raw head being the result of a
    convolution (or such a product) that no other depends on. REST: what is left: activations, additions and data
    movement between the convolutions, and constants.
    """

    PREPROCESSING = "pre-processing"
    PRODUCTS = "convolutions and matrix products"
    REST = "rest of the network"
    POSTPROCESSING = "post-processing"


def find_stages(graphs: Iterable[GraphDef]) -> dict[str, Stage]:
    """The stage of every node of the graphs that a run was made of, one for each device.

    Without any convolution or matrix product, everything is the rest.
    """
    nodes = {node.name: node for graph in graphs for node in graph.node}
    inputs = _inputs(nodes)
    products = [node.name for node in nodes.values() if _is_product(node, nodes)]
    if not products:
        return dict.fromkeys(nodes, Stage.REST)
    # The way back of a loop is cut: a convolution inside would depend on itself.
    onward = {name: [] if nodes[name].op == "NextIteration" else sources for name, sources in inputs.items()}
    before_products = _reached([source for name in products for source in onward[name]], onward)
    needed = _reached([name for name in products if name not in before_products], inputs)
    readers = defaultdict(list)
    for name, sources in inputs.items():
        for source in sources:
            readers[source].append(name)
    after_products = _reached(products, readers)
    after_image = _reached([name for name, node in nodes.items() if node.op == "_Arg"], readers)

    def stage(name: str) -> Stage:
        if name not in needed:
            return Stage.POSTPROCESSING
        if name in products_found:
            return Stage.PRODUCTS
        return Stage.PREPROCESSING if name in after_image and name not in after_products else Stage.REST

    products_found = set(products)
    return {name: stage(name) for name in nodes}


def _inputs(nodes: Mapping[str, NodeDef]) -> dict[str, list[str]]:
    """What each node reads or waits for; what one device receives comes from the node of another that sends it."""
    sends = {node.attr["tensor_name"].s: node.name for node in nodes.values() if node.op in ("_Send", "_HostSend")}
    inputs = {name: [node_name(tensor) for tensor in node.input] for name, node in nodes.items()}
    for name, node in nodes.items():
        if node.op in ("_Recv", "_HostRecv") and node.attr["tensor_name"].s in sends:
            inputs[name].append(sends[node.attr["tensor_name"].s])
    return inputs


def _is_product(node: NodeDef, nodes: Mapping[str, NodeDef]) -> bool:
    """Whether a node is a convolution, or multiplies by constant weights; under whatever name TensorFlow fused it."""
    op = node.op.lower()
    if "conv2d" in op or "conv3d" in op:
        return True
    if "matmul" not in op and op != "einsum":
        return False
    return any(node_name(tensor) in nodes and nodes[node_name(tensor)].op == "Const" for tensor in node.input[:2])


def _reached(start: Iterable[str], edges: Mapping[str, Iterable[str]]) -> set[str]:
    """`start` and all that the edges lead to from there."""
    reached: set[str] = set()
    pending = list(start)
    while pending:
        name = pending.pop()
        if name not in reached:
            reached.add(name)
            pending.extend(edges.get(name, ()))
    return reached
