"""Real detectors, cut behind what they do to images inside their graph, find the same when transforms do it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tuner.config.transforms import Transforms
from tuner.data.coco_categories import COCO80_FROM_0
from tuner.data.dataset import DetectionDataset, open_dataset
from tuner.detections import Detections, Reading
from tuner.evaluation.coco_map import CocoBackend, ImageTruth, coco_metrics
from tuner.evaluation.inference import detect_images
from tuner.model.detection_model import DetectionModel
from tuner.model.endpoints import DETECTION_OUTPUTS
from tuner.model.loading import load_model
from tuner.model.runner import ModelRunner

IMAGES = 24
RESIZE = {"Resize": {"size": 352}}
LETTERBOX = {"ResizeWithRatio": {"min_dim": 352, "max_dim": 352, "padding": True, "constant_value": 128}}
CHANNELS_FIRST = {"Rescale": None, "Transpose": {"perm": [2, 0, 1]}}

Steps = dict[str, Any]


@pytest.fixture(scope="module")
def detector(assets: Path) -> DetectionModel:
    return load_model(assets / "detectors/fastestdet.pb")


@pytest.fixture(scope="module")
def dataset(assets: Path) -> DetectionDataset:
    """Images with official annotations, none of the detector's 352 x 352 pixels."""
    annotations = Path("instances_with_masks.json")
    return open_dataset(assets / "coco_val", annotations=annotations, limit=IMAGES)


def cut_behind(model: DetectionModel, node: str, shape: list[int], *, transposed: bool = False) -> DetectionModel:
    """The detector that is fed, in float32, what the node gave inside."""
    with tf.Graph().as_default() as graph:
        fed = tf.compat.v1.placeholder(tf.float32, shape, name="fed")
        value = tf.transpose(fed, [0, 2, 3, 1]) if transposed else fed
        outputs = list(model.outputs)
        tf.import_graph_def(model.graph_def, {f"{node}:0": value}, outputs, name="")
        graph_def = tf.compat.v1.graph_util.extract_sub_graph(
            graph.as_graph_def(), [name.partition(":")[0] for name in outputs]
        )
    return replace(model, graph_def=graph_def, inputs=("fed:0",))


@pytest.fixture(scope="module")
def measure(dataset: DetectionDataset) -> Callable[..., tuple[float, list[Detections]]]:
    """mAP and detections: (model, transforms)."""
    truths = [ImageTruth(one.image_id, one.height, one.width, one.ground_truth) for one in dataset.entries]

    def measured(model: DetectionModel, steps: Steps) -> tuple[float, list[Detections]]:
        fed = replace(dataset, steps=Transforms.model_validate(steps).steps)
        found = list(detect_images(model, fed))
        return coco_metrics(truths, found, CocoBackend.FASTER).figures["mAP"], found

    return measured


@pytest.fixture(scope="module")
def inside(detector: DetectionModel, measure: Callable[..., Any]) -> tuple[float, list[Detections]]:
    """Of the detector as it is, which resizes and rescales inside its graph."""
    found: tuple[float, list[Detections]] = measure(detector, {})
    assert found[0] > 0.1
    return found


def test_the_same_ops_outside_give_the_same_detections(
    detector: DetectionModel, measure: Callable[..., Any], inside: tuple[float, list[Detections]]
) -> None:
    cut = cut_behind(detector, "Preprocessor/ResizeBilinear", [1, 352, 352, 3])
    accuracy, found = measure(cut, RESIZE)
    assert accuracy == inside[0]
    for one, other in zip(found, inside[1], strict=True):
        np.testing.assert_array_equal(one.boxes, other.boxes)
        np.testing.assert_array_equal(one.scores, other.scores)
        np.testing.assert_array_equal(one.category_ids, other.category_ids)


@pytest.mark.parametrize("transposed", [False, True])
def test_all_of_it_outside(
    detector: DetectionModel, measure: Callable[..., Any], inside: tuple[float, list[Detections]], transposed: bool
) -> None:
    shape = [1, 3, 352, 352] if transposed else [1, 352, 352, 3]
    cut = cut_behind(detector, "Preprocessor/normalized", shape, transposed=transposed)
    accuracy, _ = measure(cut, RESIZE | (CHANNELS_FIRST if transposed else {"Rescale": None}))
    # The graph multiplies by 1 / 255, Rescale divides: the last bits differ.
    assert accuracy == pytest.approx(inside[0], abs=1e-3)


def test_boxes_of_a_letterboxed_image(
    detector: DetectionModel,
    dataset: DetectionDataset,
    measure: Callable[..., Any],
    inside: tuple[float, list[Detections]],
) -> None:
    cut = cut_behind(detector, "Preprocessor/ResizeBilinear", [1, 352, 352, 3])
    accuracy, found = measure(cut, LETTERBOX)
    assert accuracy > 0.9 * inside[0]
    # Each step in pixels, by itself.
    sample = next(iter(dataset))
    height, width = sample.image.shape[:2]
    scale = 352 / max(height, width)
    rows, columns = round(height * scale), round(width * scale)
    top, left = (352 - rows) // 2, (352 - columns) // 2
    fed = np.full((352, 352, 3), 128, np.float32)
    fed[top : top + rows, left : left + columns] = tf.image.resize(sample.image, (rows, columns)).numpy()
    with ModelRunner(cut) as runner:
        boxes = runner.detect(fed).boxes * np.float32(352)
    expected = (boxes - [top, left, top, left]) / [rows, columns, rows, columns]
    np.testing.assert_allclose(found[0].boxes, np.clip(expected, 0, 1), rtol=0, atol=1e-5)
    assert len(boxes) > 0


def test_boxes_in_pixels_and_classes_without_gaps(
    detector: DetectionModel, measure: Callable[..., Any], inside: tuple[float, list[Detections]]
) -> None:
    cut = cut_behind(detector, "Preprocessor/ResizeBilinear", [1, 352, 352, 3])
    numbers = np.zeros(91, np.float32)
    numbers[list(COCO80_FROM_0.values())] = list(COCO80_FROM_0)
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(cut.graph_def, name="in")
        inner = {name: graph.get_tensor_by_name(f"in/{name}:0") for name in DETECTION_OUTPUTS}
        tf.multiply(inner["detection_boxes"], 352.0, name="detection_boxes")
        tf.gather(numbers, tf.cast(inner["detection_classes"], tf.int32), name="detection_classes")
        for name in ("detection_scores", "num_detections"):
            tf.identity(inner[name], name=name)
    changed = replace(cut, graph_def=graph.as_graph_def(), inputs=("in/fed:0",))
    reading = Reading(COCO80_FROM_0, "coco80_from_0", boxes_in_pixels=True)
    assert measure(replace(changed, reading=reading), RESIZE)[0] == pytest.approx(inside[0], abs=1e-6)
    assert measure(replace(changed, reading=replace(reading, category_ids=None)), RESIZE)[0] < 0.1 * inside[0]
