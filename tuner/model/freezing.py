"""What every reader hands on, and how variables become constants."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from tuner.errors import ModelError
from tuner.model.endpoints import add_named_outputs
from tuner.model.tensorflow_error import first_line

VARIABLES = ("Variable", "VariableV2", "VarHandleOp", "AutoReloadVariable")


@dataclass(frozen=True)
class FrozenGraph:
    """A graph without variables, not yet pruned.

    outputs: the tensors that the file itself names as its results; empty when it names none.
    aliases: other names under which the file's users know a tensor, such as the keys of a signature.
    """

    graph_def: tf.compat.v1.GraphDef
    outputs: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)


def freeze_session(session: tf.compat.v1.Session, outputs: Sequence[str]) -> tf.compat.v1.GraphDef:
    """The session's graph with its variables' values as constants, as far as the tensors `outputs` need it.

    TF1 while loops stay as they are. Raises ModelError for variables that cannot be read.
    """
    nodes = [name.partition(":")[0] for name in outputs]
    try:
        return tf.compat.v1.graph_util.convert_variables_to_constants(session, session.graph.as_graph_def(), nodes)
    except (ValueError, KeyError, RuntimeError, tf.errors.OpError) as error:
        raise ModelError(f"variables cannot be frozen: {first_line(error)}") from error


def run_by_freezing(graph_def: tf.compat.v1.GraphDef) -> list[str]:
    """The nodes that are run to read the variables of a graph, by `freeze_session` and by what restores them."""
    variables = [node.name for node in graph_def.node if node.op in VARIABLES]
    # The converter reads a resource through the node of this name, whatever it is.
    return [*variables, *(f"{name}/Read/ReadVariableOp" for name in variables)]


def freeze_function(function: tf.types.experimental.ConcreteFunction, results: Sequence[str]) -> FrozenGraph:
    """A traced function as a graph: calls inlined, variables constant, its flat outputs named `results`.

    Raises ModelError for resources that are not variables, such as lookup tables.
    """
    try:
        # The public converters know sessions only. This one runs Grappler with function inlining alone, and lowers
        # While and If to the TF1 control flow that every consumer of a GraphDef understands.
        frozen = convert_variables_to_constants_v2(function, lower_control_flow=True)
    except (ValueError, KeyError, TypeError, RuntimeError, NotImplementedError, tf.errors.OpError) as error:
        raise ModelError(f"variables cannot be frozen: {first_line(error)}") from error
    resources = [tensor.name for tensor in frozen.inputs if tensor.dtype == tf.resource]
    if resources:
        raise ModelError(f"{len(resources)} resources that are not variables cannot be frozen: {resources[0]}")
    graph_def = frozen.graph.as_graph_def()
    outputs = add_named_outputs(graph_def, zip(results, frozen.outputs, strict=True))
    return FrozenGraph(_in_dependency_order(graph_def, outputs), outputs, dict(zip(results, outputs, strict=True)))


def _in_dependency_order(graph_def: tf.compat.v1.GraphDef, outputs: Sequence[str]) -> tf.compat.v1.GraphDef:
    """The same graph with every node after its inputs, walked from `outputs`.

    Function inlining leaves the nodes, the control inputs of a node and one attribute of tracing different from call
    to call; one file must always give one graph.
    """
    nodes = {node.name: node for node in graph_def.node}
    for node in graph_def.node:
        node.input[:] = [name for name in node.input if name[0] != "^"] + sorted(n for n in node.input if n[0] == "^")
        node.attr.pop("_has_manual_control_dependencies", None)
    ordered = tf.compat.v1.GraphDef(versions=graph_def.versions, library=graph_def.library)
    entered: set[str] = set()
    pending = [(name.partition(":")[0], False) for name in reversed(outputs)]
    while pending:
        name, inputs_done = pending.pop()
        if inputs_done:
            ordered.node.append(nodes[name])
        elif name not in entered:
            entered.add(name)
            pending.append((name, True))
            pending += [(source.lstrip("^").partition(":")[0], False) for source in reversed(nodes[name].input)]
    return ordered
