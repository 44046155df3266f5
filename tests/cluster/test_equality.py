"""What a cluster finds is what this process finds, bit for bit, however many workers it has."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.cluster.conftest import Nodes, Shapes, at_work, facts_of, hired, until
from tests.evaluation.test_evaluator import BOXES, CATEGORIES, make_model
from tests.two_stage.conftest import Small, pictures, small  # noqa: F401 - a fixture
from tuner.cluster.workforce import ClusterWorkforce
from tuner.config import parse_config
from tuner.data.dataset import DetectionDataset
from tuner.data.images import Entry
from tuner.detections import GroundTruth
from tuner.errors import DatasetError, EvaluationError, ModelError, TunerError
from tuner.evaluation import workers as evaluation_workers
from tuner.evaluation.coco_map import CocoBackend, IouType
from tuner.evaluation.early_rejection import EarlyRejection, LossLimit
from tuner.evaluation.evaluator import CocoEvaluator
from tuner.evaluation.workers import EvaluationImages, ThisProcess, Workers
from tuner.masks import paste_masks
from tuner.model.detection_model import DetectionModel
from tuner.progress import Silent
from tuner.quantization.ranges import collect_ranges
from tuner.trial import Rejection

HERE = ThisProcess()
BOTH = (IouType.BBOX, IouType.SEGM)


@pytest.fixture(
    scope="module", params=[2, pytest.param(1, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)]
)
def workers(request: pytest.FixtureRequest, nodes: Nodes) -> Iterator[ClusterWorkforce]:
    for name in list(nodes.started)[request.param :]:
        nodes.remove(name)
    while len(nodes.started) < request.param:
        nodes.add(f"node {len(nodes.started)}")
    with at_work() as at:
        until(lambda: len(hired(at)) == request.param)
        yield at


def images_of(dataset: DetectionDataset, *iou_types: IouType) -> EvaluationImages:
    return EvaluationImages(dataset, iou_types or (IouType.BBOX,))


def found_by(by: Workers, model: DetectionModel, images: EvaluationImages) -> tuple[list[Any], TunerError | None]:
    """What is found, and the error that ended it."""
    found: list[Any] = []
    first = next(iter(images.dataset.first(1).entries))
    image = np.zeros((1, first.height, first.width, 3), np.uint8)
    try:
        with by.running(model, image, images) as graph, closing(graph.find()) as each:
            for one in each:
                found.append(facts_of(one))
    except TunerError as error:
        return found, error
    return found, None


def assert_the_same(workers: ClusterWorkforce, model: DetectionModel, images: EvaluationImages) -> None:
    found, error = found_by(workers, model, images)
    expected, failed = found_by(HERE, model, images)
    assert [type(error), str(error)] == [type(failed), str(failed)]
    assert len(found) == len(expected)
    assert found == expected


def test_float_graphs(workers: ClusterWorkforce, shapes: Shapes) -> None:
    assert_the_same(workers, shapes.model, images_of(shapes.images(24)))
    assert [*workers._given] == [shapes.model.sha256]


def test_int8_graphs_are_made_where_they_run(workers: ClusterWorkforce, shapes: Shapes) -> None:
    workers._given.clear()
    graph = workers.learn(shapes.engine).quantize(shapes.all_int8)
    assert_the_same(workers, graph, images_of(shapes.images(24)))
    assert workers._given == {}


def test_measurements_and_rejections(workers: ClusterWorkforce, shapes: Shapes) -> None:
    """The limit is one that the graph does not keep."""
    dataset, records = shapes.images(24), []
    graph = workers.learn(shapes.engine).quantize(shapes.all_int8)

    def measured(by: Workers, model: DetectionModel, *more: Any) -> Any:
        found = CocoEvaluator(dataset, Silent(), workers=by).evaluate(model, lambda accuracies: True, *more)
        return facts_of(replace(found, elapsed_s=0, **({} if isinstance(found, Rejection) else ANY_LATENCY)))

    keep = records.append
    assert measured(workers, shapes.model, {}, keep) == measured(HERE, shapes.model, {}, keep)
    assert facts_of(records[0]) == facts_of(records[1])
    assert measured(workers, graph) == measured(HERE, graph)
    rule = EarlyRejection(records[0][IouType.BBOX], LossLimit("relative", -0.5), alpha=0.4, looks=(8, 16))
    rejected = measured(workers, graph, {IouType.BBOX: rule})
    assert rejected == measured(HERE, graph, {IouType.BBOX: rule})
    assert rejected["images"] in rule.schedule


ANY_LATENCY = {"latency_ms": 1.0, "latency_p90_ms": 1.0}


@pytest.mark.parametrize("small", ["masks"], indirect=True)
def test_masks(workers: ClusterWorkforce, small: Small, tmp_path: Path) -> None:  # noqa: F811
    truth = GroundTruth(BOXES, CATEGORIES, np.zeros(3, np.bool_), np.array([150.0, 180.0, 50.0]))
    entries = []
    for number, picture in enumerate(pictures(7)):
        path = tmp_path / f"{number}.png"
        path.write_bytes(tf.io.encode_png(picture[0]).numpy())
        height, width = picture.shape[1:3]
        whole = paste_masks(np.ones((3, 5, 5), np.float32), BOXES.astype(np.float32), height, width)
        entries.append(Entry(number, path.name, str(path), height, width, replace(truth, masks=whole), path))
    dataset = DetectionDataset(tuple(entries), frozenset({3, 17}))
    assert_the_same(workers, small.model, images_of(dataset, *BOTH))
    assert_the_same(workers, small.model, images_of(dataset))


def test_transforms(workers: ClusterWorkforce, shapes: Shapes) -> None:
    steps = {"ResizeWithRatio": {"min_dim": 96, "max_dim": 128}, "Cast": {"dtype": "uint8"}}
    loader = {"dataset": {"COCORaw": {"root": "x"}}, "transform": steps}
    settings = {
        "model": {"name": "x", "framework": "tensorflow"},
        "evaluation": {"accuracy": {"metric": {"COCOmAP": {}}, "dataloader": loader}},
    }
    loaded = parse_config(settings, "test").evaluation.accuracy.dataloader
    assert loaded is not None
    assert_the_same(workers, shapes.model, images_of(replace(shapes.images(9), steps=loaded.transform.steps)))


def test_ranges(workers: ClusterWorkforce, shapes: Shapes) -> None:
    tensors = shapes.ops.tensors
    here = collect_ranges(shapes.prepared, tensors, shapes.calibration)
    there = collect_ranges(shapes.prepared, tensors, shapes.calibration, workers.observe)
    assert facts_of(there) == facts_of(here)


def test_figures_of_many_images(workers: ClusterWorkforce, shapes: Shapes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuner.cluster.workforce.MANY_IMAGES", 1)
    images = images_of(shapes.images(24))
    with HERE.running(shapes.model, np.zeros((1, 128, 128, 3), np.uint8), images) as graph:
        detections = [one.detections for one in graph.find()]
    for backend in CocoBackend:
        there = workers.metrics(images, detections, backend, IouType.BBOX)
        assert facts_of(there) == facts_of(HERE.metrics(images, detections, backend, IouType.BBOX))


class TestErrors:
    """Of the same kind and the same words, after the same results."""

    @staticmethod
    def tiles(folder: Path, first_id: int) -> DetectionDataset:
        truth = GroundTruth(BOXES, CATEGORIES, np.zeros(3, np.bool_), np.array([150.0, 180.0, 50.0]))
        encoded = tf.io.encode_png(np.zeros((24, 32, 3), np.uint8)).numpy()
        entries = []
        for number in range(11):
            path = folder / f"{number}.png"
            path.write_bytes(encoded)
            entries.append(Entry(first_id + number, path.name, str(path), 24, 32, truth, path))
        return DetectionDataset(tuple(entries), frozenset({3, 17}))

    def test_a_damaged_image(self, workers: ClusterWorkforce, tmp_path: Path) -> None:
        dataset = self.tiles(tmp_path, 100)
        (tmp_path / "6.png").write_bytes(b"\x89PNG")
        model = make_model()
        assert_the_same(workers, model, images_of(dataset))
        found, error = found_by(workers, model, images_of(dataset))
        assert len(found) == 6
        assert isinstance(error, DatasetError)
        assert workers._pool.refused == {}

    def test_detections_that_cannot_be_judged(self, workers: ClusterWorkforce, tmp_path: Path) -> None:
        model = make_model(detection_scores=np.full((1, 3), np.nan, np.float32))
        assert_the_same(workers, model, images_of(self.tiles(tmp_path, 200)))
        assert isinstance(found_by(workers, model, images_of(self.tiles(tmp_path, 200)))[1], EvaluationError)

    def test_a_model_that_is_no_detector(self, workers: ClusterWorkforce, tmp_path: Path) -> None:
        model = make_model(BOXES / 2)
        blind = DetectionModel(model.graph_def, model.inputs, model.outputs[:1], model.source, model.format)
        assert_the_same(workers, blind, images_of(self.tiles(tmp_path, 200)))
        assert isinstance(found_by(workers, blind, images_of(self.tiles(tmp_path, 200)))[1], ModelError)


def test_latency_is_measured(workers: ClusterWorkforce, shapes: Shapes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation_workers, "LATENCY_BUDGET_S", 0.01)
    with workers.running(shapes.model, np.zeros((1, 128, 128, 3), np.uint8)) as graph:
        figures = graph.latency()
    assert 0 < figures.median_ms <= figures.p90_ms
