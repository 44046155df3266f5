"""Subgraphs written as TensorFlow code, put in the place of nodes of a frozen graph."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import tensorflow as tf
from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.python.ops import control_flow_util

from tuner.model.graph_view import GraphView, node_name

# A tensor of the graph, its dtype and what is known of its shape.
Source: TypeAlias = "tuple[str, tf.DType, Sequence[int | None]]"


@contextmanager
def tf1_control_flow() -> Iterator[None]:
    """Within, `cond` and `while_loop` become Switch, Merge, Enter and Exit, as in the graphs they go to."""
    before = control_flow_util.ENABLE_CONTROL_FLOW_V2
    tf.compat.v1.disable_control_flow_v2()
    try:
        yield
    finally:
        if before:
            tf.compat.v1.enable_control_flow_v2()


def replace_nodes(
    graph: GraphView,
    scope: str,
    inputs: Mapping[str, Source],
    write: Callable[[dict[str, tf.Tensor]], Mapping[str, tf.Tensor]],
) -> GraphView:
    """The graph with nodes computed by other ops, and without what no output needs any more.

    scope: what the new nodes' names begin with. inputs: what the new nodes read, by a key. write: from the inputs by
    key to the new value of output 0 of each node that is replaced, by its name.
    """
    with tf.Graph().as_default() as written, tf1_control_flow(), tf.compat.v1.name_scope(f"{_free(graph, scope)}/"):
        placeholders = {
            key: tf.compat.v1.placeholder(dtype, shape, name=f"input_{key}")
            for key, (_, dtype, shape) in inputs.items()
        }
        values = write(placeholders)
    sources = {placeholders[key].op.name: inputs[key][0] for key in inputs}
    added = []
    for node in written.as_graph_def().node:
        if node.name not in sources:
            _redirect(node, sources)
            added.append(node)
    for name, value in values.items():
        identity = NodeDef(op="Identity", name=name, input=[value.name.removesuffix(":0")])
        identity.attr["T"].type = value.dtype.as_datatype_enum
        _redirect(identity, sources)
        added.append(identity)
    return graph.replace(values.keys(), added)


def _redirect(node: NodeDef, sources: Mapping[str, str]) -> None:
    for index, tensor in enumerate(node.input):
        if node_name(tensor) in sources:
            source = sources[node_name(tensor)]
            node.input[index] = f"^{node_name(source)}" if tensor[0] == "^" else source


def _free(graph: GraphView, scope: str) -> str:
    taken = {name for name in graph.nodes if name.startswith(scope)}
    number = 0
    while any(name == scope or name.startswith(f"{scope}/") for name in taken):
        number += 1
        scope = f"{scope.rstrip('0123456789').rstrip('_')}_{number}"
    return scope
