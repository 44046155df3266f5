"""Measuring graphs: with COCO mAP on a made-up set, and with a user's function."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tuner.data.dataset import DetectionDataset
from tuner.data.images import Entry
from tuner.detections import GroundTruth
from tuner.errors import EvaluationError, ModelError
from tuner.evaluation import workers
from tuner.evaluation.coco_map import CocoBackend, IouType, coco_metrics
from tuner.evaluation.early_rejection import RESAMPLES, EarlyRejection, LossLimit, paired_resamples
from tuner.evaluation.evaluator import CocoEvaluator, FunctionEvaluator
from tuner.evaluation.match_records import MatchRecords, mean_average_precision
from tuner.masks import paste_masks
from tuner.model.detection_model import DetectionModel, ModelFormat
from tuner.progress import Event, Silent, TrialLooked
from tuner.trial import Measurement, Rejection

BOXES = np.array([[0.1, 0.1, 0.6, 0.5], [0.3, 0.5, 0.9, 0.9], [0.0, 0.0, 0.2, 0.3]])
CATEGORIES = np.array([3, 17, 3])
IMAGE = np.zeros((1, 24, 32, 3), np.uint8)


def make_model(boxes: Any = BOXES, **changes: Any) -> DetectionModel:
    """A detector that sees the same in every image; the mean brightness lies in it only to depend on the input."""
    values = {
        "detection_boxes": np.asarray(boxes, np.float32)[np.newaxis],
        "detection_scores": np.linspace(0.9, 0.5, len(boxes), dtype=np.float32)[np.newaxis],
        "detection_classes": CATEGORIES[: len(boxes)].astype(np.float32)[np.newaxis],
        "num_detections": np.array([len(boxes)], np.float32),
        **changes,
    }
    with tf.Graph().as_default() as graph:
        image = tf.compat.v1.placeholder(tf.uint8, [1, None, None, 3], name="image_tensor")
        nothing = tf.reduce_mean(tf.cast(image, tf.float32)) * 0
        for name, value in values.items():
            tf.add(value, nothing, name=name)
    outputs = tuple(f"{name}:0" for name in values)
    return DetectionModel(graph.as_graph_def(), (image.name,), outputs, Path("fake.pb"), ModelFormat.FROZEN_GRAPH)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "LATENCY_BUDGET_S", 0.01)


@pytest.fixture
def dataset(tmp_path: Path) -> DetectionDataset:
    """Three images with the same three objects."""
    truth = GroundTruth(BOXES, CATEGORIES, np.zeros(3, np.bool_), np.array([150.0, 180.0, 50.0]))
    entries = []
    for image_id in (4, 9, 2):
        path = tmp_path / f"{image_id}.png"
        path.write_bytes(tf.io.encode_png(IMAGE[0]).numpy())
        entries.append(Entry(image_id, path.name, str(path), 24, 32, truth, path))
    return DetectionDataset(tuple(entries), frozenset({3, 17}))


@pytest.fixture
def backends(monkeypatch: pytest.MonkeyPatch) -> list[CocoBackend]:
    """Which implementations were asked, in order."""
    asked: list[CocoBackend] = []

    def recorded(truths: Any, detections: Any, backend: CocoBackend, iou_type: IouType) -> Any:
        asked.append(backend)
        return coco_metrics(truths, detections, backend, iou_type)

    monkeypatch.setattr(workers, "coco_metrics", recorded)
    return asked


def never(accuracies: Mapping[IouType, float]) -> bool:
    return False


def test_a_perfect_detector(dataset: DetectionDataset) -> None:
    model = make_model()
    measurement = CocoEvaluator(dataset, Silent()).evaluate(model, never)
    assert measurement.accuracy == measurement.metrics["mAP"] == pytest.approx(1)
    assert measurement.images == 3
    assert measurement.size_bytes == model.size_bytes
    assert 0 < measurement.latency_ms <= measurement.latency_p90_ms
    assert measurement.elapsed_s > 0


def test_certified_figures_come_from_the_authority_and_are_the_same(
    dataset: DetectionDataset, backends: list[CocoBackend]
) -> None:
    model = make_model(BOXES + np.array([0, 0, -0.1, 0.08]))
    told = []
    quick = CocoEvaluator(dataset, Silent()).evaluate(model, never)
    certified = CocoEvaluator(dataset, Silent()).evaluate(model, lambda found: bool(told.append(found)) or True)
    assert backends == [CocoBackend.FASTER, CocoBackend.PYCOCOTOOLS]
    (expected,) = told
    assert expected.accuracy == pytest.approx(quick.accuracy, abs=1e-12)
    same = replace(expected, accuracy=certified.accuracy, metrics=certified.metrics, elapsed_s=certified.elapsed_s)
    assert same == certified
    assert 0 < certified.accuracy < 1
    assert certified.metrics == pytest.approx(quick.metrics, abs=1e-12)


class Counting(Silent):
    """Progress that remembers what was taken."""

    def __init__(self) -> None:
        self.counted: list[Any] = []

    def track(self, items: Any, total: int, title: str) -> Any:
        for item in items:
            self.counted.append((total, title))
            yield item


def test_every_image_is_counted_by_the_progress_in_an_order_that_is_always_the_same(dataset: DetectionDataset) -> None:
    progress, kept = Counting(), []
    for boxes in (BOXES, BOXES / 2):
        CocoEvaluator(dataset, progress).evaluate(make_model(boxes), never, keep=kept.append)
    assert progress.counted == [(3, "evaluate")] * 6
    first, second = (records[IouType.BBOX].image_ids.tolist() for records in kept)
    assert first == second
    assert sorted(first) == [2, 4, 9]


def records_of(dataset: DetectionDataset, model: DetectionModel) -> MatchRecords:
    kept: list[Mapping[IouType, MatchRecords]] = []
    CocoEvaluator(dataset, Silent()).evaluate(model, never, keep=kept.append)
    (records,) = kept
    return records[IouType.BBOX]


def test_records_of_a_full_evaluation_are_handed_over(dataset: DetectionDataset) -> None:
    model = make_model(BOXES + np.array([0, 0, -0.1, 0.08]))
    records = records_of(dataset, model)
    measured = CocoEvaluator(dataset, Silent()).evaluate(model, never)
    assert sorted(records.image_ids.tolist()) == [2, 4, 9]
    assert mean_average_precision(records, np.ones((1, 3))) == pytest.approx([measured.accuracy], abs=1e-12)


@pytest.mark.parametrize("changes", [{"num_detections": np.zeros(1, np.float32)}, {"boxes": BOXES * 0.3}])
def test_a_hopeless_graph_is_dropped_at_the_first_look(dataset: DetectionDataset, changes: dict[str, Any]) -> None:
    policy = EarlyRejection(records_of(dataset, make_model()), LossLimit("relative", 0.01), looks=(1, 2))
    progress, kept = Counting(), []
    model, rules = make_model(**changes), {IouType.BBOX: policy}
    rejected = CocoEvaluator(dataset, progress).evaluate(model, never, rules, kept.append)
    assert isinstance(rejected, Rejection)
    assert (rejected.images, rejected.look, rejected.loss, rejected.alpha_spent) == (1, 1, 1.0, 0.005)
    assert rejected.elapsed_s > 0
    assert len(progress.counted) == 1
    assert kept == []


def test_a_good_graph_is_measured_in_full_at_whatever_looks(dataset: DetectionDataset) -> None:
    policy = EarlyRejection(records_of(dataset, make_model()), LossLimit("absolute", 0.0), alpha=0.49, looks=(1, 2))
    measured = CocoEvaluator(dataset, Silent()).evaluate(make_model(), never, {IouType.BBOX: policy})
    assert isinstance(measured, Measurement)
    assert (measured.accuracy, measured.images) == (pytest.approx(1), 3)


class Looking(Silent):
    """Progress that remembers the looks."""

    def __init__(self) -> None:
        self.looks: list[TrialLooked] = []

    def event(self, event: Event) -> None:
        assert isinstance(event, TrialLooked)
        self.looks.append(event)


@pytest.fixture
def uneven(dataset: DetectionDataset) -> DetectionDataset:
    """Twelve images, in every other of which the first object is elsewhere."""
    entries = []
    for image_id in range(12):
        entry = dataset.entries[image_id % 3]
        moved = replace(
            entry.ground_truth, boxes=BOXES + np.array([[0.0, 0.0, 0.05 * (image_id % 2), 0.0], *[[0] * 4] * 2])
        )
        entries.append(replace(entry, image_id=image_id, ground_truth=moved))
    return DetectionDataset(tuple(entries), dataset.category_ids)


@pytest.mark.parametrize("kind", ["relative", "absolute"])
def test_each_look_is_told_as_the_rule_has_it(uneven: DetectionDataset, kind: Any) -> None:
    model, worse = make_model(), make_model(BOXES + np.array([0, 0, -0.1, 0.08]))
    baseline, candidate = records_of(uneven, model), records_of(uneven, worse)
    rule = EarlyRejection(baseline, LossLimit(kind, 0.9), looks=(3, 6, 9))
    progress = Looking()
    assert isinstance(CocoEvaluator(uneven, progress).evaluate(worse, never, {IouType.BBOX: rule}), Measurement)
    unit = 1.0 if kind == "relative" else mean_average_precision(baseline, np.ones((1, 12)))[0]
    for images, look in zip((3, 6, 9), progress.looks, strict=True):
        assert (look.images, look.compared, look.confidence) == (images, "bbox", 0.95)
        before, after = (
            mean_average_precision(one.first(images), np.ones((1, images)))[0] for one in (baseline, candidate)
        )
        assert look.loss == pytest.approx((before - after) / before * unit, abs=1e-12)
        drawn = paired_resamples(baseline, candidate.first(images), RESAMPLES, rule.seed)
        shares = (1 - drawn[1] / drawn[0])[1:] * unit
        assert [look.low, look.high] == pytest.approx(np.quantile(shares, [0.025, 0.975]), abs=1e-12)
        assert look.low < look.high


def test_the_look_that_drops_a_graph_is_told_with_its_loss(uneven: DetectionDataset) -> None:
    worse = make_model(BOXES + np.array([0, 0, -0.1, 0.08]))
    rule = EarlyRejection(records_of(uneven, make_model()), LossLimit("relative", 0.001), alpha=0.49, looks=(3, 6, 9))
    progress = Looking()
    rejected = CocoEvaluator(uneven, progress).evaluate(worse, never, {IouType.BBOX: rule})
    assert isinstance(rejected, Rejection)
    assert [look.images for look in progress.looks] == [3, 6, 9][: rejected.look]
    assert progress.looks[-1].loss == rejected.loss > 0


def test_a_function_drops_nothing(dataset: DetectionDataset) -> None:
    policy = EarlyRejection(records_of(dataset, make_model()), LossLimit("relative", 0.01), looks=(1, 2))
    kept: list[Any] = []
    judge, rules = FunctionEvaluator(lambda graph_def: 0.0, IMAGE), {IouType.BBOX: policy}
    measured = judge.evaluate(make_model(), never, rules, kept.append)
    assert (measured.accuracy, kept) == (0.0, [])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"detection_classes": np.full((1, 3), 5, np.float32)}, "no detected category is annotated"),
        ({"detection_scores": np.full((1, 3), np.nan, np.float32)}, "not a finite number"),
    ],
)
def test_detections_that_cannot_be_judged(changes: dict[str, Any], message: str, dataset: DetectionDataset) -> None:
    with pytest.raises(EvaluationError, match=message):
        CocoEvaluator(dataset, Silent()).evaluate(make_model(**changes), never)


def test_a_model_without_detection_outputs(dataset: DetectionDataset) -> None:
    model = make_model()
    blind = DetectionModel(model.graph_def, model.inputs, model.outputs[:1], model.source, model.format)
    with pytest.raises(ModelError, match="no detection outputs"):
        CocoEvaluator(dataset, Silent()).evaluate(blind, never)


@pytest.mark.parametrize(("returned", "accuracy"), [(0.5, 0.5), (0, 0), (np.float32(0.25), 0.25), (np.int64(3), 3)])
def test_a_function_is_given_the_graph_and_its_number_is_the_accuracy(returned: Any, accuracy: float) -> None:
    given: list[Any] = []
    model = make_model()

    def eval_func(graph_def: Any) -> Any:
        given.append(graph_def)
        return returned

    measurement = FunctionEvaluator(eval_func, IMAGE).evaluate(model, never)
    assert given == [model.graph_def]
    assert (measurement.accuracy, type(measurement.accuracy)) == (accuracy, float)
    assert (measurement.images, measurement.metrics) == (0, {})
    assert measurement.latency_ms > 0
    assert measurement.size_bytes == model.size_bytes


def raising(graph_def: Any) -> float:
    raise ZeroDivisionError("no images")


@pytest.mark.parametrize(
    ("eval_func", "message"),
    [
        (raising, "eval_func raised ZeroDivisionError: no images"),
        (lambda graph_def: float("nan"), "eval_func returned nan; expected a finite number of at least 0"),
        (lambda graph_def: float("inf"), "eval_func returned inf; expected a finite number of at least 0"),
        (lambda graph_def: -0.5, "eval_func returned -0.5; expected a finite number of at least 0"),
        (lambda graph_def: "0.5", "eval_func returned '0.5'; expected a number"),
        (lambda graph_def: None, "eval_func returned None; expected a number"),
        (lambda graph_def: True, "eval_func returned True; expected a number"),
        (lambda graph_def: {"mAP": 0.5}, "eval_func returned {'mAP': 0.5}; expected a number"),
        (lambda graph_def: np.bool_(True), "eval_func returned np.True_; expected a number"),
        (lambda graph_def: np.complex64(0.5), "eval_func returned np.complex64(0.5+0j); expected a number"),
        (lambda graph_def: np.zeros((2, 1)), "eval_func returned array([[0.], [0.]]); expected a number"),
        (lambda graph_def: "x" * 5000, "eval_func returned 'xxxxxxxxxxxx...xxxxxxxxxxxxx'; expected a number"),
        (
            lambda graph_def: -(10**400),
            "eval_func returned -10000000000000000...0000000000000000000; expected a finite",
        ),
        (lambda graph_def: sys.exit("no data"), "eval_func raised SystemExit: no data"),
    ],
)
def test_faults_of_a_function_are_named(eval_func: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(EvaluationError) as raised:
        FunctionEvaluator(eval_func, IMAGE).evaluate(make_model(), never)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


def test_a_fault_that_says_several_lines_is_told_in_one() -> None:
    def eval_func(graph_def: Any) -> float:
        raise ValueError("first\nsecond")

    with pytest.raises(EvaluationError) as raised:
        FunctionEvaluator(eval_func, IMAGE).evaluate(make_model(), never)
    assert "\n" not in str(raised.value)


def test_ctrl_c_in_a_function_is_not_a_fault_of_it() -> None:
    def eval_func(graph_def: Any) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FunctionEvaluator(eval_func, IMAGE).evaluate(make_model(), never)


def with_masks(dataset: DetectionDataset) -> DetectionDataset:
    """The same images, every object as large as its box."""
    whole = paste_masks(np.ones((3, 5, 5), np.float32), BOXES.astype(np.float32), 24, 32)
    return replace(
        dataset,
        entries=tuple(replace(one, ground_truth=replace(one.ground_truth, masks=whole)) for one in dataset.entries),
    )


def half_masks() -> Any:
    """Masks [1, 3, 4, 4] of only the left half of each box."""
    return np.tile(np.array([1, 1, 0, 0], np.float32), (1, 3, 4, 1))


def test_boxes_and_masks_are_watched_together(dataset: DetectionDataset) -> None:
    model = make_model(detection_masks=half_masks())
    both = CocoEvaluator(with_masks(dataset), Silent(), iou_types=tuple(IouType)).evaluate(model, never)
    segm = CocoEvaluator(with_masks(dataset), Silent(), iou_types=(IouType.SEGM,)).evaluate(model, never)
    assert isinstance(both, Measurement)
    assert isinstance(segm, Measurement)
    assert both.accuracy == both.metrics["mAP"] == both.watched["bbox"] == pytest.approx(1)
    assert both.watched["segm"] == both.metrics["segm_mAP"] == segm.accuracy == segm.metrics["mAP"]
    assert segm.accuracy < 0.5
    assert segm.watched == {}


def test_masks_alone_can_drop_a_graph(dataset: DetectionDataset) -> None:
    masked, kept = with_masks(dataset), []
    good, bad = make_model(detection_masks=np.ones((1, 3, 4, 4), np.float32)), make_model(detection_masks=half_masks())
    judge = CocoEvaluator(masked, Silent(), iou_types=tuple(IouType))
    judge.evaluate(good, never, keep=kept.append)
    rules = {
        one: EarlyRejection(records, LossLimit("relative", 0.01), looks=(1, 2)) for one, records in kept[0].items()
    }
    assert isinstance(judge.evaluate(bad, never, {IouType.BBOX: rules[IouType.BBOX]}), Measurement)
    assert isinstance(judge.evaluate(bad, never, rules), Rejection)


def test_a_model_without_masks_is_told(dataset: DetectionDataset) -> None:
    with pytest.raises(ModelError, match=r"no detection outputs with masks: .* need .*, detection_masks"):
        CocoEvaluator(with_masks(dataset), Silent(), iou_types=(IouType.SEGM,)).evaluate(make_model(), never)


def test_images_without_masks_are_told(dataset: DetectionDataset) -> None:
    model = make_model(detection_masks=half_masks())
    with pytest.raises(EvaluationError, match=r"image \d: masks are to be compared, and there are none"):
        CocoEvaluator(dataset, Silent(), iou_types=(IouType.SEGM,)).evaluate(model, never)
