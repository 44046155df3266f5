"""TF1 checkpoints: a graph in `.meta`, its variables in `.index` and `.data-*` shards."""

import re
from collections.abc import Sequence
from pathlib import Path

import tensorflow as tf
from google.protobuf.message import DecodeError

from tuner.errors import ModelError
from tuner.model.endpoints import find_outputs
from tuner.model.freezing import FrozenGraph, freeze_session
from tuner.model.tensorflow_error import first_line

_SHARD = re.compile(r"\.data-\d{5}-of-(\d{5})$")


def find_prefix(path: Path) -> Path:
    """The checkpoint's prefix, `folder/model.ckpt`, from its folder, one of its files, or the prefix itself.

    In a folder the `checkpoint` file decides, and the only prefix where there is no such file.
    Raises ModelError listing the prefixes when there are several, or naming the file that is missing.
    """
    prefix = _prefix_in_folder(path) if path.is_dir() else path
    if path.is_file():
        prefix = path.with_suffix("")
    for suffix in (".meta", ".index"):
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


def freeze_checkpoint(prefix: Path, outputs: Sequence[str]) -> FrozenGraph:
    """The checkpoint's graph with its variables as constants, as far as `outputs` (else those found) need it.

    Raises ModelError for a damaged file, an op unknown to this TensorFlow, or a variable without a value.
    """
    with tf.Graph().as_default() as graph, tf.compat.v1.Session(graph=graph) as session:
        try:
            saver = tf.compat.v1.train.import_meta_graph(f"{prefix}.meta", clear_devices=True)
            if saver is not None:
                saver.restore(session, str(prefix))
        except (OSError, ValueError, KeyError, TypeError, DecodeError, tf.errors.OpError) as error:
            raise ModelError(f"checkpoint {prefix.name} cannot be restored: {first_line(error)}") from error
        found = find_outputs(graph, outputs)
        return FrozenGraph(freeze_session(session, found), found)


def _prefix_in_folder(folder: Path) -> Path:
    present = sorted({entry.name.rsplit(".", 1)[0] for entry in folder.glob("*.meta")})
    if (folder / "checkpoint").is_file():
        named = _latest_in_checkpoint_file(folder / "checkpoint")
        # The file often holds the path of the machine that trained the model: its last part is what counts here.
        prefix = folder / Path(named).name
        if prefix.name not in present:
            shown = ", ".join(present) or "no .meta file"
            raise ModelError(f"the checkpoint file names {prefix.name!r}, but the folder holds {shown}")
        return prefix
    if not present:
        raise ModelError("no .meta file: the graph of the checkpoint is missing")
    if len(present) > 1:
        raise ModelError(f"several checkpoints and no checkpoint file: {', '.join(present)}; name one of them")
    return folder / present[0]


def _latest_in_checkpoint_file(path: Path) -> str:
    match = re.search(r'^\s*model_checkpoint_path:\s*"(.+)"', path.read_text(errors="replace"), re.MULTILINE)
    if match is None:
        raise ModelError("the checkpoint file has no model_checkpoint_path")
    return match[1]
