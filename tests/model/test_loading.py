"""Every format becomes the same kind of frozen graph, and everything else becomes one line that names the fault."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from numpy.typing import NDArray

from tuner.errors import ModelError
from tuner.model.detection_model import DetectionModel, ModelFormat
from tuner.model.loading import load_model
from tuner.model.runner import ModelRunner

tf1 = tf.compat.v1

Values = dict[str, NDArray[Any]]
TENSORS = ("detection_boxes:0", "detection_scores:0", "detection_classes:0", "num_detections:0")


def assert_says(model: DetectionModel, images: NDArray[Any], expected: Values) -> None:
    """The model's outputs are named as `expected` and have its values."""
    with ModelRunner(model) as runner:
        found = runner.run(images)
    assert set(found) == {f"{name}:0" for name in expected}
    for name, value in expected.items():
        np.testing.assert_allclose(found[f"{name}:0"], value, atol=1e-6, err_msg=name)


def ops(model: DetectionModel) -> Counter[str]:
    return Counter(node.op for node in model.graph_def.node)


def fault_of(path: Path, *names: Any) -> str:
    """The message with which loading fails: always one line, always with the path."""
    with pytest.raises(ModelError) as caught:
        load_model(path, *names)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message


# Formats


def test_frozen_graph_loads_unchanged(frozen: tuple[Path, Values], images: NDArray[np.uint8]) -> None:
    path, expected = frozen
    model = load_model(path)
    assert (model.inputs, model.outputs) == (("image_tensor:0",), TENSORS)
    assert (model.source, model.format) == (path, ModelFormat.FROZEN_GRAPH)
    assert model.graph_def == tf1.GraphDef.FromString(path.read_bytes())
    assert (ops(model)["Conv2D"], ops(model)["FusedBatchNormV3"]) == (2, 1)
    assert_says(model, images, expected)


def test_attributes_that_a_file_leaves_out_have_their_default_value(tmp_path: Path) -> None:
    """As TensorFlow reads them: whoever asks a node for its attributes would read 0 otherwise."""
    with tf.Graph().as_default() as graph:
        image = tf.compat.v1.placeholder(tf.uint8, [1, None, None, 3], name="image_tensor")
        tf.nn.leaky_relu(tf.cast(image, tf.float32) - 100, 0.2, name="out")
    graph_def = graph.as_graph_def()
    leaky = next(node for node in graph_def.node if node.op == "LeakyRelu")
    del leaky.attr["alpha"], leaky.attr["T"]
    (tmp_path / "m.pb").write_bytes(graph_def.SerializeToString())
    loaded = load_model(tmp_path / "m.pb", outputs=["out"])
    found = loaded.graph.nodes["out"]
    assert found.attr["alpha"].f == pytest.approx(0.2)
    assert found.attr["T"].type == tf.float32.as_datatype_enum


def test_text_graph_is_the_same_graph(frozen: tuple[Path, Values], tmp_path: Path) -> None:
    graph_def = tf1.GraphDef.FromString(frozen[0].read_bytes())
    text = tmp_path / "detector.pbtxt"
    text.write_text(text_format.MessageToString(graph_def))
    assert load_model(text).sha256 == load_model(frozen[0]).sha256


@pytest.mark.parametrize("use_resource", [False, True])
@pytest.mark.parametrize("loop", ["", "tf1", "functional"])
def test_checkpoint(
    write_checkpoint: Callable[..., tuple[Path, Values]], images: NDArray[np.uint8], use_resource: bool, loop: str
) -> None:
    folder, expected = write_checkpoint(use_resource=use_resource, loop=loop)
    model = load_model(folder)
    assert model.format is ModelFormat.CHECKPOINT
    assert (model.inputs, model.outputs) == (("image_tensor:0",), TENSORS)
    assert ops(model)["FusedBatchNormV3"] == 1
    assert (ops(model)["Enter"] > 0, ops(model)["TensorArrayV3"] > 0) == (loop == "tf1", loop == "tf1")
    assert_says(model, images, expected)


@pytest.mark.parametrize("given", ["", "model.ckpt", "model.ckpt.meta", "model.ckpt.index"])
@pytest.mark.parametrize("checkpoint_file", [True, False])
def test_checkpoint_by_folder_prefix_or_file(
    write_checkpoint: Callable[..., tuple[Path, Values]], given: str, checkpoint_file: bool
) -> None:
    folder, _ = write_checkpoint()
    if not checkpoint_file:
        (folder / "checkpoint").unlink()
    assert load_model(folder / given).outputs == TENSORS


def test_checkpoint_file_may_hold_the_path_of_another_machine(
    write_checkpoint: Callable[..., tuple[Path, Values]],
) -> None:
    folder, _ = write_checkpoint("model.ckpt-7")
    write_checkpoint("model.ckpt-8")
    (folder / "checkpoint").write_text('model_checkpoint_path: "/gone/model.ckpt-7"\n')
    assert load_model(folder).outputs == TENSORS
    (folder / "checkpoint").write_text('model_checkpoint_path: "/gone/model.ckpt-9"\n')
    assert "names 'model.ckpt-9', but the folder holds model.ckpt-7, model.ckpt-8" in fault_of(folder)


def test_tf1_saved_model(write_tf1_saved_model: Callable[..., tuple[Path, Values]], images: NDArray[np.uint8]) -> None:
    folder, expected = write_tf1_saved_model()
    model = load_model(folder)
    assert model.format is ModelFormat.SAVED_MODEL
    assert model.inputs == ("inner/image_tensor:0",)
    assert ops(model)["FusedBatchNormV3"] == 1
    assert_says(model, images, expected)
    assert load_model(folder / "saved_model.pb").sha256 == model.sha256


def test_tf1_saved_model_by_key_or_tensor(write_tf1_saved_model: Callable[..., tuple[Path, Values]]) -> None:
    folder, _ = write_tf1_saved_model(("only_one",), prefix="my_")
    assert set(load_model(folder).outputs) == {f"my_{name}" for name in TENSORS}
    assert load_model(folder, ["inputs"], ["my_detection_boxes"]).outputs == ("my_detection_boxes:0",)
    assert load_model(folder, (), ["inner/net/second_conv"]).outputs == ("inner/net/second_conv:0",)


def test_tf2_saved_model(write_tf2_saved_model: Callable[..., tuple[Path, Values]], images: NDArray[np.uint8]) -> None:
    folder, expected = write_tf2_saved_model()
    model = load_model(folder)
    assert model.format is ModelFormat.SAVED_MODEL
    assert (model.inputs, model.outputs) == (("input_tensor:0",), TENSORS)
    assert not model.graph_def.library.function
    assert_says(model, images, expected)
    assert {load_model(folder).sha256 for _ in range(3)} == {model.sha256}


@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
def test_keras(write_keras: Callable[..., tuple[Path, NDArray[np.float32], Values]], name: str) -> None:
    path, batch, expected = write_keras(name)
    model = load_model(path)
    assert model.format is ModelFormat.KERAS
    assert (model.inputs, model.outputs) == (("photo:0",), ("boxes:0", "scores:0"))
    assert_says(model, batch, expected)


def test_keras_outputs_named_by_a_dictionary_or_alike(tmp_path: Path) -> None:
    photo = tf.keras.Input((8, 8, 3), batch_size=1)
    layer = tf.keras.layers.Conv2D(4, 1, name="twice")
    boxes, scores = layer(photo), layer(photo * 2.0)
    tf.keras.Model(photo, [boxes, scores]).save(tmp_path / "alike.keras")
    alike = load_model(tmp_path / "alike.keras").outputs
    assert len(set(alike)) == 2
    tf.keras.Model(photo, {"detection_scores": scores, "detection_boxes": boxes}).save(tmp_path / "dict.keras")
    model = load_model(tmp_path / "dict.keras")
    assert model.outputs == ("detection_boxes:0", "detection_scores:0")
    batch = np.random.default_rng(7).random((1, 8, 8, 3), np.float32)
    assert_says(model, batch, {"detection_boxes": layer(batch).numpy(), "detection_scores": layer(batch * 2).numpy()})


@pytest.mark.parametrize("name", ["model.keras", "model.h5", "saved_model"])
def test_keras_layers_in_a_row(tmp_path: Path, name: str) -> None:
    inner = tf.keras.Sequential([tf.keras.Input((8, 8, 3)), tf.keras.layers.Conv2D(4, 3)], name="inner")
    keras = tf.keras.Sequential([tf.keras.Input((8, 8, 3), name="photo"), inner, tf.keras.layers.Conv2D(2, 1)])
    write_keras_model(keras, tmp_path / name)
    model = load_model(tmp_path / name)
    assert model.inputs == ("photo:0",)
    assert model.outputs == ("output_0:0",) if name == "saved_model" else (f"{keras.layers[-1].name}:0",)
    batch = np.random.default_rng(8).random((1, 8, 8, 3), np.float32)
    assert_says(model, batch, {model.outputs[0].removesuffix(":0"): keras(batch).numpy()})


def test_keras_layers_in_a_row_with_two_results(tmp_path: Path) -> None:
    photo = tf.keras.Input((8, 8, 3))
    heads = tf.keras.Model(photo, [tf.keras.layers.Conv2D(2, 1)(photo), tf.keras.layers.Conv2D(3, 1)(photo)])
    keras = tf.keras.Sequential([tf.keras.Input((8, 8, 3)), heads])
    keras.save(tmp_path / "model.keras")
    model = load_model(tmp_path / "model.keras")
    batch = np.random.default_rng(9).random((1, 8, 8, 3), np.float32)
    names = [name.removesuffix(":0") for name in model.outputs]
    assert_says(model, batch, dict(zip(names, (result.numpy() for result in keras(batch)), strict=True)))


def test_real_detectors(assets: Path) -> None:
    for path in sorted((assets / "detectors").glob("*.pb")):
        model = load_model(path)
        assert (model.inputs, model.outputs) == (("image_tensor:0",), TENSORS)


def test_one_real_detector_in_three_formats(assets: Path) -> None:
    folder = assets / "od_api/ssd_mobilenet_v1_depth05"
    photos = [tf.io.decode_jpeg(path.read_bytes()).numpy() for path in sorted((folder / "fit/images").iterdir())[:3]]
    found = []
    for path in (folder / "frozen_inference_graph.pb", folder, folder / "saved_model"):
        with ModelRunner(load_model(path)) as runner:
            found.append([runner.detect(photo) for photo in photos])
    for frozen_graph, checkpoint, saved_model in zip(*found, strict=True):
        assert len(frozen_graph) == 100
        for other in (checkpoint, saved_model):
            # Even one float graph differs in the last bit from run to run, by how threads share the sums.
            np.testing.assert_allclose(other.boxes, frozen_graph.boxes, atol=1e-6)
            np.testing.assert_allclose(other.scores, frozen_graph.scores, atol=1e-6)
            np.testing.assert_array_equal(other.category_ids, frozen_graph.category_ids)


# Files that are no model


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "an empty file"),
        (b"<!DOCTYPE html><html>404</html>", "an HTML or XML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (b"PK\x03\x04rest", "a zip archive"),
        (b"\x1f\x8brest", "a gzip archive"),
        (bytes(range(256)) * 4, "not a GraphDef, or a damaged one of 1024 bytes"),
        (b"\x22\x02\x08\x01", "no node in 4 bytes"),
    ],
)
def test_file_that_is_no_graph(tmp_path: Path, content: bytes, fault: str) -> None:
    path = tmp_path / "model.pb"
    path.write_bytes(content)
    assert fault in fault_of(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_truncated_graph(frozen: tuple[Path, Values], tmp_path: Path, share: float) -> None:
    path = tmp_path / "model.pb"
    content = frozen[0].read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    fault_of(path)


def test_paths_that_hold_no_model(tmp_path: Path) -> None:
    assert "no such file or folder" in fault_of(tmp_path / "absent.pb")
    (tmp_path / "model.onnx").write_bytes(b"x")
    assert "unknown kind of model '.onnx'; expected .pb" in fault_of(tmp_path / "model.onnx")
    assert "found model.onnx; expected saved_model.pb or" in fault_of(tmp_path)
    (tmp_path / "empty").mkdir()
    assert "found nothing" in fault_of(tmp_path / "empty")
    for name in ("model.keras", "model.h5"):
        (tmp_path / name).write_bytes(b"not a model")
        assert "Keras cannot load it" in fault_of(tmp_path / name)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "saved_model.pb").write_bytes(bytes(range(256)))
    assert "saved_model.pb cannot be read" in fault_of(tmp_path / "broken")


@pytest.mark.parametrize(
    ("op", "dtype", "fault"),
    [
        ("NoSuchOpInThisWorld", None, "NoSuchOpInThisWorld"),
        ("VariableV2", tf.float32, "1 unfrozen variables, the first 'v'; give the checkpoint"),
        ("Const", None, "not a graph that this TensorFlow"),
    ],
)
def test_graph_that_cannot_run(tmp_path: Path, op: str, dtype: tf.DType | None, fault: str) -> None:
    graph_def = tf1.GraphDef()
    graph_def.node.add(name="image", op="Placeholder").attr["dtype"].type = tf.float32.as_datatype_enum
    other = graph_def.node.add(name="v", op=op)
    if dtype is not None:
        other.attr["dtype"].type = dtype.as_datatype_enum
        other.attr["shape"].shape.dim.add(size=1)
    total = graph_def.node.add(name="sum", op="AddV2", input=["image", "v"])
    total.attr["T"].type = tf.float32.as_datatype_enum
    path = tmp_path / "model.pb"
    path.write_bytes(graph_def.SerializeToString())
    assert fault in fault_of(path)


# Checkpoints and SavedModels with something missing


@pytest.mark.parametrize(
    ("missing", "fault"),
    [
        ("model.ckpt.data-00000-of-00001", "shard model.ckpt.data-00000-of-00001 is missing"),
        ("model.ckpt.index", "model.ckpt.index is missing"),
        ("model.ckpt.meta", "names 'model.ckpt', but the folder holds no .meta file"),
    ],
)
def test_checkpoint_with_a_missing_file(
    write_checkpoint: Callable[..., tuple[Path, Values]], missing: str, fault: str
) -> None:
    folder, _ = write_checkpoint()
    (folder / missing).unlink()
    assert fault in fault_of(folder)


def test_checkpoint_with_a_missing_shard_of_two(write_checkpoint: Callable[..., tuple[Path, Values]]) -> None:
    folder, _ = write_checkpoint()
    (folder / "model.ckpt.data-00000-of-00001").rename(folder / "model.ckpt.data-00000-of-00002")
    assert "shard model.ckpt.data-00001-of-00002 is missing" in fault_of(folder)


@pytest.mark.parametrize("damaged", ["model.ckpt.meta", "model.ckpt.index", "model.ckpt.data-00000-of-00001"])
def test_damaged_checkpoint(write_checkpoint: Callable[..., tuple[Path, Values]], damaged: str) -> None:
    folder, _ = write_checkpoint()
    content = (folder / damaged).read_bytes()
    (folder / damaged).write_bytes(content[: len(content) // 2])
    assert "model.ckpt cannot be restored" in fault_of(folder)


def test_several_checkpoints_need_a_choice(write_checkpoint: Callable[..., tuple[Path, Values]]) -> None:
    folder, _ = write_checkpoint("model.ckpt-1")
    write_checkpoint("model.ckpt-2")
    (folder / "checkpoint").unlink()
    assert "several checkpoints and no checkpoint file: model.ckpt-1, model.ckpt-2; name one" in fault_of(folder)
    assert load_model(folder / "model.ckpt-2").outputs == TENSORS


@pytest.mark.parametrize("fixture", ["write_tf1_saved_model", "write_tf2_saved_model"])
def test_saved_model_with_several_signatures(request: pytest.FixtureRequest, fixture: str) -> None:
    folder, _ = request.getfixturevalue(fixture)(("one", "two"))
    assert "found one, two; expected one signature" in fault_of(folder)


@pytest.mark.parametrize("fixture", ["write_tf1_saved_model", "write_tf2_saved_model"])
def test_saved_model_without_its_variables(request: pytest.FixtureRequest, fixture: str) -> None:
    folder, _ = request.getfixturevalue(fixture)()
    (folder / "variables/variables.index").unlink()
    assert "cannot be" in fault_of(folder)


def test_keras_model_with_code_inside(write_keras: Callable[..., tuple[Path, Any, Values]]) -> None:
    for name in ("model.keras", "model.h5"):
        path, *_ = write_keras(name, tf.keras.layers.Lambda(lambda x: x * 2.0))
        assert "Keras cannot load it" in fault_of(path)


def test_keras_model_with_an_unknown_layer(write_keras: Callable[..., tuple[Path, Any, Values]]) -> None:
    class OnlyHere(tf.keras.layers.Layer):
        def call(self, x: tf.Tensor) -> tf.Tensor:
            return x * 2.0

    path, *_ = write_keras("model.keras", OnlyHere())
    assert "Keras cannot load it: Could not locate class 'OnlyHere'" in fault_of(path)


@tf.keras.utils.register_keras_serializable("tuner_tests")
class Registered(tf.keras.Model):
    """A subclass whose class Keras finds, but whose inputs no file tells."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.layer = tf.keras.layers.Conv2D(2, 1)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.layer(x)


class Elsewhere(Registered):
    """A subclass that Keras does not know."""


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (Registered, "a Keras model without defined inputs: build it with an Input layer before saving, or export it"),
        (Elsewhere, "Keras cannot load it: Could not locate class 'Elsewhere'; export it with model.export(FOLDER)"),
        (lambda: tf.keras.Sequential([tf.keras.layers.Conv2D(2, 1)]), "a Keras model without defined inputs: "),
    ],
)
def test_keras_model_that_its_file_does_not_tell(
    tmp_path: Path, make: Callable[[], tf.keras.Model], fault: str
) -> None:
    keras, batch = make(), np.random.default_rng(10).random((1, 8, 8, 3), np.float32)
    if not isinstance(keras, tf.keras.Sequential):
        keras(batch)
    keras.save(tmp_path / "model.keras")
    assert fault in fault_of(tmp_path / "model.keras")
    # What the message advises.
    expected = keras(batch).numpy()
    write_keras_model(keras, tmp_path / "saved_model")
    assert_says(load_model(tmp_path / "saved_model"), batch, {"output_0": expected})


def write_keras_model(model: tf.keras.Model, path: Path) -> None:
    """As a file, or exported as a SavedModel into a folder."""
    if path.suffix:
        model.save(path)
    else:
        model.export(str(path), verbose=False)
