"""Reading a GraphDef from a file that may be anything, and importing it as it is."""

from pathlib import Path

import tensorflow as tf
from google.protobuf import text_format
from google.protobuf.message import DecodeError

from tuner.errors import ModelError

_NOT_A_GRAPH = {
    b"version https://git-lfs": "a Git LFS pointer, not the model itself: fetch it with `git lfs pull`",
    b"<": "an HTML or XML page, not a model: was the download an error page?",
    b"PK\x03\x04": "a zip archive, not a GraphDef",
    b"\x1f\x8b": "a gzip archive, not a GraphDef: unpack it first",
}


def read_graph_def(path: Path) -> tf.compat.v1.GraphDef:
    """A binary GraphDef, or a text one where the name ends in `.pbtxt`. Raises ModelError saying what the file is."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror or error}") from error
    if not content:
        raise ModelError("an empty file, not a GraphDef")
    for beginning, what in _NOT_A_GRAPH.items():
        if content.lstrip().startswith(beginning):
            raise ModelError(what)
    graph_def = tf.compat.v1.GraphDef()
    try:
        if path.suffix == ".pbtxt":
            text_format.Parse(content.decode(), graph_def)
        else:
            graph_def.ParseFromString(content)
    except (DecodeError, text_format.ParseError, UnicodeDecodeError) as error:
        raise ModelError(f"not a GraphDef, or a damaged one of {len(content)} bytes") from error
    if not graph_def.node:
        raise ModelError(f"not a GraphDef: no node in {len(content)} bytes")
    return graph_def


def import_graph(graph_def: tf.compat.v1.GraphDef) -> None:
    """Import a GraphDef into the default graph under its own names; errors are TensorFlow's.

    A copy is imported: TensorFlow writes attributes that have their default value into what it is given.
    """
    tf.import_graph_def(copy_graph(graph_def), name="")


def copy_graph(graph_def: tf.compat.v1.GraphDef) -> tf.compat.v1.GraphDef:
    """A copy that may be changed."""
    copy = tf.compat.v1.GraphDef()
    copy.CopyFrom(graph_def)
    return copy
