"""A small detector of a few convolutions, written in every format that a detector can come in."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

tf1 = tf.compat.v1

Values = dict[str, NDArray[Any]]


@pytest.fixture(scope="session")
def images() -> NDArray[np.uint8]:
    """One image as a batch, [1, 20, 30, 3]."""
    return np.random.default_rng(5).integers(0, 256, (1, 20, 30, 3), np.uint8)


@pytest.fixture(scope="session")
def frozen(tmp_path_factory: pytest.TempPathFactory, images: NDArray[np.uint8]) -> tuple[Path, Values]:
    """The TF1 detector as a frozen `.pb`, and what its unfrozen graph says about `images`."""
    path = tmp_path_factory.mktemp("frozen") / "detector.pb"
    with tf.Graph().as_default() as graph, tf1.Session() as session:
        tensors, expected = _tf1_detector(session, images)
        graph_def = tf1.graph_util.convert_variables_to_constants(session, graph.as_graph_def(), list(tensors))
    path.write_bytes(graph_def.SerializeToString())
    return path, expected


@pytest.fixture
def write_checkpoint(tmp_path: Path, images: NDArray[np.uint8]) -> Callable[..., tuple[Path, Values]]:
    """Write a TF1 checkpoint into a folder: its graph, its variables and the `checkpoint` file."""

    def write(name: str = "model.ckpt", *, use_resource: bool = False, loop: str = "") -> tuple[Path, Values]:
        folder = tmp_path / "checkpoint"
        with tf.Graph().as_default(), tf1.Session() as session, _control_flow(loop):
            _, expected = _tf1_detector(session, images, use_resource, in_loop=bool(loop))
            tf1.train.Saver().save(session, str(folder / name))
        return folder, expected

    return write


@pytest.fixture
def write_tf1_saved_model(tmp_path: Path, images: NDArray[np.uint8]) -> Callable[..., tuple[Path, Values]]:
    """Write a TF1 SavedModel with the given signature keys; `prefix` goes before each of its output names."""

    def write(keys: tuple[str, ...] = ("serving_default",), prefix: str = "") -> tuple[Path, Values]:
        folder = tmp_path / "saved_model"
        with tf.Graph().as_default() as graph, tf1.Session() as session:
            tensors, expected = _tf1_detector(session, images, use_resource=True, scope="inner")
            signature = tf1.saved_model.build_signature_def(
                {"inputs": tf1.saved_model.build_tensor_info(graph.get_tensor_by_name("inner/image_tensor:0"))},
                {prefix + name: tf1.saved_model.build_tensor_info(tensor) for name, tensor in tensors.items()},
                "tensorflow/serving/predict",
            )
            builder = tf1.saved_model.Builder(str(folder))
            builder.add_meta_graph_and_variables(session, ["serve"], dict.fromkeys(keys, signature))
            builder.save()
        return folder, expected

    return write


@pytest.fixture
def write_tf2_saved_model(tmp_path: Path, images: NDArray[np.uint8]) -> Callable[..., tuple[Path, Values]]:
    """Write a TF2 SavedModel with the given signature keys; its preprocessor is a TF2 while loop."""

    def write(keys: tuple[str, ...] = ("serving_default",)) -> tuple[Path, Values]:
        folder = tmp_path / "saved_model"
        detector = _Tf2Detector()
        tf.saved_model.save(detector, str(folder), signatures=dict.fromkeys(keys, detector.serve))
        return folder, {name: tensor.numpy() for name, tensor in detector.serve(images).items()}

    return write


@pytest.fixture
def write_keras(tmp_path: Path) -> Callable[..., tuple[Path, NDArray[np.float32], Values]]:
    """Write a Keras model of two outputs; gives the file, an input for it and what the model says about that."""

    def write(name: str, extra: tf.keras.layers.Layer | None = None) -> tuple[Path, NDArray[np.float32], Values]:
        photo = tf.keras.Input((16, 16, 3), batch_size=1, name="photo")
        x = tf.keras.layers.Conv2D(8, 3, padding="same", name="first")(photo)
        x = tf.keras.layers.ReLU(6.0)(tf.keras.layers.BatchNormalization()(x))
        x = extra(x) if extra is not None else x
        boxes = tf.keras.layers.DepthwiseConv2D(3, padding="same", name="boxes")(x)
        scores = tf.keras.layers.Conv2D(2, 1, activation="sigmoid", name="scores")(x)
        model = tf.keras.Model(photo, [boxes, scores])
        model.save(tmp_path / name)
        batch = np.random.default_rng(6).random((1, 16, 16, 3), np.float32)
        return tmp_path / name, batch, {n: t.numpy() for n, t in zip(model.output_names, model(batch), strict=True)}

    return write


@contextmanager
def _control_flow(loop: str) -> Iterator[None]:
    """Within, "tf1" loops become Enter, Switch, Merge and Exit, as TF1 wrote them, and not a functional While."""
    if loop == "tf1":
        tf1.disable_control_flow_v2()
    try:
        yield
    finally:
        tf1.enable_control_flow_v2()


def _tf1_detector(
    session: tf1.Session, images: NDArray[np.uint8], use_resource: bool = False, in_loop: bool = False, scope: str = ""
) -> tuple[dict[str, tf.Tensor], Values]:
    """Placeholder, resize, convolution, batch norm, convolution, decoding: the output tensors and their values.

    in_loop: pixels are scaled in a while loop over TensorArrays that reads a variable inside.
    """
    with tf1.name_scope(f"{scope}/" if scope else None):
        image = tf1.placeholder(tf.uint8, [None, None, None, 3], name="image_tensor")
        with tf1.variable_scope("net", use_resource=use_resource):
            scale = tf1.get_variable("scale", initializer=np.float32(1 / 255))
            if in_loop:
                pixels = tf1.map_fn(lambda one: tf.cast(one, tf.float32) * scale, image, dtype=tf.float32)
            else:
                pixels = tf.cast(image, tf.float32) * scale
            x = tf1.image.resize_bilinear(pixels, [12, 12])
            first = tf1.get_variable("first", initializer=_weights(0, 3, 3, 3, 8))
            x = tf1.nn.conv2d(x, first, [1, 2, 2, 1], "SAME", name="first_conv")
            gain, shift = (
                tf1.get_variable(name, initializer=_weights(i, 8)) for i, name in enumerate(("gain", "shift"))
            )
            x, *_ = tf1.nn.fused_batch_norm(x, gain, shift, np.zeros(8, "f"), np.ones(8, "f"), is_training=False)
            second = tf1.get_variable("second", initializer=_weights(3, 3, 3, 8, 6))
            x = tf1.nn.conv2d(tf.nn.relu6(x), second, [1, 2, 2, 1], "SAME", name="second_conv")
        tensors = {name: tf.identity(tensor, name) for name, tensor in _decode(x).items()}
    session.run(tf1.global_variables_initializer())
    return tensors, session.run(tensors, {image: images})


class _Tf2Detector(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = tf.Variable(_weights(0, 3, 3, 3, 8))
        self.second = tf.Variable(_weights(3, 3, 3, 8, 6))

    @tf.function(input_signature=[tf.TensorSpec([1, None, None, 3], tf.uint8, "input_tensor")])
    def serve(self, input_tensor: tf.Tensor) -> dict[str, tf.Tensor]:
        pixels = tf.map_fn(lambda one: tf.cast(one, tf.float32) / 255, input_tensor, fn_output_signature=tf.float32)
        x = tf.nn.relu6(tf.nn.conv2d(tf.image.resize(pixels, [12, 12]), self.first, 2, "SAME"))
        return _decode(tf.nn.conv2d(x, self.second, 2, "SAME"))


def _decode(features: tf.Tensor) -> dict[str, tf.Tensor]:
    """Nine detections from [1, 3, 3, 6] features: four box corners, a score and a class each."""
    flat = tf.reshape(features, [1, 9, 6])
    return {
        "detection_boxes": tf.sigmoid(flat[..., :4]),
        "detection_scores": tf.sigmoid(flat[..., 4]),
        "detection_classes": 1.0 + tf.round(3.0 * tf.sigmoid(flat[..., 5])),
        "num_detections": tf.fill([1], 7.0),
    }


def _weights(seed: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 0.5, shape).astype(np.float32)
