"""Every form of a model becomes one frozen graph that says the same; a GraphDef with a checkpoint beside it, too."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from numpy.typing import NDArray

from tuner.data.images import decode_image
from tuner.errors import ModelError
from tuner.graph.added_constant import AddedConstant
from tuner.graph.compare import differences
from tuner.graph.freeze import freeze
from tuner.graph.postprocess import optimize_postprocess
from tuner.model.detection_model import DetectionModel
from tuner.model.loading import load_model
from tuner.model.runner import ModelRunner

tf1 = tf.compat.v1

IMAGES = np.random.default_rng(3).random((2, 6, 6, 3), np.float32)
PRIORS = np.arange(8, dtype=np.float32).reshape(2, 4)

Write = Callable[..., tuple[Path, NDArray[Any]]]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a graph and, beside it, a checkpoint; what `locations` says about IMAGES."""

    def written(name: str = "graph.pb", *, text: bool = False, resource: bool = False) -> tuple[Path, NDArray[Any]]:
        anywhere = tf1.ConfigProto(allow_soft_placement=True)
        with tf.Graph().as_default() as graph, tf1.Session(config=anywhere) as session:
            image = tf1.placeholder(tf.float32, [None, 6, 6, 3], name="image")
            with tf1.variable_scope("net", use_resource=resource):
                kernel = tf1.get_variable("kernel", [6, 6, 3, 8], initializer=tf1.random_normal_initializer(seed=1))
                bias = tf1.get_variable("bias", [8], initializer=tf1.random_normal_initializer(seed=2))
                # Nothing that is read needs it, and the checkpoint has no value for it.
                momentum = tf1.get_variable("momentum", [8], initializer=tf1.zeros_initializer())
            with tf.device("/device:GPU:0"), tf1.control_dependencies([tf1.Assert(image[0, 0, 0, 0] > -9.0, [image])]):
                features = tf.stop_gradient(tf.nn.conv2d(image, kernel, 1, "VALID") + bias)
            tf1.assign(momentum, bias)
            locations = tf.reshape(tf.debugging.check_numerics(features, "bad"), [-1, 2, 4], name="locations")
            tf.identity(tf.reduce_sum(locations, [1, 2]), name="score")
            tf1.summary.scalar("loss", tf.reduce_sum(locations))
            session.run(tf1.global_variables_initializer())
            tf1.train.Saver([kernel, bias]).save(session, str(tmp_path / "model.ckpt"), write_meta_graph=False)
            expected = session.run(locations, {image: IMAGES})
        path = tmp_path / name
        content = text_format.MessageToString(graph.as_graph_def()).encode() if text else None
        path.write_bytes(content or graph.as_graph_def().SerializeToString())
        return path, expected

    return written


def run(model: DetectionModel) -> dict[str, NDArray[Any]]:
    with ModelRunner(model) as runner:
        return runner.run(IMAGES)


@pytest.mark.parametrize(
    ("name", "text", "resource"), [("graph.pb", False, False), ("graph.pbtxt", True, True), ("text.pb", True, False)]
)
@pytest.mark.parametrize("checkpoint", ["model.ckpt", "."])
def test_a_graph_with_a_checkpoint(write: Write, name: str, text: bool, resource: bool, checkpoint: str) -> None:
    path, expected = write(name, text=text, resource=resource)
    model = freeze(path, outputs=["locations"], checkpoint=path.parent / checkpoint)
    np.testing.assert_array_equal(run(model)["locations:0"], expected)
    assert (model.inputs, model.outputs) == (("image:0",), ("locations:0",))
    ops = {node.op for node in model.graph_def.node}
    assert ops == {"Placeholder", "Const", "Conv2D", "AddV2", "Reshape"}
    assert not any(node.device for node in model.graph_def.node)


def test_the_frozen_graph_is_read_back_as_it_is(write: Write, tmp_path: Path) -> None:
    path, expected = write()
    frozen = freeze(path, outputs=["locations"], checkpoint=tmp_path)
    (tmp_path / "frozen.pb").write_bytes(frozen.graph_def.SerializeToString())
    again = freeze(tmp_path / "frozen.pb", outputs=["locations"])
    assert again.sha256 == frozen.sha256
    np.testing.assert_array_equal(run(again)["locations:0"], expected)


@pytest.mark.parametrize(
    ("change", "output", "said"),
    [
        ("index", "locations", "model.ckpt.index is missing"),
        ("", "net/momentum/read", "net/momentum"),
        ("", "location", "output 'location' is not in the graph (did you mean 'locations'"),
        ("other", "locations", "cannot be given the values of model.ckpt"),
        ("none", "locations", "no variable of the graph has a value there"),
        ("shards", "locations", "model.ckpt.data-00000-of-00001 is missing"),
        ("damaged", "locations", "not a GraphDef, or a damaged one"),
    ],
)
def test_what_does_not_fit(write: Write, tmp_path: Path, change: str, output: str, said: str) -> None:
    path, _ = write()
    if change in ("other", "none"):
        with tf.Graph().as_default(), tf1.Session() as session:
            kept = tf1.get_variable("net/kernel" if change == "other" else "net/else", [2, 2])
            session.run(kept.initializer)
            tf1.train.Saver([kept]).save(session, str(tmp_path / "model.ckpt"), write_meta_graph=False)
    elif change == "index":
        (tmp_path / "model.ckpt.index").unlink()
    elif change == "shards":
        (tmp_path / "model.ckpt.data-00000-of-00001").unlink()
    elif change == "damaged":
        path.write_bytes(b"\xff\xfe what is this")
    with pytest.raises(ModelError) as error:
        freeze(path, outputs=[output], checkpoint=tmp_path / "model.ckpt")
    told = str(error.value)
    assert said in told
    assert told.startswith(str(path)) and "\n" not in told


def test_a_graph_without_its_checkpoint(write: Write) -> None:
    path, _ = write()
    with pytest.raises(ModelError, match="2 unfrozen variables, the first 'net/kernel'"):
        freeze(path, outputs=["locations"])


@pytest.mark.parametrize("outputs", [[], ["predicted_locations"], ["locations"], ["score", "predicted_locations"]])
def test_a_constant_is_added(write: Write, tmp_path: Path, outputs: list[str]) -> None:
    path, expected = write()
    constant = AddedConstant("priors", PRIORS, "locations", "predicted_locations")
    model = freeze(path, outputs=outputs, checkpoint=tmp_path, constant=constant)
    np.testing.assert_array_equal(run(model)["predicted_locations:0"], expected + PRIORS)
    # Without names, what nobody reads is what the graph is for: here the score.
    others = ("score:0",) if not outputs or "score" in outputs else ()
    assert model.outputs == (*others, "predicted_locations:0")


def test_a_constant_that_does_not_fit_is_told_with_the_file(write: Write, tmp_path: Path) -> None:
    path, _ = write()
    constant = AddedConstant("priors", PRIORS[:, :3], "locations", "predicted_locations")
    with pytest.raises(ModelError) as error:
        freeze(path, outputs=["locations"], checkpoint=tmp_path, constant=constant)
    assert str(error.value).startswith(f"{path}: constant 'priors' of float32 [2, 3] cannot be broadcast")


def test_a_keras_file(tmp_path: Path) -> None:
    image = tf.keras.Input((6, 6, 3), name="image")
    x = tf.keras.layers.Dropout(0.5)(tf.keras.layers.Conv2D(4, 3)(image))
    keras = tf.keras.Model(image, tf.keras.layers.BatchNormalization(name="features")(x))
    keras.save(tmp_path / "model.keras")
    (found,) = run(freeze(tmp_path / "model.keras")).values()
    np.testing.assert_allclose(found, keras(IMAGES), rtol=0, atol=1e-6)


def test_a_real_detector(assets: Path) -> None:
    image = min((assets / "coco_val/images").iterdir())
    batch = decode_image(image.read_bytes(), image.name)[np.newaxis]
    path = assets / "detectors/fastestdet.pb"
    with ModelRunner(load_model(path)) as before, ModelRunner(freeze(path)) as after:
        assert max(differences(before.run(batch), after.run(batch)).values()) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["frozen_inference_graph.pb", "model.ckpt", "saved_model"])
def test_the_forms_of_a_real_detector(assets: Path, name: str) -> None:
    folder = assets / "od_api/ssd_mobilenet_v1_depth05"
    image = min((folder / "fit/images").iterdir())
    batch = decode_image(image.read_bytes(), image.name)[np.newaxis]
    given = load_model(folder / "frozen_inference_graph.pb")
    frozen = freeze(folder / name)
    with ModelRunner(given) as before, ModelRunner(frozen) as after:
        assert max(differences(before.run(batch), after.run(batch)).values()) < 1e-5
    assert len(frozen.graph_def.node) < len(given.graph_def.node)
    assert not any(node.op == "Assert" for node in frozen.graph_def.node)
    # What tuning does around the network goes on finding it.
    assert optimize_postprocess(frozen, [batch]).done
