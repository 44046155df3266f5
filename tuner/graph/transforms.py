"""TensorFlow 1's Graph Transform Tool on models of any format, with the lists of transforms of its manual."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import tensorflow as tf
from tensorflow.core.framework.graph_pb2 import GraphDef

from tuner.errors import ConfigError, ModelError, did_you_mean
from tuner.files import write_bytes
from tuner.graph.transform_tool import run_transforms
from tuner.model.endpoints import find_inputs, find_outputs
from tuner.model.freezing import FrozenGraph
from tuner.model.frozen_graph import import_graph
from tuner.model.graph_view import node_name
from tuner.model.loading import read_unpruned
from tuner.model.tensorflow_error import first_line

Names: TypeAlias = str | Iterable[str]
Shape: TypeAlias = int | str | Sequence[int]

_SIDE = 299


@dataclass(frozen=True)
class Transformed:
    """A graph as it was read and as it came out. inputs, outputs: names of its nodes."""

    before: GraphDef
    after: GraphDef
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def transform_graph(  # noqa: PLR0917 - the arguments that scripts of the Graph Transform Tool give it
    path_to_model: str | Path,
    save_dir: str | Path,
    file_name: str,
    inputs: Names,
    outputs: Names,
    transforms: Names,
    *,
    allow_ops: bool = False,
) -> Transformed:
    """Transform the graph of a model and write it to `save_dir/file_name`; the model itself stays as it is.

    path_to_model: frozen graph, TF1 checkpoint, SavedModel or Keras file. inputs, outputs: names of tensors or nodes,
    in a list or with commas between them; empty: those found. transforms: a list, or one text as the tool's
    `--transforms`. allow_ops: as `load_model`.
    Raises ModelError, in one line, for a model that cannot be read, a name that is not in it, transforms that fail, a
    result that TensorFlow cannot load, or a place that is the model's own.
    """
    model, place = Path(path_to_model), Path(save_dir) / file_name
    if place.resolve() == model.resolve():
        raise ModelError(f"{place}: the output would replace the input model; give it another name")
    transformed = apply_transforms(model, inputs, outputs, transforms, allow_ops=allow_ops)
    write_bytes(place, transformed.after.SerializeToString(deterministic=True))
    return transformed


def apply_transforms(
    path: Path, inputs: Names, outputs: Names, transforms: Names, *, allow_ops: bool = False
) -> Transformed:
    """What `transform_graph` writes, unwritten. Arguments and errors as there."""
    asked_inputs, asked_outputs = _as_list(inputs), _as_list(outputs)
    frozen = read_unpruned(path, asked_outputs, allow_ops=allow_ops)
    try:
        named = _endpoints(frozen, asked_inputs, asked_outputs)
        text = transforms if isinstance(transforms, str) else " ".join(transforms)
        after = run_transforms(frozen.graph_def, *named, text)
        _forget_lost_colocations(after)
        _check(after, named[1])
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error.__cause__
    return Transformed(frozen.graph_def, after, *map(tuple, named))


def _strip_unused_nodes(shape: Shape) -> str:
    sizes = (
        shape.strip("\"' ").split(",") if isinstance(shape, str) else shape if not isinstance(shape, int) else [shape]
    )
    try:
        numbers = [int(size) for size in sizes]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) == 1:
        numbers = [1, *numbers * 2, 3]
    if not numbers or min(numbers) < 1:
        raise ConfigError(f"shape: got {shape!r}; expected sizes from 1 on, as 1,299,299,3")
    return f'strip_unused_nodes(type=float, shape="{",".join(map(str, numbers))}")'


def get_optimizing_for_deployment_for_shape(shape: Shape) -> list[str]:
    """The manual's "Optimizing for Deployment".

    shape: of the placeholder that takes the place of an input that is none, as "1,299,299,3", (1, 299, 299, 3), or 299
    for an image of that side. Raises ConfigError for anything else.
    """
    return [
        _strip_unused_nodes(shape),
        "remove_nodes(op=Identity, op=CheckNumerics)",
        "fold_constants(ignore_errors=true)",
        "fold_batch_norms",
        "fold_old_batch_norms",
    ]


def get_fix_missing_kernel_errors_for_shape(shape: Shape) -> list[str]:
    """The manual's "Fixing Missing Kernel Errors on Mobile". shape, and errors: as for deployment."""
    return [
        _strip_unused_nodes(shape),
        "fold_constants(ignore_errors=true)",
        "fold_batch_norms",
        "fold_old_batch_norms",
    ]


def get_optimize_quantize_weights_for_shape(shape: Shape) -> list[str]:
    """The same, and weights stored in eight bits, a quarter of the size. shape, and errors: as for deployment."""
    return [*get_fix_missing_kernel_errors_for_shape(shape), "quantize_weights"]


optimizing_for_deployment_trans = get_optimizing_for_deployment_for_shape(_SIDE)
fix_missing_kernel_errors_trans = get_fix_missing_kernel_errors_for_shape(_SIDE)
optimize_quantize_weights_trans = get_optimize_quantize_weights_for_shape(_SIDE)

LISTS: dict[str, Callable[[Shape], list[str]]] = {
    "optimizing_for_deployment": get_optimizing_for_deployment_for_shape,
    "fix_missing_kernel_errors": get_fix_missing_kernel_errors_for_shape,
    "optimize_quantize_weights": get_optimize_quantize_weights_for_shape,
}


def named_transforms(text: str, shape: Shape | None) -> list[str]:
    """The list of that name for a shape, 1,299,299,3 where none is given; any other text as it is.

    Raises ConfigError for a shape that belongs to no list.
    """
    if text.strip() in LISTS:
        return LISTS[text.strip()](_SIDE if shape is None else shape)
    if shape is not None:
        raise ConfigError(f"a shape goes with one of the lists {', '.join(LISTS)}; got transforms {text.strip()!r}")
    return [text]


def _as_list(names: Names) -> list[str]:
    listed = names.split(",") if isinstance(names, str) else names
    return [name.strip() for name in listed if name.strip()]


def _endpoints(frozen: FrozenGraph, inputs: list[str], outputs: list[str]) -> tuple[list[str], list[str]]:
    """The names of the nodes that are the inputs and the outputs.

    Names that are given need no import: transforms may mend a graph that this TensorFlow cannot load.
    """
    inputs = [frozen.aliases.get(name, name) for name in inputs]
    outputs = [frozen.aliases.get(name, name) for name in outputs]
    if not (inputs and outputs):
        with tf.Graph().as_default() as graph:
            _import(frozen.graph_def, "name inputs and outputs; without, it is loaded to find them, and it is")
            found = find_outputs(graph, outputs or frozen.outputs)
            inputs, outputs = inputs or list(find_inputs(graph, found)), list(found)
    known = {node.name for node in frozen.graph_def.node}
    for role, names in (("input", inputs), ("output", outputs)):
        for name in names:
            if node_name(name) not in known:
                raise ModelError(f"{role} {name!r} is not in the graph{did_you_mean(node_name(name), known)}")
    return list(dict.fromkeys(map(node_name, inputs))), list(dict.fromkeys(map(node_name, outputs)))


def _forget_lost_colocations(graph_def: GraphDef) -> None:
    """Change the graph: the tool renames and removes nodes, but not in what others say about their device."""
    known = {node.name for node in graph_def.node}
    for node in graph_def.node:
        if "_class" in node.attr:
            places = (place.decode().removeprefix("loc:@") for place in node.attr["_class"].list.s)
            if not known.issuperset(places):
                del node.attr["_class"]


def _check(graph_def: GraphDef, outputs: Sequence[str]) -> None:
    lost = set(outputs).difference(node.name for node in graph_def.node)
    if lost:
        raise ModelError(f"the transforms removed or renamed the outputs {', '.join(sorted(lost))}")
    with tf.Graph().as_default():
        _import(graph_def, "the transformed graph is")


def _import(graph_def: GraphDef, what: str) -> None:
    try:
        import_graph(graph_def)
    except (ValueError, KeyError, TypeError, tf.errors.OpError) as error:
        raise ModelError(f"{what} not one that this TensorFlow can load: {first_line(error)}") from error
