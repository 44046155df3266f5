"""SavedModel folders of TF1 (graph and variables) and TF2 (traced functions)."""

from collections.abc import Sequence
from pathlib import Path

import tensorflow as tf
from google.protobuf import text_format
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef, SignatureDef
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from tuner.errors import ModelError
from tuner.model.endpoints import (
    DETECTION_OUTPUTS,
    OPTIONAL_DETECTION_OUTPUTS,
    add_named_outputs,
    find_outputs,
    resolve_tensor,
)
from tuner.model.forbidden_ops import check_before_run, check_functions
from tuner.model.freezing import FrozenGraph, freeze_function, freeze_session, run_by_freezing
from tuner.model.importable import check_importable
from tuner.model.tensorflow_error import first_line

_DEFAULT_SIGNATURE = "serving_default"
_SERVING_TAG = "serve"
_READY_SIGNATURE = "__saved_model_init_op"
_READY_COLLECTIONS = ("saved_model_main_op", "legacy_init_op")
# TensorFlow may read this form in the place of the other two.
_CHUNKED = "saved_model.cpb"


def freeze_saved_model(folder: Path, outputs: Sequence[str], *, allow_ops: bool = False) -> FrozenGraph:
    """The serving signature of a SavedModel as a frozen graph whose outputs bear the signature's names.

    outputs: keys of the signature or, in a TF1 model, any tensors; empty: the detection outputs of the signature,
    else all of them. allow_ops: as `load_model`.
    Raises ModelError for a damaged folder or when no signature is the obvious one.
    """
    meta_graph = _serving_graph(folder)
    check_importable(meta_graph.graph_def, allow_ops=allow_ops)
    if not allow_ops:
        _check_loading(meta_graph)
    key, signature = _choose_signature(meta_graph)
    try:
        if meta_graph.HasField("object_graph_def"):
            frozen = _freeze_tf2(folder, key)
        else:
            frozen = _freeze_tf1(folder, list(meta_graph.meta_info_def.tags), signature, outputs)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, tf.errors.OpError) as error:
        raise ModelError(f"SavedModel cannot be loaded: {first_line(error)}") from error
    detection = [name for name in (*DETECTION_OUTPUTS, *OPTIONAL_DETECTION_OUTPUTS) if name in frozen.aliases]
    if set(DETECTION_OUTPUTS).issubset(detection):
        return FrozenGraph(frozen.graph_def, tuple(frozen.aliases[name] for name in detection), frozen.aliases)
    return frozen


def _check_loading(meta_graph: MetaGraphDef) -> None:
    """Raise ModelError for ops that reach outside and that merely loading the SavedModel would run.

    Of TF1 these are what restores the variables and the op that makes the model ready; of TF2 any function that the
    object graph names, since objects initialise and restore themselves by functions of theirs.
    """
    graph_def, saver_def = meta_graph.graph_def, meta_graph.saver_def
    if meta_graph.HasField("object_graph_def"):
        check_functions(graph_def.library, meta_graph.object_graph_def.concrete_functions)
        return
    signatures, collections = meta_graph.signature_def, meta_graph.collection_def
    ready = [tensor.name for tensor in signatures.get(_READY_SIGNATURE, SignatureDef()).outputs.values()]
    ready += [name for key in _READY_COLLECTIONS if key in collections for name in collections[key].node_list.value]
    roots = [*run_by_freezing(graph_def), saver_def.restore_op_name, *ready]
    check_before_run(graph_def, roots, restored_from=saver_def.filename_tensor_name)


def _freeze_tf2(folder: Path, key: str) -> FrozenGraph:
    # The restored object owns the variables: they are gone once nothing refers to it.
    restored = tf.saved_model.load(str(folder))
    function = restored.signatures[key]
    return freeze_function(function, sorted(function.structured_outputs))


def _freeze_tf1(folder: Path, tags: list[str], signature: SignatureDef, outputs: Sequence[str]) -> FrozenGraph:
    with tf.Graph().as_default() as graph, tf.compat.v1.Session(graph=graph) as session:
        tf.compat.v1.saved_model.load(session, tags, str(folder))
        results = {name: resolve_tensor(graph, info.name, "output") for name, info in signature.outputs.items()}
        aliases = {name: info.name for name, info in signature.inputs.items()} | results
        wanted = find_outputs(graph, [aliases.get(name, name) for name in outputs])
        graph_def = freeze_session(session, [*wanted, *results.values()])
        names = sorted(results)
        named = add_named_outputs(graph_def, [(name, graph.get_tensor_by_name(results[name])) for name in names])
    return FrozenGraph(graph_def, named, aliases | dict(zip(names, named, strict=True)))


def _serving_graph(folder: Path) -> MetaGraphDef:
    if (folder / _CHUNKED).exists():
        raise ModelError(f"SavedModel in chunks ({_CHUNKED}) cannot be read; expected saved_model.pb alone")
    saved = SavedModel()
    try:
        if (folder / "saved_model.pb").is_file():
            saved.ParseFromString((folder / "saved_model.pb").read_bytes())
        else:
            text_format.Parse((folder / "saved_model.pbtxt").read_text(), saved)
    except (OSError, DecodeError, text_format.ParseError, UnicodeDecodeError) as error:
        raise ModelError(f"saved_model.pb cannot be read: {first_line(error)}") from error
    graphs = list(saved.meta_graphs)
    serving = [graph for graph in graphs if _SERVING_TAG in graph.meta_info_def.tags]
    if len(graphs) != 1 and len(serving) != 1:
        tags = [list(graph.meta_info_def.tags) for graph in graphs]
        raise ModelError(f"SavedModel with {len(graphs)} graphs tagged {tags}; expected one, or one tagged serve")
    return serving[0] if serving else graphs[0]


def _choose_signature(meta_graph: MetaGraphDef) -> tuple[str, SignatureDef]:
    signatures = {key: value for key, value in meta_graph.signature_def.items() if not key.startswith("__")}
    if _DEFAULT_SIGNATURE in signatures:
        return _DEFAULT_SIGNATURE, signatures[_DEFAULT_SIGNATURE]
    if len(signatures) == 1:
        return next(iter(signatures.items()))
    shown = ", ".join(sorted(signatures)) or "none"
    raise ModelError(f"SavedModel without a {_DEFAULT_SIGNATURE} signature: found {shown}; expected one signature")
