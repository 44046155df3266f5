"""A model file that reaches for files or code is refused before any of it runs; ordinary models load as ever."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework.op_def_pb2 import OpList
from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel
from tensorflow.python.client import pywrap_tf_session

from tuner.errors import ModelError
from tuner.graph.transforms import apply_transforms
from tuner.model.forbidden_ops import check_before_import, check_before_run
from tuner.model.loading import load_model

tf1 = tf.compat.v1
raw = tf.raw_ops

REFUSED = [
    *(
        "ReadFile",
        "WriteFile",
        "MatchingFiles",
        "ImmutableConst",
        "WholeFileReaderV2",
        "TFRecordReader",
        "LoadAndRemapMatrix",
    ),
    *("Save", "SaveV2", "SaveSlices", "Restore", "RestoreV2", "RestoreSlice", "MergeV2Checkpoints"),
    *("PyFunc", "PyFuncStateless", "EagerPyFunc", "XlaCallModule", "XlaLaunch", "RemoteCall"),
    *("DebugIdentity", "DebugIdentityV2", "DebugNumericSummary", "DumpTensor", "CreateSummaryFileWriter"),
    *("TFRecordDataset", "TextLineDatasetV2", "FixedLengthRecordDatasetV2", "SnapshotDataset", "CacheDataset"),
    *("MapDataset", "ReduceDataset", "DatasetFromGraph", "IteratorFromStringHandle", "OneShotIterator"),
    *("RpcCall", "_Send", "_Recv", "Send", "Recv", "CollectiveGather", "ConfigureDistributedTPU", "TPUExecute"),
    *("InitializeTableFromTextFile", "InitializeTableFromTextFileV2", "GenerateVocabRemapping", "Skipgram"),
    *("FixedUnigramCandidateSampler", "DecodeProtoV2", "RecordInput", "FileSystemSetConfiguration", "QueueDequeueV2"),
]


def registered() -> OpList:
    ops = OpList()
    ops.ParseFromString(pywrap_tf_session.TF_GetBuffer(pywrap_tf_session.TF_GetAllOpList()))
    return ops


def one_node(op: str) -> tf1.GraphDef:
    graph_def = tf1.GraphDef()
    graph_def.node.add(name="it", op=op)
    return graph_def


def is_refused(op: str) -> bool:
    try:
        check_before_run(one_node(op), ["it"])
    except ModelError as error:
        assert f"'it' ({op})" in str(error)
        return True
    return False


def write_graph(path: Path, build: Callable[[tf.Tensor], tf.Tensor]) -> Path:
    """A frozen graph of the placeholder `x` whose output `out` is what `build` makes of it."""
    with tf.Graph().as_default() as graph:
        tf.identity(build(tf1.placeholder(tf.float32, [None], name="x")), name="out")
    path.write_bytes(graph.as_graph_def().SerializeToString())
    return path


def fault_of(path: Path, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(path, **options)
    assert "\n" not in str(caught.value)
    assert "--allow-ops" in str(caught.value)
    return str(caught.value)


# Which ops


@pytest.mark.parametrize("op", REFUSED)
def test_ops_that_reach_outside(op: str) -> None:
    assert is_refused(op)


def test_what_else_of_the_registry_could_name_a_file_is_refused() -> None:
    """By the names of inputs and attributes: holds for ops that a later TensorFlow brings, too."""
    telling = re.compile("file|url|address|library|module|descriptor|server")
    found = [
        op.name
        for op in registered().op
        if any(telling.search(one.name) for one in [*op.input_arg, *op.attr]) and not is_refused(op.name)
    ]
    assert found == []


def test_no_stateful_op_passes_by_chance() -> None:
    passing = [op.name for op in registered().op if op.is_stateful and not is_refused(op.name)]
    assert not [name for name in passing if re.search("File|Dataset|Save|Restore|Py|Rpc|Send|Recv|Queue|Reader", name)]


def test_printing_to_a_file_is_refused_and_to_the_terminal_is_not() -> None:
    graph_def = one_node("PrintV2")
    check_before_run(graph_def, ["it"])
    for stream, refused in ((b"stderr", False), (b"log(info)", False), (b"file:///tmp/x", True), (b"", True)):
        graph_def.node[0].attr["output_stream"].s = stream
        if refused:
            with pytest.raises(ModelError, match="PrintV2"):
                check_before_run(graph_def, ["it"])
        else:
            check_before_run(graph_def, ["it"])


def test_the_first_nodes_are_named_and_the_others_counted() -> None:
    graph_def = tf1.GraphDef()
    for index in range(5):
        graph_def.node.add(name=f"n{index}", op="ReadFile")
    with pytest.raises(ModelError, match=r"^5 ops reach .*'n0' \(ReadFile\), 'n1' .*, 'n2' \(ReadFile\) and 2 more;"):
        check_before_import(graph_def)


# Frozen graphs


def test_a_file_read_while_the_graph_is_imported(tmp_path: Path) -> None:
    (tmp_path / "shape").write_bytes(np.array([2, 3], np.int32).tobytes())

    def build(x: tf.Tensor) -> tf.Tensor:
        shape = tf.io.decode_raw(raw.ReadFile(filename=str(tmp_path / "shape")), tf.int32)
        return tf.reshape(x, tf.ensure_shape(shape, [2]))

    path = write_graph(tmp_path / "m.pb", build)
    assert "1 ops reach files" in fault_of(path)
    assert "(ReadFile)" in fault_of(path)
    # What makes it needful: importing alone reads the file, since the shape of `out` depends on its content.
    model = load_model(path, allow_ops=True)
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(model.graph_def, name="")
        assert graph.get_tensor_by_name("out:0").shape == (2, 3)


def test_a_file_written_when_the_graph_runs(tmp_path: Path) -> None:
    def build(x: tf.Tensor) -> tf.Tensor:
        with tf.control_dependencies([raw.WriteFile(filename=str(tmp_path / "written"), contents="", name="evil")]):
            return x + 1.0

    path = write_graph(tmp_path / "m.pb", build)
    assert "'evil' (WriteFile)" in fault_of(path)
    assert load_model(path, allow_ops=True).outputs == ("out:0",)
    assert not (tmp_path / "written").exists()


def test_ops_in_functions_that_functions_call(tmp_path: Path) -> None:
    @tf.function
    def inner(x: tf.Tensor) -> tf.Tensor:
        return tf.py_function(lambda y: y, [x], tf.float32)

    @tf.function
    def outer(x: tf.Tensor) -> tf.Tensor:
        return tf.cond(tf.reduce_sum(x) > 0, lambda: inner(x), lambda: x)

    assert "EagerPyFunc)" in fault_of(write_graph(tmp_path / "m.pb", outer))


def test_a_form_of_a_function_that_tensorflow_may_choose(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "m.pb", lambda x: x + 1.0)
    graph_def = tf1.GraphDef.FromString(path.read_bytes())
    function = graph_def.library.function.add()
    function.signature.name = "other"
    function.node_def.add(name="evil", op="WriteFile")
    check_before_run(graph_def, ["out"])
    function.attr["api_implements"].s = b"lstm"
    with pytest.raises(ModelError, match="'other/evil'"):
        check_before_run(graph_def, ["out"])


def test_what_outputs_do_not_need_may_be_there(tmp_path: Path) -> None:
    def build(x: tf.Tensor) -> tf.Tensor:
        raw.SaveV2(prefix="p", tensor_names=["t"], shape_and_slices=[""], tensors=[x])
        tf1.data.make_one_shot_iterator(tf.data.TFRecordDataset("f")).get_next()
        return x + tf.random.uniform([])

    path = write_graph(tmp_path / "m.pb", build)
    assert not {node.op for node in load_model(path).graph_def.node} & {"SaveV2", "IteratorGetNext"}


def test_the_graph_transform_tool_computes_no_constants_from_files(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")

    def build(x: tf.Tensor) -> tf.Tensor:
        return x + tf.cast(tf.io.decode_raw(raw.ReadFile(filename=str(tmp_path / "secret")), tf.uint8)[0], tf.float32)

    path = write_graph(tmp_path / "m.pb", build)
    with pytest.raises(ModelError, match="ReadFile"):
        apply_transforms(path, ["x"], ["out"], ["fold_constants"])


# Checkpoints: what restoring and freezing run


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Write a checkpoint whose graph `change` has altered; a variable, its initial value and a saver besides."""

    def write(change: Callable[[MetaGraphDef], None], *, use_resource: bool = False) -> Path:
        with tf.Graph().as_default(), tf1.Session() as session:
            x = tf1.placeholder(tf.float32, [None], name="x")
            variable = tf1.get_variable("v", initializer=2.0, use_resource=use_resource)
            tf.multiply(x, variable, name="out")
            raw.WriteFile(filename=str(tmp_path / "written"), contents="", name="evil")
            session.run(tf1.global_variables_initializer())
            tf1.train.Saver().save(session, str(tmp_path / "m.ckpt"))
        meta = tmp_path / "m.ckpt.meta"
        meta_graph = MetaGraphDef.FromString(meta.read_bytes())
        change(meta_graph)
        meta.write_bytes(meta_graph.SerializeToString())
        return tmp_path / "m.ckpt"

    return write


def node(meta_graph: MetaGraphDef, name: str) -> Any:
    return next(one for one in meta_graph.graph_def.node if one.name == name)


def test_a_checkpoint_as_tensorflow_writes_it(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """With the nodes that save and restore it, and one that is never run."""
    assert load_model(checkpoint(lambda meta_graph: None)).outputs == ("out:0",)
    assert not (tmp_path / "written").exists()


@pytest.mark.parametrize(
    ("through", "use_resource"), [("save/restore_all", False), ("v", False), ("v/Read/ReadVariableOp", True)]
)
def test_ops_that_loading_a_checkpoint_would_run(
    checkpoint: Callable[..., Path], tmp_path: Path, through: str, use_resource: bool
) -> None:
    def change(meta_graph: MetaGraphDef) -> None:
        node(meta_graph, through).input.append("^evil")

    path = checkpoint(change, use_resource=use_resource)
    assert "'evil' (WriteFile)" in fault_of(path)
    assert not (tmp_path / "written").exists()
    load_model(path, allow_ops=True)
    assert (tmp_path / "written").exists()


def test_variables_are_restored_from_the_checkpoint_alone(checkpoint: Callable[..., Path]) -> None:
    def change(meta_graph: MetaGraphDef) -> None:
        elsewhere = meta_graph.graph_def.node.add(name="elsewhere", op="Const")
        elsewhere.attr["dtype"].type = tf.string.as_datatype_enum
        elsewhere.attr["value"].tensor.CopyFrom(tf.make_tensor_proto("/etc/other"))
        node(meta_graph, "save/RestoreV2").input[0] = "elsewhere"

    assert "'save/RestoreV2' (RestoreV2)" in fault_of(checkpoint(change))


def test_a_graph_given_with_a_checkpoint(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    prefix = checkpoint(lambda meta_graph: None)
    graph_def = MetaGraphDef.FromString((tmp_path / "m.ckpt.meta").read_bytes()).graph_def
    graph = tmp_path / "graph.pb"
    graph.write_bytes(graph_def.SerializeToString())
    assert load_model(graph, outputs=["out"], checkpoint=prefix).outputs == ("out:0",)
    next(one for one in graph_def.node if one.name == "v").input.append("^evil")
    graph.write_bytes(graph_def.SerializeToString())
    assert "'evil'" in fault_of(graph, outputs=["out"], checkpoint=prefix)
    assert not (tmp_path / "written").exists()


# SavedModels: what loading runs


@pytest.mark.parametrize("form", ["main_op", "signature"])
def test_a_tf1_saved_model_whose_op_on_loading_writes(tmp_path: Path, form: str) -> None:
    folder = tmp_path / "m"
    with tf.Graph().as_default(), tf1.Session() as session:
        x = tf1.placeholder(tf.float32, [None], name="x")
        out = tf.multiply(x, tf1.get_variable("v", initializer=2.0), name="out")
        session.run(tf1.global_variables_initializer())
        evil = raw.WriteFile(filename=str(tmp_path / "written"), contents="", name="evil")
        signature = tf1.saved_model.predict_signature_def({"x": x}, {"out": out})
        builder = tf1.saved_model.Builder(str(folder))
        options = {"main_op": evil} if form == "main_op" else {}
        builder.add_meta_graph_and_variables(session, ["serve"], {"serving_default": signature}, **options)
        builder.save()
    if form == "signature":
        saved = SavedModel.FromString((folder / "saved_model.pb").read_bytes())
        saved.meta_graphs[0].signature_def["__saved_model_init_op"].outputs["__saved_model_init_op"].name = "evil"
        (folder / "saved_model.pb").write_bytes(saved.SerializeToString())
    assert "'evil' (WriteFile)" in fault_of(folder)
    assert not (tmp_path / "written").exists()
    load_model(folder, allow_ops=True)
    assert (tmp_path / "written").exists()


class _Writing(tf.saved_model.experimental.TrackableResource):
    """A resource that writes a file when a SavedModel that holds it is loaded."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def _create_resource(self) -> tf.Tensor:
        return raw.AnonymousHashTable(key_dtype=tf.string, value_dtype=tf.int64)

    def _initialize(self) -> None:
        raw.WriteFile(filename=self._path, contents="")


class _Detector(tf.Module):
    def __init__(self, extra: Any = None) -> None:
        super().__init__()
        self.weight = tf.Variable(2.0)
        self.extra = extra

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def serve(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        if self.extra is not None:
            self.extra.resource_handle  # noqa: B018 - captured, so that it is saved
        return {"out": x * self.weight}


def test_a_tf2_saved_model_whose_resource_writes_on_loading(tmp_path: Path) -> None:
    harmless, harmful = _Detector(), _Detector(_Writing(str(tmp_path / "written")))
    tf.saved_model.save(harmless, str(tmp_path / "harmless"), signatures=harmless.serve)
    tf.saved_model.save(harmful, str(tmp_path / "m"), signatures=harmful.serve)
    (tmp_path / "written").unlink(missing_ok=True)
    assert load_model(tmp_path / "harmless").outputs == ("out:0",)
    assert "(WriteFile)" in fault_of(tmp_path / "m")
    assert not (tmp_path / "written").exists()
    load_model(tmp_path / "m", allow_ops=True)
    assert (tmp_path / "written").exists()


def test_a_saved_model_in_a_form_that_would_go_before_the_checked_one(tmp_path: Path) -> None:
    detector = _Detector()
    tf.saved_model.save(detector, str(tmp_path), signatures=detector.serve)
    (tmp_path / "saved_model.cpb").write_bytes(b"")
    with pytest.raises(ModelError, match=r"saved_model\.cpb"):
        load_model(tmp_path)


def test_assets_outside_of_the_folder_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "words").write_text("a\nb\n")
    table = tf.lookup.StaticVocabularyTable(
        tf.lookup.TextFileInitializer(
            str(tmp_path / "words"), tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64, -1
        ),
        1,
    )
    detector = _Detector()
    detector.table = table
    tf.saved_model.save(detector, str(tmp_path / "m"), signatures=detector.serve)
    pb = tmp_path / "m/saved_model.pb"
    saved = SavedModel.FromString(pb.read_bytes())
    saved.meta_graphs[0].asset_file_def[0].filename = "../../words"
    pb.write_bytes(saved.SerializeToString())
    assert "InitializeTableFromTextFileV2" in fault_of(tmp_path / "m")
