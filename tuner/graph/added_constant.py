"""Constants kept outside of a model, such as the anchors of a detector: read without pickle, added to a tensor."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.core.framework.graph_pb2 import GraphDef
from tensorflow.core.framework.node_def_pb2 import NodeDef

from tuner.errors import ModelError, did_you_mean
from tuner.model.frozen_graph import copy_graph, import_graph
from tuner.model.graph_view import node_name, tensor_name

_PICKLES = (".pkl", ".pickle", ".p")
# What TensorFlow's importer takes: stricter than the rule of its Python side, which lets a backslash and `a>` pass.
_NODE_NAME = re.compile(r"[A-Za-z0-9.][\w./-]*(>[A-Za-z0-9.][\w./-]*)*", re.ASCII)


@dataclass(frozen=True, eq=False)
class AddedConstant:
    """A constant, the tensor that it is added to, and the name of the sum.

    name: of the constant's node. value: of any shape that can be broadcast with the tensor's. to: a tensor of the
    graph, with or without ":0". output: name of the node that holds the sum.
    Raises ModelError for a name that no node can have.
    """

    name: str
    value: NDArray[Any]
    to: str
    output: str

    def __post_init__(self) -> None:
        check_node_name(self.name)
        check_node_name(self.output)


def check_node_name(name: str) -> None:
    """Raise ModelError for the name of a node with which TensorFlow cannot load a graph."""
    if not _NODE_NAME.fullmatch(name):
        raise ModelError(
            f"{name!r} cannot be the name of a node: expected letters, digits and _ . / -, "
            "the first a letter, a digit or a dot"
        )


def read_constant(text: str) -> tuple[str, NDArray[Any]]:
    """The name and the numbers that `NAME=FILE.npy`, `NAME=FILE.npz` or `NAME=FILE.npz:KEY` stands for.

    Raises ModelError for anything that is not an array of numbers. Pickles are not read: they may run any code.
    """
    name, equals, place = text.partition("=")
    if not (name and equals and place):
        raise ModelError(f"a constant is NAME=FILE.npy, NAME=FILE.npz or NAME=FILE.npz:KEY; got {text!r}")
    file, key = Path(place), ""
    if ".npz:" in place:
        before, _, key = place.rpartition(".npz:")
        file = Path(f"{before}.npz")
    if file.suffix in _PICKLES:
        # Two lines that also work as one.
        raise ModelError(
            f"{file}: a pickle may run any code when it is read; convert it where you trust it: import numpy, pickle;\n"
            f"numpy.save({str(file.with_suffix('.npy'))!r}, pickle.load(open({str(file)!r}, 'rb')))"
        )
    if file.suffix not in (".npy", ".npz"):
        raise ModelError(f"{file}: expected a .npy or .npz file, got {file.suffix or 'no ending'!r}")
    value = _read_array(file, key)
    if value.dtype.kind not in "fiub":
        raise ModelError(f"{place}: holds {value.dtype}, expected numbers")
    return name, value


def add_constant(graph_def: GraphDef, constant: AddedConstant) -> GraphDef:
    """A copy of the graph in which the node `constant.output` is the sum of the tensor and the constant.

    Whoever read the tensor goes on reading it. A tensor that has the wanted name itself gets another one.
    Raises ModelError for a tensor that is not there, names that are taken, shapes that cannot be broadcast, or numbers
    that the tensor's dtype cannot hold.
    """
    copy = copy_graph(graph_def)
    taken = {node.name for node in copy.node}
    source = node_name(constant.to)
    if source not in taken:
        raise ModelError(f"no tensor {constant.to!r} to add a constant to{did_you_mean(source, taken)}")
    with tf.Graph().as_default() as imported:
        import_graph(copy)
    outputs = imported.get_operation_by_name(source).outputs
    index = constant.to.partition(":")[2] or "0"
    if not index.isdigit() or int(index) >= len(outputs):
        raise ModelError(f"no tensor {constant.to!r} to add a constant to: {source!r} has {len(outputs)} outputs")
    value = _as_added(constant, outputs[int(index)])
    if constant.output == source:
        source = _rename(copy, source, taken)
        taken.remove(constant.output)
    for name in (constant.name, constant.output):
        if name in taken:
            raise ModelError(f"the graph has a node {name!r} already; give the new one another name")
        taken.add(name)
    held = NodeDef(op="Const", name=constant.name)
    held.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))
    held.attr["dtype"].type = held.attr["value"].tensor.dtype
    added = NodeDef(op="AddV2", name=constant.output, input=[tensor_name(f"{source}:{index}"), constant.name])
    added.attr["T"].type = held.attr["dtype"].type
    copy.node.extend([held, added])
    return copy


def _read_array(file: Path, key: str) -> NDArray[Any]:
    try:
        content = np.load(file, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return content
        with content:
            keys = list(content)
            if not key and len(keys) != 1:
                raise ModelError(f"{file}: holds {', '.join(keys) or 'nothing'}; name one as {file.name}:KEY")
            if key and key not in keys:
                raise ModelError(f"{file}: no {key!r}; it holds {', '.join(keys)}{did_you_mean(key, keys)}")
            array: NDArray[Any] = content[key or keys[0]]
            return array
    except ModelError:
        raise
    except OSError as error:
        raise ModelError(f"{file}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # Damage makes zipfile, zlib and NumPy raise nearly anything.
        raise ModelError(f"{file}: not an array of numbers, or a damaged one") from error


def _as_added(constant: AddedConstant, tensor: tf.Tensor) -> NDArray[Any]:
    what = f"constant {constant.name!r} of {constant.value.dtype} {list(constant.value.shape)}"
    if not (tensor.dtype.is_floating or tensor.dtype.is_integer):
        raise ModelError(f"{what} cannot be added to {tensor.name}, which holds {tensor.dtype.name}")
    dtype = tensor.dtype.as_numpy_dtype
    if not np.can_cast(constant.value.dtype, dtype, "same_kind"):
        raise ModelError(f"{what} cannot be added to {tensor.name}, which holds {tensor.dtype.name}")
    try:
        tf.broadcast_static_shape(tf.TensorShape(constant.value.shape), tensor.shape)
    except ValueError:
        raise ModelError(f"{what} cannot be broadcast with {tensor.name} of {tensor.shape}") from None
    return _cast(constant.value, tensor, what)


def _cast(value: NDArray[Any], tensor: tf.Tensor, what: str) -> NDArray[Any]:
    """The value in the tensor's dtype: rounded where that is coarser, but never made infinite or another number."""
    with np.errstate(over="ignore"):
        cast: NDArray[Any] = np.asarray(value).astype(tensor.dtype.as_numpy_dtype)
    lost = (np.isfinite(value) & ~np.isfinite(cast)) if tensor.dtype.is_floating else cast != value
    if np.any(lost):
        first = np.asarray(value)[lost].flat[0]
        raise ModelError(f"{what} holds {first}: out of the range of {tensor.name}, which holds {tensor.dtype.name}")
    return cast


def _rename(graph_def: GraphDef, name: str, taken: set[str]) -> str:
    """Change the graph: another name for a node. Returns it."""
    new = f"{name}_without_constant"
    if new in taken:
        raise ModelError(f"the graph has nodes {name!r} and {new!r} already; give the sum another name")
    for node in graph_def.node:
        if node.name == name:
            node.name = new
        for position, tensor in enumerate(node.input):
            if node_name(tensor) == name:
                caret, index = "^" * (tensor[0] == "^"), tensor.removeprefix("^")[len(name) :]
                node.input[position] = f"{caret}{new}{index}"
    return new
