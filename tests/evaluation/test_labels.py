"""What a model finds becomes what is true."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tuner.config.transforms import Transforms
from tuner.data.dataset import DetectionDataset, open_dataset
from tuner.errors import DatasetError, EvaluationError
from tuner.evaluation.coco_map import IouType
from tuner.evaluation.evaluator import CocoEvaluator
from tuner.evaluation.labels import label_by_model
from tuner.model.detection_model import DetectionModel, ModelFormat
from tuner.progress import Silent
from tuner.trial import Measurement

HEIGHT, WIDTH = 40, 60
BOXES = np.array([[[0, 0, 0.5, 0.5], [0.25, 0.5, 1, 1], [0, 0.5, 0.2, 0.9]]], np.float32)
SCORES = np.array([[0.9, 0.3, 0.29]], np.float32)


@pytest.fixture
def model() -> DetectionModel:
    """Finds the same three objects in every image."""
    values = {
        "detection_boxes": BOXES,
        "detection_scores": SCORES,
        "detection_classes": np.array([[3, 17, 3]], np.float32),
        "num_detections": np.array([3], np.float32),
        "detection_masks": np.tile(np.array([1, 1, 0, 0], np.float32), (1, 3, 4, 1)),
    }
    with tf.Graph().as_default() as graph:
        image = tf.compat.v1.placeholder(tf.uint8, [1, None, None, 3], name="image_tensor")
        nothing = tf.reduce_mean(tf.cast(image, tf.float32)) * 0
        for name, value in values.items():
            tf.add(value, nothing, name=name)
    outputs = tuple(f"{name}:0" for name in values)
    return DetectionModel(graph.as_graph_def(), (image.name,), outputs, Path("fake.pb"), ModelFormat.FROZEN_GRAPH)


@pytest.fixture
def dataset(tmp_path: Path) -> DetectionDataset:
    """Two images without annotations, and a file that is none."""
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    (tmp_path / "b.png").write_bytes(tf.io.encode_png(picture).numpy())
    (tmp_path / "a.JPG").write_bytes(tf.io.encode_jpeg(picture).numpy())
    (tmp_path / "notes.txt").write_text("no image")
    return open_dataset(tmp_path, annotated=False)


def test_a_folder_of_images_is_a_data_set_without_objects(dataset: DetectionDataset) -> None:
    assert [(one.image_id, one.name, one.height, one.width) for one in dataset.entries] == [
        (1, "a.JPG", HEIGHT, WIDTH),
        (2, "b.png", HEIGHT, WIDTH),
    ]
    assert all(len(sample.ground_truth) == 0 and sample.image.shape == (HEIGHT, WIDTH, 3) for sample in dataset)


def test_an_image_that_does_not_decode_is_named(dataset: DetectionDataset, tmp_path: Path) -> None:
    (tmp_path / "c.jpg").write_bytes((tmp_path / "a.JPG").read_bytes()[:20])
    with pytest.raises(DatasetError, match=r"c\.jpg: image does not decode: it is no whole JPEG file"):
        open_dataset(tmp_path, annotated=False)
    assert len(open_dataset(tmp_path, annotated=False, skip_bad_records=True)) == 2
    with pytest.raises(DatasetError, match="holds neither TFRecords nor an instances JSON"):
        open_dataset(tmp_path)


def test_what_is_found_with_a_sufficient_score_is_true(model: DetectionModel, dataset: DetectionDataset) -> None:
    labelled = label_by_model(model, dataset, 0.3, Silent())
    assert labelled.category_ids == {3, 17}
    for entry in labelled.entries:
        np.testing.assert_array_equal(entry.ground_truth.boxes, BOXES[0, :2].astype(np.float64))
        assert entry.ground_truth.areas_px.tolist() == [600, 900]
        assert not entry.ground_truth.is_crowd.any()
        assert entry.ground_truth.masks is None


@pytest.mark.parametrize("masks", [False, True])
def test_a_model_agrees_with_itself(model: DetectionModel, dataset: DetectionDataset, masks: bool) -> None:
    labelled = label_by_model(model, dataset, 0.3, Silent(), masks=masks)
    kinds = tuple(IouType) if masks else (IouType.BBOX,)
    measured = CocoEvaluator(labelled, Silent(), iou_types=kinds).evaluate(model, lambda accuracies: True)
    assert isinstance(measured, Measurement)
    assert measured.accuracy == pytest.approx(1)
    assert all(value == pytest.approx(1) for value in measured.watched.values())


def test_nothing_found_is_told(model: DetectionModel, dataset: DetectionDataset) -> None:
    with pytest.raises(EvaluationError, match=r"finds nothing with a score of at least 0\.95 in 2 images"):
        label_by_model(model, dataset, 0.95, Silent())


def test_labels_of_a_transformed_image_lie_in_the_image(model: DetectionModel, dataset: DetectionDataset) -> None:
    box = {"offset_height": 10, "offset_width": 30, "target_height": 20, "target_width": 30}
    steps = Transforms.model_validate({"CropToBoundingBox": box}).steps
    labelled = label_by_model(model, replace(dataset, steps=steps), 0.3, Silent(), masks=True)
    for entry in labelled.entries:
        truth = entry.ground_truth
        expected = [0.25, 0.5, 0.25, 0.5] + BOXES[0, :2] * [0.5, 0.5, 0.5, 0.5]
        np.testing.assert_allclose(truth.boxes, expected, atol=1e-6)
        assert truth.masks is not None
        assert (truth.masks.height, truth.masks.width) == (HEIGHT, WIDTH)
