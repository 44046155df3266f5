"""The shapes that TensorFlow can tell without running a graph."""

import tensorflow as tf

from tuner.model.graph_view import GraphView, tensor_name

Shape = tuple[int | None, ...]


def static_shapes(graph: GraphView) -> dict[str, Shape]:
    """The shape of every tensor whose rank is known, by canonical tensor name; None for an unknown dimension."""
    with tf.Graph().as_default() as imported:
        tf.import_graph_def(graph.graph_def, name="")
    return {
        tensor_name(tensor.name): tuple(tensor.shape.as_list())
        for operation in imported.get_operations()
        for tensor in operation.outputs
        if tensor.shape.rank is not None
    }
