"""Any detector on disk becomes one frozen graph."""

from collections.abc import Sequence
from pathlib import Path

import tensorflow as tf

from tuner.errors import ModelError
from tuner.model.checkpoint import find_prefix, freeze_checkpoint, freeze_graph_with_checkpoint
from tuner.model.detection_model import DetectionModel, ModelFormat
from tuner.model.endpoints import find_inputs, find_outputs, prune
from tuner.model.forbidden_ops import check_before_run
from tuner.model.freezing import VARIABLES, FrozenGraph
from tuner.model.frozen_graph import read_graph_def
from tuner.model.importable import check_importable
from tuner.model.keras_model import freeze_keras_model
from tuner.model.saved_model import freeze_saved_model
from tuner.model.tensorflow_error import first_line


def load_model(
    path: Path,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
    *,
    checkpoint: Path | None = None,
    allow_ops: bool = False,
) -> DetectionModel:
    """Read a frozen `.pb`/`.pbtxt`, a TF1 checkpoint, a SavedModel folder or a Keras file as one frozen graph.

    inputs, outputs: tensor names with or without ":0" (for a SavedModel also keys of its signature). Not given:
    the signature's; else the placeholders, and the Object Detection API's output names or the graph's sinks.
    checkpoint: where the variables of a `.meta`, or of a `.pb`/`.pbtxt` that is not frozen, lie: a folder, a prefix or
    one of its files.
    allow_ops: take a model with ops that reach files, the network or code outside of the graph, too; without it they
    are refused before anything of the model is run. See `forbidden_ops`.
    The graph is frozen and pruned to the outputs, and otherwise left as it is: nothing is folded or rewritten.

    Raises ModelError, in one line, for whatever cannot be read, frozen or found.
    """
    try:
        if checkpoint is not None:
            frozen = freeze_graph_with_checkpoint(path, checkpoint, outputs, allow_ops=allow_ops)
            found = _finish(frozen, inputs, outputs, allow_ops=allow_ops)
            return DetectionModel(*found, path, ModelFormat.CHECKPOINT)
        model_format = _detect_format(path)
        frozen = _read(path, model_format, outputs, allow_ops=allow_ops)
        return DetectionModel(*_finish(frozen, inputs, outputs, allow_ops=allow_ops), path, model_format)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error.__cause__


def read_unpruned(path: Path, outputs: Sequence[str] = (), *, allow_ops: bool = False) -> FrozenGraph:
    """What `load_model` reads, before it is checked and pruned: a `.pb`/`.pbtxt` just as it lies on disk.

    outputs, allow_ops, and errors: as `load_model`, but nodes that only running the graph would run may be any.
    """
    try:
        frozen = _read(path, _detect_format(path), outputs, allow_ops=allow_ops)
        check_importable(frozen.graph_def, allow_ops=allow_ops)
        return frozen
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error.__cause__


def _read(path: Path, model_format: ModelFormat, outputs: Sequence[str], *, allow_ops: bool) -> FrozenGraph:
    if model_format is ModelFormat.FROZEN_GRAPH:
        return FrozenGraph(read_graph_def(path))
    if model_format is ModelFormat.CHECKPOINT:
        return freeze_checkpoint(find_prefix(path), outputs, allow_ops=allow_ops)
    if model_format is ModelFormat.SAVED_MODEL:
        return freeze_saved_model(_saved_model_folder(path), outputs, allow_ops=allow_ops)
    return freeze_keras_model(path)


def _finish(
    frozen: FrozenGraph, inputs: Sequence[str], outputs: Sequence[str], *, allow_ops: bool
) -> tuple[tf.compat.v1.GraphDef, tuple[str, ...], tuple[str, ...]]:
    """The pruned graph, its inputs and its outputs."""
    graph_def = frozen.graph_def
    check_importable(graph_def, allow_ops=allow_ops)
    with tf.Graph().as_default() as graph:
        try:
            # In place: attributes that a file leaves out because they have their default value are written in.
            tf.import_graph_def(graph_def, name="")
        except (ValueError, KeyError, TypeError, tf.errors.OpError) as error:
            raise ModelError(
                f"not a graph that this TensorFlow {tf.__version__} can run: {first_line(error)}"
            ) from error
    asked_outputs = [frozen.aliases.get(name, name) for name in outputs]
    asked_inputs = [frozen.aliases.get(name, name) for name in inputs]
    found_outputs = find_outputs(graph, asked_outputs or frozen.outputs)
    found_inputs = find_inputs(graph, found_outputs, asked_inputs)
    pruned = prune(graph_def, found_outputs)
    if not allow_ops:
        check_before_run(pruned, found_outputs)
    unfrozen = [node.name for node in pruned.node if node.op in VARIABLES]
    if unfrozen:
        raise ModelError(
            f"{len(unfrozen)} unfrozen variables, the first {unfrozen[0]!r}; give the checkpoint or SavedModel instead"
        )
    return pruned, found_inputs, found_outputs


def _detect_format(path: Path) -> ModelFormat:
    if path.is_dir():
        if any((path / name).is_file() for name in ("saved_model.pb", "saved_model.pbtxt")):
            return ModelFormat.SAVED_MODEL
        names = sorted(entry.name for entry in path.iterdir())
        if any(name == "checkpoint" or name.endswith((".meta", ".index")) for name in names):
            return ModelFormat.CHECKPOINT
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") if names else "nothing"
        raise ModelError(f"no model in this folder: found {shown}; expected saved_model.pb or a .meta/.index/.data set")
    if path.is_file():
        if path.name in ("saved_model.pb", "saved_model.pbtxt"):
            return ModelFormat.SAVED_MODEL
        by_suffix = {
            ".pb": ModelFormat.FROZEN_GRAPH,
            ".pbtxt": ModelFormat.FROZEN_GRAPH,
            ".meta": ModelFormat.CHECKPOINT,
            ".index": ModelFormat.CHECKPOINT,
            ".keras": ModelFormat.KERAS,
            ".h5": ModelFormat.KERAS,
            ".hdf5": ModelFormat.KERAS,
        }
        if path.suffix not in by_suffix:
            raise ModelError(f"unknown kind of model {path.suffix or path.name!r}; expected {', '.join(by_suffix)}")
        return by_suffix[path.suffix]
    if path.parent.is_dir() and any(path.parent.glob(f"{path.name}.*")):
        return ModelFormat.CHECKPOINT
    raise ModelError("no such file or folder")


def _saved_model_folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent
