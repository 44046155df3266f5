"""The shapes that TensorFlow can tell without running a graph."""

from collections.abc import Collection

import tensorflow as tf

from tuner.model.endpoints import prune
from tuner.model.graph_view import GraphView, tensor_name

Shape = tuple[int | None, ...]


def static_shapes(graph: GraphView, names: Collection[str]) -> dict[str, Shape]:
    """The shape of every tensor of the nodes `names`, and of those that they are made of, where its rank is known.

    By canonical tensor name; None for an unknown dimension.
    """
    with tf.Graph().as_default() as imported:
        tf.import_graph_def(prune(graph.graph_def, frozenset(names)), name="")
    return {
        tensor_name(tensor.name): tuple(tensor.shape.as_list())
        for operation in imported.get_operations()
        for tensor in operation.outputs
        if tensor.shape.rank is not None
    }
