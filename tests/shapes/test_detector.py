"""The committed detector looks like an Object Detection API export and finds shapes."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import tensorflow as tf

OUTPUTS = ("detection_boxes", "detection_scores", "detection_classes", "num_detections")
VARIABLE_OPS = {"ReadVariableOp", "VarHandleOp", "VariableV2", "PartitionedCall", "StatefulPartitionedCall", "While"}


@pytest.fixture(scope="module")
def graph_def(shapes_folder: Path) -> tf.compat.v1.GraphDef:
    return tf.compat.v1.GraphDef.FromString((shapes_folder / "detector.pb").read_bytes())


@pytest.fixture(scope="module")
def session(graph_def: tf.compat.v1.GraphDef) -> Iterator[tf.compat.v1.Session]:
    graph = tf.Graph()
    with graph.as_default():
        tf.import_graph_def(graph_def, name="")
    session = tf.compat.v1.Session(graph=graph)
    yield session
    session.close()


def test_the_file_fits_the_size_limit(shapes_folder: Path) -> None:
    assert (shapes_folder / "detector.pb").stat().st_size <= 4e6


def test_the_graph_is_made_of_plain_layers(graph_def: tf.compat.v1.GraphDef) -> None:
    nodes = {node.name: node for node in graph_def.node}
    counts = Counter(node.op for node in graph_def.node)
    assert not VARIABLE_OPS & set(counts)
    for op in ("Conv2D", "DepthwiseConv2dNative", "FusedBatchNormV3", "Relu6", "AddV2", "BiasAdd"):
        assert counts[op] >= 8, op
    assert counts["Identity"] == 2  # the names of two outputs
    for node in graph_def.node:
        if node.op == "FusedBatchNormV3":
            assert not node.attr["is_training"].b
            assert all(nodes[name].op == "Const" for name in node.input[1:])
            assert nodes[node.input[0]].op in ("Conv2D", "DepthwiseConv2dNative")
    for scope in ("Preprocessor/", "FeatureExtractor/MobilenetV2/", "BoxPredictor_0/", "Postprocessor/"):
        assert any(name.startswith(scope) for name in nodes), scope


def test_the_graph_is_what_the_network_freezes(network: ModuleType, graph_def: tf.compat.v1.GraphDef) -> None:
    scopes = {"weights", "depthwise_weights", "biases", "gamma", "beta", "moving_mean", "moving_variance"}
    values = {
        node.name: tf.make_ndarray(node.attr["value"].tensor)
        for node in graph_def.node
        if node.op == "Const" and node.name.rpartition("/")[2] in scopes
    }
    category_ids = next(node for node in graph_def.node if node.name == "Postprocessor/category_ids")
    frozen = network.freeze(values, tf.make_ndarray(category_ids.attr["value"].tensor).tolist())
    assert frozen.node == graph_def.node


@pytest.mark.parametrize("shape", [(1, 192, 256, 3), (3, 60, 40, 3)])
def test_inputs_and_outputs_are_named_as_exports_name_them(
    session: tf.compat.v1.Session, scenes: ModuleType, shape: tuple[int, ...]
) -> None:
    placeholder = session.graph.get_tensor_by_name("image_tensor:0")
    assert placeholder.dtype == tf.uint8 and placeholder.shape.as_list() == [None, None, None, 3]
    images = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    boxes, scores, classes, count = session.run([f"{name}:0" for name in OUTPUTS], {placeholder: images})
    batch = shape[0]
    assert [value.shape for value in (boxes, scores, classes, count)] == [
        (batch, 100, 4),
        (batch, 100),
        (batch, 100),
        (batch,),
    ]
    assert {value.dtype for value in (boxes, scores, classes, count)} == {np.dtype(np.float32)}
    assert boxes.min() >= 0 and boxes.max() <= 1
    assert set(classes.ravel().tolist()) <= set(map(float, scenes.CATEGORIES))


def test_it_finds_the_shapes_of_the_first_scenes(
    session: tf.compat.v1.Session, scenes: ModuleType, shapes_folder: Path
) -> None:
    content = json.loads((shapes_folder / "evaluation_instances.json").read_text())
    found = wanted = 0
    for image in content["images"][:25]:
        pixels = scenes.draw_scene("evaluation", image["id"] - 1).image
        outputs = session.run([f"{name}:0" for name in OUTPUTS], {"image_tensor:0": pixels[None]})
        boxes, _, classes = (output[0][outputs[1][0] > 0.3] for output in outputs[:3])
        for entry in (entry for entry in content["annotations"] if entry["image_id"] == image["id"]):
            x, y, width, height = entry["bbox"]
            box = np.array([y, x, y + height, x + width]) / np.tile([image["height"], image["width"]], 2)
            overlaps = _iou(box, boxes[classes == entry["category_id"]])
            found += bool(np.any(overlaps > 0.5))
            wanted += 1
    assert found >= 0.6 * wanted, f"{found} of {wanted}"


def test_encodings_of_boxes_decode_to_the_boxes(network: ModuleType) -> None:
    rng = np.random.default_rng(2)
    low = rng.uniform(0, 0.5, (len(network.anchors()), 2))
    boxes = np.concatenate([low, low + rng.uniform(0.05, 0.5, low.shape)], axis=1).astype(np.float32)[None]
    np.testing.assert_allclose(network.decode(network.encode(boxes)), boxes, atol=1e-5)


def test_turned_examples_keep_their_boxes_on_their_objects(learning: ModuleType) -> None:
    images = np.zeros((1, 10, 10, 3), np.uint8)
    images[0, 2:5, 1:9] = 255
    boxes = np.array([[[0.2, 0.1, 0.5, 0.9]]], np.float32)
    for seed in range(16):
        turned, moved = learning._turn(np.random.default_rng(seed), images, boxes)
        y_min, x_min, y_max, x_max = np.rint(moved[0, 0] * 10).astype(int)
        assert turned[0, y_min:y_max, x_min:x_max].min() == 255
        assert turned.astype(int).sum() == images.astype(int).sum()
        assert (y_max - y_min) * (x_max - x_min) == 24


def _iou(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=1)
    return shared / (np.prod(box[2:] - box[:2]) + np.prod(others[:, 2:] - others[:, :2], axis=1) - shared)
