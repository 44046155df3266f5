"""Sound files of every kind that the commands read, small: what the corpus of bad input is made from."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import yaml

from tuner.config import parse_config, pinned_yaml
from tuner.data.images import decode_image
from tuner.data.records import AnnotatedJpeg, write_records
from tuner.detections import GroundTruth
from tuner.model.loading import load_model
from tuner.model.runner import ModelRunner
from tuner.precision import FP32, INT8, PrecisionPlan

tf1 = tf.compat.v1

SIDE, CELLS, SLOTS, IMAGES = 32, 4, 8, 4
CATEGORIES = {1: "bolt", 2: "nut", 3: "ring"}
GRAPH = "detector.pb"
SAVED_MODEL = "saved_model"
FUNCTIONS = "functions"
CHECKPOINT = "checkpoint"
KERAS = "net.keras"
H5 = "net.h5"
RECORDS = "set.record"
INSTANCES = "instances.json"
LABELS = "labels.yaml"
LABELLED = "labelled.yaml"
CONFIG = "config.yaml"
PLAN = "plan.yaml"


def write_originals(folder: Path) -> None:
    """Write all of them below `folder`."""
    with tf.Graph().as_default() as graph:
        _detect(tf1.placeholder(tf.uint8, [1, None, None, 3], name="image_tensor"), trainable=False)
    (folder / GRAPH).write_bytes(graph.as_graph_def().SerializeToString())
    _write_trained(folder)
    _write_functions(folder / FUNCTIONS)
    _write_keras(folder)
    _write_images(folder)
    (folder / LABELS).write_text(yaml.safe_dump({name: number for number, name in CATEGORIES.items()}))
    settings = settings_on({"COCORecord": {"root": RECORDS}})
    (folder / CONFIG).write_text(yaml.safe_dump(settings))
    labelled = settings_on({"COCORecord": {"root": RECORDS}}, metric={"COCOmAP": {"anno_path": LABELS}})
    (folder / LABELLED).write_text(yaml.safe_dump(labelled))
    plan = PrecisionPlan({"stem": INT8, "deep": INT8, "boxes": FP32, "classes": FP32})
    parsed = parse_config(settings, CONFIG)
    (folder / PLAN).write_text(pinned_yaml(parsed, plan, IMAGES, ()))


def settings_on(dataset: dict[str, Any], **accuracy: Any) -> dict[str, Any]:
    """Settings of a short run whose images are those of `dataset`."""
    loader = {"dataset": dataset, "batch_size": 1}
    return {
        "model": {"name": "m", "framework": "tensorflow", "inputs": ["image_tensor"]},
        "quantization": {
            "calibration": {"sampling_size": IMAGES, "dataloader": loader},
            "op_wise": {"boxes": {"activation": {"dtype": ["fp32"]}, "weight": {"dtype": ["fp32"]}}},
        },
        "tuning": {
            "accuracy_criterion": {"relative": 0.9},
            "exit_policy": {"max_trials": 1, "timeout": 0},
            "random_seed": 7,
        },
        "evaluation": {
            "accuracy": {"dataloader": loader, "metric": {"COCOmAP": {}}, **accuracy},
            "performance": {"warmup": 1, "iteration": 2},
        },
    }


def _detect(image: tf.Tensor, *, trainable: bool) -> dict[str, tf.Tensor]:
    """Four convolutions over a grid of 4 x 4 cells; the eight with the largest score are the detections."""
    random = np.random.default_rng(11)

    def weights(name: str, *shape: int) -> Any:
        values = (random.normal(0, 1, shape) / np.sqrt(np.prod(shape[:3]))).astype(np.float32)
        return tf1.get_variable(f"{name}/weights", initializer=values) if trainable else values

    def convolve(data: tf.Tensor, name: str, *shape: int, stride: int = 1) -> tf.Tensor:
        return tf1.nn.conv2d(data, weights(name, *shape), [1, stride, stride, 1], "SAME", name=name)

    data = tf.cast(image, tf.float32) / 127.5 - 1
    data = tf.nn.relu6(2 * tf.nn.bias_add(convolve(data, "stem", 5, 5, 3, 8, stride=8), weights("shift", 8)))
    data = tf.nn.relu(convolve(data, "deep", 3, 3, 8, 8))
    offsets = tf.reshape(convolve(data, "boxes", 1, 1, 8, 4), [-1, 4])
    scores = tf.nn.softmax(tf.reshape(4 * convolve(data, "classes", 1, 1, 8, 3), [-1, 3]))
    best, cells = tf.math.top_k(tf.reduce_max(scores, -1), SLOTS)
    corners = np.stack(np.meshgrid(np.arange(CELLS), np.arange(CELLS), indexing="ij"), -1).reshape(-1, 2) / CELLS
    anchors = np.concatenate([corners, corners + 1 / CELLS], -1).astype(np.float32)
    boxes = tf.gather(tf.clip_by_value(anchors + 0.05 * tf.tanh(4 * offsets), 0, 1), cells)
    found = tf.gather(tf.argmax(scores, -1), cells) + 1
    return {
        "detection_boxes": tf.identity(boxes[tf.newaxis], name="detection_boxes"),
        "detection_scores": tf.identity(best[tf.newaxis], name="detection_scores"),
        "detection_classes": tf.cast(found[tf.newaxis], tf.float32, name="detection_classes"),
        "num_detections": tf.fill([1], float(SLOTS), name="num_detections"),
    }


def _write_trained(folder: Path) -> None:
    with tf.Graph().as_default(), tf1.Session() as session:
        image = tf1.placeholder(tf.uint8, [1, None, None, 3], name="image_tensor")
        with tf1.variable_scope("", use_resource=True):
            found = _detect(image, trainable=True)
        session.run(tf1.global_variables_initializer())
        tf1.train.Saver().save(session, str(folder / CHECKPOINT / "model.ckpt"))
        tf1.saved_model.simple_save(session, str(folder / SAVED_MODEL), {"inputs": image}, found)


def _write_functions(folder: Path) -> None:
    class Detector(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = tf.Variable(np.random.default_rng(3).normal(0, 1, (3, 3, 3, 6)).astype(np.float32))

        @tf.function(input_signature=[tf.TensorSpec([1, None, None, 3], tf.uint8, "input_tensor")])
        def serve(self, input_tensor: tf.Tensor) -> dict[str, tf.Tensor]:
            pixels = tf.image.resize(tf.cast(input_tensor, tf.float32) / 255, [8, 8])
            flat = tf.reshape(tf.nn.conv2d(pixels, self.weights, 2, "SAME"), [1, 16, 6])
            return {
                "detection_boxes": tf.sigmoid(flat[..., :4]),
                "detection_scores": tf.sigmoid(flat[..., 4]),
                "detection_classes": 1.0 + tf.round(2.0 * tf.sigmoid(flat[..., 5])),
                "num_detections": tf.fill([1], 16.0),
            }

    detector = Detector()
    tf.saved_model.save(detector, str(folder), signatures={"serving_default": detector.serve})


def _write_keras(folder: Path) -> None:
    photo = tf.keras.Input((16, 16, 3), batch_size=1, name="photo")
    x = tf.keras.layers.Conv2D(8, 3, padding="same", name="first")(photo)
    x = tf.keras.layers.ReLU(6.0)(tf.keras.layers.BatchNormalization()(x))
    model = tf.keras.Model(photo, tf.keras.layers.Conv2D(2, 1, activation="sigmoid", name="scores")(x))
    for name in (KERAS, H5):
        model.save(folder / name)


def _write_images(folder: Path) -> None:
    """The annotations are the detector's own."""
    (folder / "images").mkdir()
    random = np.random.default_rng(12)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    records = []
    with ModelRunner(load_model(folder / GRAPH)) as runner:
        for image_id in range(1, IMAGES + 1):
            pixels = tf.cast(
                tf.image.resize(random.integers(0, 256, (4, 4, 3)).astype(np.float32), (SIDE,) * 2), "uint8"
            )
            encoded, name = tf.io.encode_jpeg(pixels).numpy(), f"{image_id}.jpg"
            (folder / "images" / name).write_bytes(encoded)
            images.append({"id": image_id, "file_name": name, "height": SIDE, "width": SIDE})
            found = runner.detect(decode_image(encoded, name))
            names = tuple(CATEGORIES[number] for number in found.category_ids.tolist())
            sizes = found.boxes[:, 2:] - found.boxes[:, :2]
            truth = GroundTruth(
                found.boxes.astype(np.float64),
                found.category_ids,
                np.zeros(len(names), bool),
                np.prod(sizes, axis=1).astype(np.float64) * SIDE**2,
            )
            records.append(AnnotatedJpeg(encoded, SIDE, SIDE, image_id, name, truth, names))
            for box, number in zip((found.boxes * SIDE).tolist(), found.category_ids.tolist(), strict=True):
                ymin, xmin, ymax, xmax = box
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": number,
                        "bbox": [xmin, ymin, xmax - xmin, ymax - ymin],
                        "area": (xmax - xmin) * (ymax - ymin),
                        "iscrowd": 0,
                    }
                )
    write_records(folder / RECORDS, records)
    categories = [{"id": number, "name": name} for number, name in CATEGORIES.items()]
    table = {"images": images, "annotations": annotations, "categories": categories}
    (folder / INSTANCES).write_text(json.dumps(table))
