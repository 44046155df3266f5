"""TF1 checkpoints: a graph in `.meta` or a GraphDef of its own, its variables in `.index` and `.data-*` shards."""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

import tensorflow as tf
from google.protobuf import text_format
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef

from tuner.errors import ModelError
from tuner.model.endpoints import find_outputs
from tuner.model.forbidden_ops import check_before_run
from tuner.model.freezing import VARIABLES, FrozenGraph, freeze_session, run_by_freezing
from tuner.model.frozen_graph import read_graph_def
from tuner.model.importable import check_importable
from tuner.model.tensorflow_error import first_line

_SHARD = re.compile(r"\.data-\d{5}-of-(\d{5})$")
_WITH_GRAPH = (".meta", ".index")


def find_prefix(path: Path, needed: Sequence[str] = _WITH_GRAPH) -> Path:
    """The checkpoint's prefix, `folder/model.ckpt`, from its folder, one of its files, or the prefix itself.

    In a folder the `checkpoint` file decides, and the only prefix where there is no such file. needed: the endings of
    the files that there must be besides the shards.
    Raises ModelError listing the prefixes when there are several, or naming the file that is missing.
    """
    prefix = _prefix_in_folder(path, needed[0]) if path.is_dir() else path
    if path.is_file():
        prefix = path.with_suffix("")
    for suffix in needed:
        if not Path(f"{prefix}{suffix}").is_file():
            raise ModelError(f"{prefix.name}{suffix} is missing; a checkpoint is a .meta, an .index and .data-* shards")
    totals = {
        int(match[1])
        for entry in prefix.parent.iterdir()
        if entry.name.startswith(f"{prefix.name}.data-") and (match := _SHARD.search(entry.name))
    }
    total = max(totals, default=1)
    for shard in range(total):
        name = f"{prefix.name}.data-{shard:05d}-of-{total:05d}"
        if not (prefix.parent / name).is_file():
            raise ModelError(f"shard {name} is missing")
    return prefix


def freeze_checkpoint(prefix: Path, outputs: Sequence[str], *, allow_ops: bool = False) -> FrozenGraph:
    """The checkpoint's graph with its variables as constants, as far as `outputs` (else those found) need it.

    allow_ops: as `load_model`.
    Raises ModelError for a damaged file, an op unknown to this TensorFlow, or a variable without a value.
    """
    return _freeze_meta_graph(Path(f"{prefix}.meta"), prefix, outputs, allow_ops=allow_ops)


def _freeze_meta_graph(meta: Path, prefix: Path, outputs: Sequence[str], *, allow_ops: bool) -> FrozenGraph:
    meta_graph = _read_meta_graph(meta, prefix)
    check_importable(meta_graph.graph_def, allow_ops=allow_ops)
    if not allow_ops:
        saver_def, graph_def = meta_graph.saver_def, meta_graph.graph_def
        roots = [*run_by_freezing(graph_def), saver_def.restore_op_name]
        check_before_run(graph_def, roots, restored_from=saver_def.filename_tensor_name)
    with tf.Graph().as_default() as graph, tf.compat.v1.Session(graph=graph) as session:
        try:
            saver = tf.compat.v1.train.import_meta_graph(meta_graph, clear_devices=True)
            if saver is not None:
                saver.restore(session, str(prefix))
        except (OSError, ValueError, KeyError, TypeError, DecodeError, tf.errors.OpError) as error:
            raise ModelError(f"checkpoint {prefix.name} cannot be restored: {first_line(error)}") from error
        found = find_outputs(graph, outputs)
        return FrozenGraph(freeze_session(session, found), found)


def freeze_graph_with_checkpoint(
    graph: Path, checkpoint: Path, outputs: Sequence[str], *, allow_ops: bool = False
) -> FrozenGraph:
    """A GraphDef, binary or text, whose variables have the values that lie under their names in a checkpoint.

    Or a `.meta`, of this checkpoint or another one of the same model, whose own saver restores them. As far as
    `outputs` (else those found) need it; devices are forgotten. A variable that the checkpoint lacks stops a GraphDef
    only where an output needs it. Raises ModelError where `freeze_checkpoint` does.
    """
    if graph.suffix == ".meta":
        return _freeze_meta_graph(graph, find_prefix(checkpoint, needed=(".index",)), outputs, allow_ops=allow_ops)
    graph_def = _read_any_graph_def(graph)
    check_importable(graph_def, allow_ops=allow_ops)
    if not allow_ops:
        check_before_run(graph_def, run_by_freezing(graph_def))
    prefix = find_prefix(checkpoint, needed=(".index",))
    for node in itertools.chain(graph_def.node, *(function.node_def for function in graph_def.library.function)):
        node.device = ""
    with tf.Graph().as_default() as imported, tf.compat.v1.Session(graph=imported) as session:
        try:
            tf.import_graph_def(graph_def, name="")
            _restore_variables(session, prefix)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, tf.errors.OpError) as error:
            raise ModelError(f"cannot be given the values of {prefix.name}: {first_line(error)}") from error
        found = find_outputs(imported, outputs)
        return FrozenGraph(freeze_session(session, found), found)


def _read_meta_graph(path: Path, prefix: Path) -> MetaGraphDef:
    """A binary MetaGraphDef, or a text one."""
    try:
        content = path.read_bytes()
        try:
            return MetaGraphDef.FromString(content)
        except DecodeError:
            return text_format.Parse(content.decode(), MetaGraphDef())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise ModelError(f"checkpoint {prefix.name} cannot be restored: {path.name} is damaged or no graph") from error


def _read_any_graph_def(path: Path) -> tf.compat.v1.GraphDef:
    """A GraphDef of either form whatever its name: `write_graph` wrote text under names ending in `.pb`, too."""
    try:
        return read_graph_def(path)
    except ModelError:
        try:
            graph_def = text_format.Parse(path.read_text(), tf.compat.v1.GraphDef())
        except (OSError, UnicodeDecodeError, text_format.ParseError):
            graph_def = None
        if graph_def is None or not graph_def.node:
            raise
        return graph_def


def _restore_variables(session: tf.compat.v1.Session, prefix: Path) -> None:
    """Give the variables of the session's graph that the checkpoint knows by name their values.

    Without the graph's own saver, which a GraphDef need not have.
    """
    saved = tf.train.load_checkpoint(str(prefix))
    variables = [
        operation
        for operation in session.graph.get_operations()
        if operation.type in VARIABLES and saved.has_tensor(operation.name)
    ]
    if not variables:
        raise ValueError("no variable of the graph has a value there")
    dtypes = [tf.dtypes.as_dtype(operation.get_attr("dtype")) for operation in variables]
    names = [operation.name for operation in variables]
    values = tf.raw_ops.RestoreV2(
        prefix=str(prefix), tensor_names=names, shape_and_slices=[""] * len(names), dtypes=dtypes
    )
    for operation, value in zip(variables, values, strict=True):
        (reference,) = operation.outputs
        if reference.dtype == tf.resource:
            session.run(tf.raw_ops.AssignVariableOp(resource=reference, value=value))
        else:
            session.run(tf.compat.v1.assign(reference, value).op)


def _prefix_in_folder(folder: Path, needed: str) -> Path:
    present = sorted({entry.name.rsplit(".", 1)[0] for entry in folder.glob(f"*{needed}")})
    if (folder / "checkpoint").is_file():
        named = _latest_in_checkpoint_file(folder / "checkpoint")
        # The file often holds the path of the machine that trained the model: its last part is what counts here.
        prefix = folder / Path(named).name
        if prefix.name not in present:
            shown = ", ".join(present) or f"no {needed} file"
            raise ModelError(f"the checkpoint file names {prefix.name!r}, but the folder holds {shown}")
        return prefix
    if not present:
        missing = "graph" if needed == ".meta" else "list of the variables"
        raise ModelError(f"no {needed} file: the {missing} of the checkpoint is missing")
    if len(present) > 1:
        raise ModelError(f"several checkpoints and no checkpoint file: {', '.join(present)}; name one of them")
    return folder / present[0]


def _latest_in_checkpoint_file(path: Path) -> str:
    match = re.search(r'^\s*model_checkpoint_path:\s*"(.+)"', path.read_text(errors="replace"), re.MULTILINE)
    if match is None:
        raise ModelError("the checkpoint file has no model_checkpoint_path")
    return match[1]
