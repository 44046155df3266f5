"""The inputs and outputs of a graph: those asked for, or those found in it; and the part of a graph they need."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from itertools import chain, count

import tensorflow as tf

from tuner.errors import ModelError

DETECTION_OUTPUTS = ("detection_boxes", "detection_scores", "detection_classes", "num_detections")
MASK_OUTPUT = "detection_masks"
OPTIONAL_DETECTION_OUTPUTS = (MASK_OUTPUT,)

# A graph's sinks include its bookkeeping: these results are never what a detector says about an image.
_NOT_RESULTS = ("Const", "NoOp", "Assert", "Assign", "Apply", "ResourceApply", "Print", "Save", "Restore")

_MOST_DIGITS = 10  # of the number of an op's output


def resolve_tensor(graph: tf.Graph, name: str, role: str) -> str:
    """The full tensor name of `name`, which may lack its ":0". Raises ModelError with the nearest names."""
    node, _, index = name.removeprefix("^").partition(":")
    try:
        operation = graph.get_operation_by_name(node)
    except (KeyError, ValueError, TypeError):  # of the last: half a character, as of a damaged command line
        raise ModelError(f"{role} {name!r} is not in the graph{_nearest(node, graph)}") from None
    position = int(index) if index.isdecimal() and len(index) < _MOST_DIGITS else 0 if not index else -1
    if not 0 <= position < len(operation.outputs):
        raise ModelError(f"{role} {name!r}: the op {operation.type} has {len(operation.outputs)} outputs, from 0 on")
    return f"{node}:{position}"


def find_outputs(graph: tf.Graph, asked: Sequence[str] = ()) -> tuple[str, ...]:
    """The tensors named in `asked`; else the detection outputs; else the sinks that depend on a placeholder.

    Raises ModelError for an unknown name or when nothing is found.
    """
    if asked:
        return _unique(resolve_tensor(graph, name, "output") for name in asked)
    names = {operation.name for operation in graph.get_operations() if operation.outputs}
    if names.issuperset(DETECTION_OUTPUTS):
        optional = [name for name in OPTIONAL_DETECTION_OUTPUTS if name in names]
        return tuple(f"{name}:0" for name in (*DETECTION_OUTPUTS, *optional))
    sinks = _find_sinks(graph)
    if not sinks:
        raise ModelError("no outputs: no result in the graph depends on a placeholder; name them with `outputs`")
    return sinks


def find_inputs(graph: tf.Graph, outputs: Sequence[str], asked: Sequence[str] = ()) -> tuple[str, ...]:
    """The tensors named in `asked`; else the placeholders that `outputs` depend on.

    Raises ModelError for an unknown name, an input that reaches no output, a placeholder that is needed and not fed,
    or a graph without placeholders.
    """
    given = _unique(resolve_tensor(graph, name, "input") for name in asked)
    reached = _ancestors(graph, outputs, stop={name.partition(":")[0] for name in given})
    placeholders = [operation for operation in reached if operation.type == "Placeholder"]
    if not given:
        # A placeholder with a default is usually a switch such as is_training; it is the image only when alone.
        found = placeholders or [operation for operation in reached if _is_numeric_default(operation)]
        if not found:
            raise ModelError("no placeholder: the outputs do not depend on any input that can be fed")
        return tuple(operation.outputs[0].name for operation in found)
    names = {operation.name for operation in reached}
    for name in given:
        if name.partition(":")[0] not in names:
            raise ModelError(f"input {name!r} does not reach any of the outputs {', '.join(outputs)}")
    for placeholder in placeholders:
        if f"{placeholder.name}:0" not in given:
            raise ModelError(f"the outputs need placeholder {placeholder.name!r} as well as {', '.join(given)}")
    return given


def prune(graph_def: tf.compat.v1.GraphDef, outputs: Iterable[str]) -> tf.compat.v1.GraphDef:
    """The nodes that `outputs` depend on, in their order; everything else of the graph is left as it was."""
    return prune_nodes(graph_def.node, outputs, graph_def)


def prune_nodes(
    given: Iterable[tf.compat.v1.NodeDef], outputs: Iterable[str], like: tf.compat.v1.GraphDef
) -> tf.compat.v1.GraphDef:
    """A graph of those of the nodes `given` that `outputs` depend on, in their order: no other node is copied.

    like: the graph whose versions and functions it has.
    """
    nodes = {node.name: node for node in given}
    needed: set[str] = set()
    open_names = [name.partition(":")[0] for name in outputs]
    while open_names:
        name = open_names.pop()
        if name not in needed:
            needed.add(name)
            open_names += [source.removeprefix("^").partition(":")[0] for source in nodes[name].input]
    pruned = tf.compat.v1.GraphDef(versions=like.versions, library=like.library)
    pruned.node.extend(node for name, node in nodes.items() if name in needed)
    for node in pruned.node:
        if "_class" in node.attr:
            _drop_lost_colocations(node, needed)
    return pruned


def add_named_outputs(graph_def: tf.compat.v1.GraphDef, tensors: Iterable[tuple[str, tf.Tensor]]) -> tuple[str, ...]:
    """Append an Identity called `name` for each name and tensor, so that a signature's names are found in the graph.

    Changes `graph_def`. Returns the tensor names in order. A tensor that has its name already is left alone; a name
    that another node holds gets a number.
    """
    taken = {node.name for node in graph_def.node}
    named = []
    for name, tensor in tensors:
        if tensor.name != f"{name}:0":
            free = next(choice for choice in chain([name], (f"{name}_{n}" for n in count(1))) if choice not in taken)
            taken.add(free)
            identity = graph_def.node.add(name=free, op="Identity", input=[tensor.name.removesuffix(":0")])
            identity.attr["T"].type = tensor.dtype.as_datatype_enum
            named.append(f"{free}:0")
        else:
            named.append(tensor.name)
    return tuple(named)


def _ancestors(graph: tf.Graph, outputs: Iterable[str], stop: set[str]) -> list[tf.Operation]:
    """The ops that `outputs` depend on, in the graph's order; the walk does not go behind the ops named in `stop`."""
    seen: set[str] = set()
    pending = [graph.get_tensor_by_name(name).op for name in outputs]
    while pending:
        operation = pending.pop()
        if operation.name not in seen:
            seen.add(operation.name)
            if operation.name not in stop:
                pending += [tensor.op for tensor in operation.inputs] + list(operation.control_inputs)
    return [operation for operation in graph.get_operations() if operation.name in seen]


def _find_sinks(graph: tf.Graph) -> tuple[str, ...]:
    """The first output of every op that nobody consumes and that depends on a placeholder."""
    operations = graph.get_operations()
    sources = [op for op in operations if op.type == "Placeholder"]
    dependent = _descendants(sources or [op for op in operations if _is_numeric_default(op)])
    candidates = dependent.difference(waited.name for op in operations for waited in op.control_inputs)
    return tuple(
        operation.outputs[0].name
        for operation in operations
        if operation.name in candidates
        and operation.outputs
        and operation.outputs[0].dtype != tf.string
        and not any(tensor.consumers() for tensor in operation.outputs)
        and not operation.type.startswith(_NOT_RESULTS)
    )


def _descendants(sources: Iterable[tf.Operation]) -> set[str]:
    seen: set[str] = set()
    pending = list(sources)
    while pending:
        operation = pending.pop()
        if operation.name not in seen:
            seen.add(operation.name)
            pending += [consumer for tensor in operation.outputs for consumer in tensor.consumers()]
    return seen


def _is_numeric_default(operation: tf.Operation) -> bool:
    return operation.type == "PlaceholderWithDefault" and operation.outputs[0].dtype not in (tf.string, tf.bool)


def _drop_lost_colocations(node: tf.compat.v1.NodeDef, kept: set[str]) -> None:
    """Forget that a node wanted the device of a node that was pruned: the graph would not load."""
    places = [place for place in node.attr["_class"].list.s if place.decode().removeprefix("loc:@") in kept]
    if places:
        node.attr["_class"].list.s[:] = places
    else:
        del node.attr["_class"]


def _nearest(name: str, graph: tf.Graph) -> str:
    names = [operation.name for operation in graph.get_operations() if operation.outputs]
    near = get_close_matches(name, names, n=3, cutoff=0.5)
    near += [other for other in names if other.rpartition("/")[2] == name.rpartition("/")[2] and other not in near]
    return f" (did you mean {', '.join(map(repr, near[:3]))}?)" if near else f" of {len(names)} ops"


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
