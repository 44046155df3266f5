"""What is the same in every run becomes a constant: the anchors of a detector with a fixed input size."""

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.core.framework.node_def_pb2 import NodeDef

from tuner.graph.map_loop import NotRecognisedError, resolve
from tuner.graph.store_weights import find_stored_weights
from tuner.model.graph_view import GraphView, node_name, tensor_name
from tuner.model.tensorflow_error import first_line

# A value over this size costs more in the file than its computation in time.
MOST_BYTES = 4 << 20

# Ops that a constant cannot stand for, by the beginnings of their names: those without a value of their own, those
# that differ from run to run, and those that say something about the tensor they hand on.
_NOT_FOLDED = (
    *("Placeholder", "NoOp", "Enter", "RefEnter", "Exit", "RefExit", "Switch", "Merge", "NextIteration", "LoopCond"),
    *("Random", "Truncated", "TensorArray", "TensorList", "Stack", "Queue", "Variable", "Print"),
    *("FakeQuant", "Quantize", "Dequantize"),
)


def fold_constants(graph: GraphView) -> GraphView:
    """Compute once what depends on constants alone, and on sizes that TensorFlow infers from the graph alone.

    Constants that are only handed on, as weights are, stay where they are, and so do results over 4 MiB, and weights
    that are stored in 8 bits. Raises NotRecognisedError where TensorFlow cannot compute them.
    """
    sizes = _static_sizes(graph)
    sized = graph.replace(sizes.keys(), [_constant(name, value) for name, value in sizes.items()]) if sizes else graph
    fixed = _fixed(sized)
    borders = [
        name
        for name in fixed
        if _reads_first_output_only(sized, name)
        and (name in sized.outputs or any(reader.name not in fixed for reader in sized.consumers(name)))
        and not _is_handed_on(sized, name)
    ]
    values = {name: value for name, value in _values(sized, borders).items() if value.nbytes <= MOST_BYTES}
    return sized.replace(values.keys(), [_constant(name, value) for name, value in values.items()]) if values else sized


def _static_sizes(graph: GraphView) -> dict[str, NDArray[np.generic]]:
    """Slices of one size out of the shape of a tensor, and whole shapes, where they are known; by node."""
    imported = tf.Graph()
    with imported.as_default():
        tf.import_graph_def(graph.graph_def, name="")
    found: dict[str, NDArray[np.generic]] = {}
    for shape in graph.graph_def.node:
        if shape.op != "Shape" or shape.name in graph.loop_body:
            continue
        (of,) = imported.get_operation_by_name(shape.name).inputs
        if of.shape.rank is None:
            continue
        sizes = of.shape.as_list()
        dtype = tf.dtypes.as_dtype(shape.attr["out_type"].type or tf.int32.as_datatype_enum).as_numpy_dtype
        if None not in sizes:
            found[shape.name] = np.array(sizes, dtype)
            continue
        for reader in graph.consumers(shape.name):
            index = _single_index(graph, reader, shape.name)
            if index is not None and sizes[index] is not None:
                found[reader.name] = np.array(sizes[index], dtype)
    return found


def _single_index(graph: GraphView, node: NodeDef, shape: str) -> int | None:
    """i where a node is StridedSlice(shape)[i], else None."""
    if node.op != "StridedSlice" or tensor_name(node.input[0]) != shape or node.attr["shrink_axis_mask"].i != 1:
        return None
    begin, step = graph.constant(node.input[1]), graph.constant(node.input[3])
    if begin is None or step is None or begin.size != 1 or step.reshape(-1)[0] != 1 or node.attr["begin_mask"].i:
        return None
    return int(begin.reshape(-1)[0])


def _fixed(graph: GraphView) -> dict[str, None]:
    """The nodes that depend on constants alone, in an order that is the same in every process."""
    stored = find_stored_weights(graph)
    # Multiplied out they would take four times their room; so would the floats that their codes are cast to.
    left = {*stored, *(node_name(graph.nodes[name].input[0]) for name in stored)}
    fixed: dict[str, None] = {}
    for name in _in_order(graph):
        node = graph.nodes[name]
        # A constant in the branch of a condition waits for it, so that it is not one for this purpose.
        has_value = node.op == "Const" or (node.input and not node.op.startswith(_NOT_FOLDED))
        if has_value and name not in left and all(node_name(tensor) in fixed for tensor in node.input):
            fixed[name] = None
    return fixed


def _is_handed_on(graph: GraphView, name: str) -> bool:
    """Whether the node is a constant, passes one on, or checks one."""
    return resolve(graph, name).op in ("Assert", "Const")


def _reads_first_output_only(graph: GraphView, name: str) -> bool:
    reads = [tensor for reader in graph.consumers(name) for tensor in reader.input]
    return not any(node_name(tensor) == name != tensor_name(tensor) for tensor in reads if tensor[0] != "^")


def _in_order(graph: GraphView) -> list[str]:
    """The nodes outside of loops with those they read before them."""
    ordered: list[str] = []
    done: set[str] = set(graph.loop_body)
    pending = [(name, False) for name in reversed(graph.nodes)]
    while pending:
        name, inputs_done = pending.pop()
        if inputs_done:
            ordered.append(name)
        elif name not in done:
            done.add(name)
            pending.append((name, True))
            pending += [(node_name(tensor), False) for tensor in graph.nodes[name].input]
    return ordered


def _values(graph: GraphView, names: list[str]) -> dict[str, NDArray[np.generic]]:
    with tf.Graph().as_default() as imported:
        tf.import_graph_def(graph.graph_def, name="")
        with tf.compat.v1.Session(graph=imported) as session:
            try:
                values = session.run([f"{name}:0" for name in names])
            except tf.errors.OpError as error:
                raise NotRecognisedError(f"constants cannot be computed: {first_line(error)}") from error
    return dict(zip(names, values, strict=True))


def _constant(name: str, value: NDArray[np.generic]) -> NodeDef:
    node = NodeDef(op="Const", name=name)
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))
    node.attr["dtype"].type = node.attr["value"].tensor.dtype
    return node
