"""A map over images that resizes each becomes the same ops on the whole batch, whose images have one size anyway."""

from collections.abc import Mapping

import numpy as np
import tensorflow as tf
from tensorflow.core.framework.graph_pb2 import GraphDef
from tensorflow.core.framework.node_def_pb2 import NodeDef

from tuner.graph.map_loop import MapLoop, NotRecognisedError, find_map_loops
from tuner.graph.splice import replace_nodes
from tuner.model.graph_view import GraphView, node_name, tensor_name

RESIZES = ("ResizeBilinear", "ResizeNearestNeighbor", "ResizeBicubic", "ResizeArea")

# Ranks that a tensor of one image has inside the loop: without a batch axis, and with one of length 1.
_BARE, _IN_A_BATCH = 3, 4
_IMAGES = "images"


def batch_preprocessor(graph: GraphView) -> GraphView:
    """Rewrite every map loop that resizes images into batched ops; its results keep their names.

    What depends on the size of the images alone is computed once for the batch. Raises NotRecognisedError where such a
    loop does anything else with pixels than resize and pad.
    """
    for loop in find_map_loops(graph):
        body = loop.body(graph)
        if len(loop.reads) == 1 and any(node.op in RESIZES for node in body.values()):
            graph = _batched(graph, loop, body)
    return graph


def _batched(graph: GraphView, loop: MapLoop, body: Mapping[str, NodeDef]) -> GraphView:
    (read,), (images,) = loop.reads.keys(), loop.reads.values()
    outside = next((node.name for node in body.values() if node.op == "Enter"), None)
    if outside is not None:
        raise NotRecognisedError(f"{outside}: a preprocessor that reads other tensors than the images")
    ranks = _image_ranks(graph, read, body)
    rewritten = GraphDef()
    for node in body.values():
        rewritten.node.extend(_rewritten(graph, node, ranks, read, body))

    def write(inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        tensors = list(loop.writes.values())
        values = tf.import_graph_def(
            rewritten,
            {_IMAGES: inputs[_IMAGES]},
            [_IMAGES if node_name(tensor) == read else f"{tensor_name(tensor)}:0" for tensor in tensors],
            name="image",
        )
        size = tf.shape(inputs[_IMAGES])[:1]
        return {
            gather: value
            if node_name(tensor) in ranks
            else tf.broadcast_to(value, tf.concat([size, tf.shape(value)], 0))
            for gather, tensor, value in zip(loop.writes, tensors, values, strict=True)
        }

    dtype = tf.dtypes.as_dtype(graph.nodes[read].attr["dtype"].type)
    return replace_nodes(graph, f"{loop.scope}/batched", {_IMAGES: (images, dtype, [None, None, None, None])}, write)


def _image_ranks(graph: GraphView, read: str, body: Mapping[str, NodeDef]) -> dict[str, int]:
    """The nodes whose output 0 holds pixels, with the rank that it has inside the loop."""
    ranks = {read: _BARE}
    pending = list(graph.consumers(read))
    while pending:
        node = pending.pop()
        if node.name not in body or node.name in ranks or node.op == "Shape":
            continue
        ranks[node.name] = _rank_after(graph, node, ranks)
        pending += graph.consumers(node.name)
    return ranks


def _rank_after(graph: GraphView, node: NodeDef, ranks: Mapping[str, int]) -> int:
    sources = [tensor for tensor in node.input if tensor[0] != "^"]
    rank = next(ranks[node_name(tensor)] for tensor in sources if node_name(tensor) in ranks)
    pixels = [node_name(tensor) in ranks for tensor in sources]
    first_only = pixels[0] and not any(pixels[1:])
    if node.op in ("Identity", "Switch") and first_only:
        return rank
    if node.op == "Merge":
        # Both branches of a condition have the same rank, and one of them may not have been reached yet.
        return rank
    if node.op == "ExpandDims" and first_only and rank == _BARE and _equals(graph, sources[1], 0):
        return _IN_A_BATCH
    if node.op == "Squeeze" and rank == _IN_A_BATCH and list(node.attr["squeeze_dims"].list.i) == [0]:
        return _BARE
    if node.op in (*RESIZES, "Pad", "PadV2") and first_only and rank == _IN_A_BATCH:
        return rank
    raise NotRecognisedError(f"{node.name}: the op {node.op} is not known in a preprocessor")


def _rewritten(
    graph: GraphView, node: NodeDef, ranks: Mapping[str, int], read: str, body: Mapping[str, NodeDef]
) -> list[NodeDef]:
    """One node of the body as it is for a batch."""
    new = NodeDef()
    new.CopyFrom(node)
    # Inside the loop constants wait for the iteration; outside there is nothing to wait for.
    inputs = [tensor for tensor in node.input if tensor[0] != "^" or node_name(tensor) in body]
    new.input[:] = [_IMAGES if node_name(tensor) == read else tensor for tensor in inputs]
    new.attr.pop("_class", None)
    if node.op in ("ExpandDims", "Squeeze") and node.name in ranks:
        identity = NodeDef(op="Identity", name=node.name, input=new.input[:1])
        identity.attr["T"].CopyFrom(node.attr["T"])
        return [identity]
    if node.op == "Shape" and ranks.get(node_name(node.input[0])) == _BARE:
        new.name = f"{node.name}/batched"
        begin, size = f"{node.name}/begin", f"{node.name}/size"
        tail = NodeDef(op="Slice", name=node.name, input=[new.name, begin, size])
        tail.attr["T"].type = node.attr["out_type"].type or tf.int32.as_datatype_enum
        tail.attr["Index"].type = tf.int32.as_datatype_enum
        return [new, _vector(begin, 1), _vector(size, _BARE), tail]
    return [new]


def _vector(name: str, value: int) -> NodeDef:
    node = NodeDef(op="Const", name=name)
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(np.array([value], np.int32)))
    node.attr["dtype"].type = tf.int32.as_datatype_enum
    return node


def _equals(graph: GraphView, tensor: str, value: int) -> bool:
    constant = graph.constant(tensor)
    return constant is not None and constant.size == 1 and bool(constant.reshape(()) == value)
