"""The Graph Transform Tool through its one door: what it is given, what is refused, and that nothing else changes."""

import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework.graph_pb2 import GraphDef

from tuner.errors import ConfigError, ModelError
from tuner.graph import transforms
from tuner.graph.transforms import (
    apply_transforms,
    fix_missing_kernel_errors_trans,
    get_fix_missing_kernel_errors_for_shape,
    get_optimize_quantize_weights_for_shape,
    get_optimizing_for_deployment_for_shape,
    named_transforms,
    optimize_quantize_weights_trans,
    optimizing_for_deployment_trans,
    transform_graph,
)
from tuner.model.detection_model import DetectionModel
from tuner.model.graph_view import GraphView
from tuner.model.loading import load_model
from tuner.model.runner import ModelRunner

tf1 = tf.compat.v1

IMAGES = np.random.default_rng(4).random((1, 8, 8, 3), np.float32)
DEPLOYMENT = [
    'strip_unused_nodes(type=float, shape="1,299,299,3")',
    "remove_nodes(op=Identity, op=CheckNumerics)",
    "fold_constants(ignore_errors=true)",
    "fold_batch_norms",
    "fold_old_batch_norms",
]


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """A convolution whose result is scaled per channel, checked, and given out twice; and a node that is not used."""
    with tf.Graph().as_default() as graph:
        x = tf1.placeholder(tf.float32, [None, 8, 8, 3], name="x")
        pixels = tf.identity(x / 2.0, name="pixels")
        kernel = np.random.default_rng(5).normal(0, 1, (3, 3, 3, 16)).astype(np.float32)
        y = tf.nn.conv2d(pixels, kernel, 1, "SAME", name="conv") * np.arange(1, 17, dtype=np.float32)
        tf.identity(tf.debugging.check_numerics(y, "bad", name="check"), name="out")
        tf.nn.relu(y, name="other")
        with tf1.colocate_with(y.op):
            tf.sigmoid(y, name="unused")
    (tmp_path / "graph.pb").write_bytes(graph.as_graph_def().SerializeToString())
    return tmp_path / "graph.pb"


def run(model: DetectionModel) -> list[np.ndarray]:
    with ModelRunner(model) as runner:
        return list(runner.run(IMAGES).values())


def test_the_lists_are_those_of_the_manual() -> None:
    assert optimizing_for_deployment_trans == DEPLOYMENT
    assert fix_missing_kernel_errors_trans == [DEPLOYMENT[0], *DEPLOYMENT[2:]]
    assert optimize_quantize_weights_trans == [*fix_missing_kernel_errors_trans, "quantize_weights"]


@pytest.mark.parametrize("shape", ["1,300,300,3", '"1,300,300,3"', (1, 300, 300, 3), [1, 300, 300, 3], 300, "300"])
def test_the_lists_take_a_shape(shape: transforms.Shape) -> None:
    strip = 'strip_unused_nodes(type=float, shape="1,300,300,3")'
    assert get_optimizing_for_deployment_for_shape(shape) == [strip, *DEPLOYMENT[1:]]
    assert get_fix_missing_kernel_errors_for_shape(shape) == [strip, *DEPLOYMENT[2:]]
    assert get_optimize_quantize_weights_for_shape(shape) == [strip, *DEPLOYMENT[2:], "quantize_weights"]


@pytest.mark.parametrize("shape", ["", "1,a,3", "1,,3", "0", (1, -1, 3), []])
def test_no_shape(shape: transforms.Shape) -> None:
    with pytest.raises(ConfigError, match="expected sizes from 1 on"):
        get_optimizing_for_deployment_for_shape(shape)


def test_a_list_is_asked_for_by_its_name() -> None:
    assert named_transforms(" optimizing_for_deployment", None) == DEPLOYMENT
    assert named_transforms("optimize_quantize_weights", "300") == get_optimize_quantize_weights_for_shape(300)
    assert named_transforms("fold_constants sort_by_execution_order", None) == [
        "fold_constants sort_by_execution_order"
    ]
    with pytest.raises(ConfigError, match="a shape goes with one of the lists optimizing_for_deployment, "):
        named_transforms("fold_constants", "300")


@pytest.mark.parametrize(
    ("inputs", "outputs", "listed"),
    [
        ("x", "out,other", " \n ".join(DEPLOYMENT)),
        ("x:0", ["out:0", "other:0"], DEPLOYMENT),
        (["x"], " out, other:0 ", tuple(DEPLOYMENT)),
    ],
)
def test_how_it_is_asked(
    graph: Path, tmp_path: Path, inputs: transforms.Names, outputs: transforms.Names, listed: transforms.Names
) -> None:
    before = graph.read_bytes()
    transform_graph(str(graph), str(tmp_path / "new"), "small.pb", inputs, outputs, listed)
    after = load_model(tmp_path / "new/small.pb", outputs=["out", "other"])
    assert sorted(node.op for node in after.graph_def.node) == sorted(
        ["Placeholder", "Const", "RealDiv", "Const", "Conv2D", "Identity", "Relu"]
    )
    for found, expected in zip(run(after), run(load_model(graph, outputs=["out", "other"])), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert graph.read_bytes() == before


def test_inputs_and_outputs_are_found(graph: Path) -> None:
    done = apply_transforms(graph, "", [], "fold_batch_norms")
    assert (done.inputs, done.outputs) == (("x",), ("out", "other", "unused"))
    assert len(done.after.node) < len(done.before.node)


def test_an_inner_input_becomes_a_placeholder(graph: Path) -> None:
    after = apply_transforms(graph, "pixels", "out", get_fix_missing_kernel_errors_for_shape("1,8,8,3")).after
    (placeholder,) = (node for node in after.node if node.op == "Placeholder")
    assert placeholder.name == "pixels"
    assert [size.size for size in placeholder.attr["shape"].shape.dim] == [1, 8, 8, 3]


def test_a_quarter_of_the_size(graph: Path) -> None:
    after = apply_transforms(graph, "x", "out", "quantize_weights(minimum_size=100)").after
    assert [node.op for node in after.node].count("Dequantize") == 1
    assert GraphView(after, frozenset(["out"])).nodes["conv"].op == "Conv2D"


def test_renamed_nodes_are_forgotten_as_places(graph: Path) -> None:
    after = apply_transforms(graph, "x", ["out", "unused"], "obfuscate_names").after
    assert {"x", "out", "unused"} < {node.name for node in after.node}


def test_a_graph_that_cannot_be_loaded_is_mended(graph: Path, tmp_path: Path) -> None:
    graph_def = GraphDef.FromString(graph.read_bytes())
    GraphView(graph_def, frozenset()).nodes["conv"].op = "OldConv2D"
    (tmp_path / "old.pb").write_bytes(graph_def.SerializeToString())
    renaming = "rename_op(old_op_name=OldConv2D, new_op_name=Conv2D)"
    apply_transforms(tmp_path / "old.pb", "x", "out", renaming)
    with pytest.raises(ModelError, match="name inputs and outputs; without, it is loaded to find them, and it is not"):
        apply_transforms(tmp_path / "old.pb", "x", "", renaming)


def test_a_saved_model(graph: Path, tmp_path: Path) -> None:
    class Doubling(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, "image")])
        def serve(self, image: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"double": image * 2.0}

    module = Doubling()
    tf.saved_model.save(module, str(tmp_path / "saved"), signatures=module.serve)
    done = apply_transforms(tmp_path / "saved", "", "double", "sort_by_execution_order")
    assert (done.inputs, done.outputs) == (("image",), ("double",))


@pytest.mark.parametrize(
    ("inputs", "outputs", "given", "said"),
    [
        ("x", "out", "", "no transforms given"),
        ("x", "out", [" "], "no transforms given"),
        ("x", "out", "fold_batch_norm", "'fold_batch_norm' not recognized (did you mean 'fold_batch_norms'?)"),
        ("x", "out", "fold_constants, fold_batch_norms", "Looking for transform name, but found , fold_batch_norms"),
        ("x", "out", "strip_unused_nodes(type=float", "as many '(' as ')' expected"),
        ("x", "out", 'strip_unused_nodes(shape="1)', "Looking for parameter name, but found 1)"),
        ("x", "out", "fold_constants(a)", "Looking for =, but found )"),
        ("pixels", "out", "strip_unused_nodes(type=flaot)", "Couldn't understand type argument 'flaot'"),
        ("y", "out", "fold_constants", "input 'y' is not in the graph"),
        ("x", "outt", "fold_constants", "output 'outt' is not in the graph (did you mean 'out'?)"),
        ("x", "out", "rename_op(old_op_name=Conv2D, new_op_name=New)", "the transformed graph is not one that"),
        ("x", "out", "rename_node(old_node_name=out, new_node_name=new)", "removed or renamed the outputs out"),
    ],
)
def test_what_is_refused(graph: Path, inputs: str, outputs: str, given: transforms.Names, said: str) -> None:
    with pytest.raises(ModelError) as error:
        apply_transforms(graph, inputs, outputs, given)
    assert said in str(error.value)
    assert str(error.value).startswith(f"{graph}: ") and "\n" not in str(error.value)


def test_the_model_itself_is_never_written(graph: Path) -> None:
    before = graph.read_bytes()
    with pytest.raises(ModelError, match="the output would replace the input model"):
        transform_graph(graph, graph.parent / "." / "x" / "..", "graph.pb", "x", "out", "fold_constants")
    assert graph.read_bytes() == before


def test_a_tensorflow_without_the_tool(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow.python.util._pywrap_transform_graph", None)
    with pytest.raises(ModelError, match=r"TensorFlow 2\.\d+\.\d+ has no Graph Transform Tool any more"):
        apply_transforms(graph, "x", "out", "fold_constants")


def test_a_real_detector(assets: Path) -> None:
    path = assets / "detectors/yolo_fastestv2_bn.pb"
    model = load_model(path)
    names = [name.removesuffix(":0") for name in model.outputs]
    done = apply_transforms(path, "image_tensor", names, get_optimizing_for_deployment_for_shape(320))
    image = np.random.default_rng(6).integers(0, 256, (1, 320, 320, 3), np.uint8)
    with ModelRunner(model) as before, ModelRunner(model.with_graph(done.after)) as after:
        for name, expected in before.run(image).items():
            np.testing.assert_allclose(after.run(image)[name], expected, rtol=0, atol=1e-5)
