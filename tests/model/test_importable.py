"""Constants that cannot be, functions that call themselves, and loops without an end are refused before the import."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from tuner.errors import ModelError
from tuner.model.importable import check_importable
from tuner.model.loading import load_model, read_unpruned

tf1 = tf.compat.v1
Change = Callable[[tf1.GraphDef], None]

REFUSAL = r"which no constant can have|calls itself"


def constant(sizes: list[int], values: int = 1, dtype: int = 1, content: bytes = b"") -> Change:
    """Adds a constant of this shape that holds so many values, or `content`."""

    def change(graph_def: tf1.GraphDef) -> None:
        attributes = graph_def.node.add(name="odd", op="Const").attr
        attributes["dtype"].type = dtype
        tensor = attributes["value"].tensor
        tensor.dtype = dtype
        for size in sizes:
            tensor.tensor_shape.dim.add(size=size)
        tensor.float_val.extend([1.0] * values)
        tensor.tensor_content = content

    return change


def functions(**calls: str) -> Change:
    """Adds functions, each of which calls another by an attribute."""

    def change(graph_def: tf1.GraphDef) -> None:
        for name, called in calls.items():
            function = graph_def.library.function.add()
            function.signature.name = name
            function.node_def.add(name="call", op="PartitionedCall").attr["f"].func.name = called

    return change


def loop(*ops: str) -> Change:
    """Adds a cycle of nodes of these ops."""

    def change(graph_def: tf1.GraphDef) -> None:
        for place, op in enumerate(ops):
            graph_def.node.add(name=f"loop{place}", op=op, input=[f"loop{place - 1 if place else len(ops) - 1}:1"])

    return change


REFUSED: list[tuple[Change, str]] = [
    (constant([-1]), "constant 'odd' has the shape [-1], which no constant can have"),
    (constant([1] * 255), "which no constant can have"),
    (constant([10**6, 10**6]), "constant 'odd' of shape [1000000, 1000000] repeats one value"),
    (constant([2], values=5), "does not hold the 2 values of its shape [2]"),
    (constant([2], values=0, content=b"1234"), "does not hold the 2 values of its shape [2]"),
    (constant([2], dtype=9999), "constant 'odd' is of the unknown type 9999"),
    (functions(f="f"), "function 'f' calls itself"),
    (functions(f="g", g="f"), "calls itself"),
    (loop("Merge", "NextIteration"), "waits for itself, in a cycle that nothing ends"),
    (loop("Identity"), "node 'loop0' waits for itself"),
]


@pytest.mark.parametrize(("change", "fault"), REFUSED)
def test_refused(change: Change, fault: str) -> None:
    graph_def = tf1.GraphDef()
    change(graph_def)
    with pytest.raises(ModelError) as caught:
        check_importable(graph_def, allow_ops=True)
    assert fault in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        constant([]),
        constant([0], values=0),
        constant([3]),
        constant([3], values=3),
        constant([2], values=0, content=b"12345678"),
        constant([1000, 1000]),
        functions(f="g", g="h"),
        loop("Merge", "Switch", "Identity", "NextIteration"),
    ],
)
def test_taken(change: Change) -> None:
    graph_def = tf1.GraphDef()
    change(graph_def)
    check_importable(graph_def, allow_ops=False)


@pytest.mark.parametrize("change", [constant([-1]), functions(f="f")])
def test_every_format_is_looked_through(
    change: Change,
    tmp_path: Path,
    frozen: tuple[Path, Any],
    write_checkpoint: Callable[..., tuple[Path, Any]],
    write_tf1_saved_model: Callable[..., tuple[Path, Any]],
) -> None:
    graph_def = tf1.GraphDef.FromString(frozen[0].read_bytes())
    change(graph_def)
    graph = tmp_path / "graph.pb"
    graph.write_bytes(graph_def.SerializeToString())

    checkpoint = write_checkpoint()[0]
    meta = checkpoint / "model.ckpt.meta"
    meta_graph = MetaGraphDef.FromString(meta.read_bytes())
    change(meta_graph.graph_def)
    meta.write_bytes(meta_graph.SerializeToString())

    folder = write_tf1_saved_model()[0]
    saved = SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    change(saved.meta_graphs[0].graph_def)
    (folder / "saved_model.pb").write_bytes(saved.SerializeToString())

    for path in (graph, checkpoint, folder):
        for allow_ops in (False, True):
            with pytest.raises(ModelError, match=REFUSAL):
                load_model(path, allow_ops=allow_ops)
    for path in (graph, meta):
        with pytest.raises(ModelError, match=REFUSAL):
            load_model(path, checkpoint=checkpoint)
    with pytest.raises(ModelError, match=REFUSAL):
        read_unpruned(graph)
