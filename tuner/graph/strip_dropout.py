"""Dropout that keeps everything: written into a graph for training, it only takes time in inference."""

from tensorflow.core.framework.node_def_pb2 import NodeDef

from tuner.graph.map_loop import resolve
from tuner.model.graph_view import GraphView, tensor_name


def strip_dropout(graph: GraphView) -> GraphView:
    """Let a dropout whose rate is the constant 0 hand on its input: it becomes an Identity of the same name.

    Known are the forms of all TensorFlow releases: x / keep * floor(keep + random), x * scale * (random >= rate), and
    select(random >= rate, x * scale, 0). Random ops that are left without a reader go with them. Left alone: what may
    be broadcast to the shape of its mask.
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
            kept = _unscaled(graph, scaled)
            if _has_shape_of(graph, kept, mask, _random_behind_ones(graph, mask)):
                return kept
    if node.op in ("Select", "SelectV2") and len(node.input) == 3:
        condition, scaled, otherwise = node.input
        kept = _unscaled(graph, scaled)
        if _has_shape_of(graph, kept, condition, _random_never_less(graph, condition)) and (
            _is_scalar(graph, otherwise) or _is_within(graph, otherwise, kept)
        ):
            return kept
    return None


def _random_behind_ones(graph: GraphView, tensor: str) -> NodeDef | None:
    """The random op that a mask of nothing but ones is made of."""
    node = resolve(graph, tensor)
    if node.op == "Cast":
        return _random_never_less(graph, node.input[0])
    if node.op == "Floor":
        total = resolve(graph, node.input[0])
        if total.op in ("Add", "AddV2"):
            first, second = total.input[:2]
            if _equals(graph, first, 1):
                return _random(graph, second)
            if _equals(graph, second, 1):
                return _random(graph, first)
    return None


def _random_never_less(graph: GraphView, tensor: str) -> NodeDef | None:
    """The random op of random >= 0, of random numbers from 0 to 1."""
    node = resolve(graph, tensor)
    return _random(graph, node.input[0]) if node.op == "GreaterEqual" and _equals(graph, node.input[1], 0) else None


def _random(graph: GraphView, tensor: str) -> NodeDef | None:
    """The op, where the tensor is uniform between 0 and 1: TF1 writes the op's result times (1 - 0), plus 0."""
    node = resolve(graph, tensor)
    while node.op in ("Add", "AddV2", "Mul") and _equals(graph, node.input[1], 1 if node.op == "Mul" else 0):
        node = resolve(graph, node.input[0])
    return node if node.op in ("RandomUniform", "StatelessRandomUniform", "StatelessRandomUniformV2") else None


def _unscaled(graph: GraphView, tensor: str) -> str:
    """Dropout multiplies what it keeps by 1 / (1 - rate), here 1."""
    node = resolve(graph, tensor)
    if node.op in ("Mul", "RealDiv") and _equals(graph, node.input[1], 1):
        return str(node.input[0])
    return tensor


def _has_shape_of(graph: GraphView, kept: str, mask: str, random: NodeDef | None) -> bool:
    """Whether `kept` has its shape still after it met a mask that is made of this random op, if there is one."""
    if random is None:
        return False
    shape = resolve(graph, random.input[0])
    if shape.op == "Shape" and _behind(graph, shape.input[0]) == _behind(graph, kept):
        return True
    return _is_within(graph, mask, kept)


def _is_within(graph: GraphView, tensor: str, kept: str) -> bool:
    """Whether every axis of a tensor is known to be 1 or as long as that of `kept`."""
    names = [tensor_name(one) for one in (tensor, kept)]
    if any(":" in name for name in names):
        return False  # Shapes are known of first outputs alone.
    own, other = (graph.shape(name) for name in names)
    # No axes may also mean that nobody knows them.
    if not own or len(own) > len(other):
        return False
    return all(size == 1 or size == beside is not None for size, beside in zip(own, other[-len(own) :], strict=True))


def _behind(graph: GraphView, tensor: str) -> str:
    """The tensor that Identity nodes hand on, and the product with 1."""
    while True:
        node = graph.nodes[tensor_name(tensor).partition(":")[0]]
        unscaled = node.input[0] if node.op == "Identity" else _unscaled(graph, tensor)
        if unscaled == tensor:
            return tensor_name(tensor)
        tensor = unscaled


def _is_scalar(graph: GraphView, tensor: str) -> bool:
    constant = graph.constant(tensor)
    return constant is not None and constant.ndim == 0


def _equals(graph: GraphView, tensor: str, value: float) -> bool:
    """Whether the tensor is this one number: an array of them could be broadcast."""
    constant = graph.constant(tensor)
    return constant is not None and constant.ndim == 0 and bool(constant == value)
