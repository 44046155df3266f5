import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuner.data.dataset import open_dataset
from tuner.detections import Detections, GroundTruth
from tuner.errors import EvaluationError
from tuner.evaluation.coco_map import CocoBackend, ImageTruth, coco_metrics, match_image
from tuner.evaluation.match_records import MatchRecords, average_precisions, match_records, mean_average_precision
from tuner.model.loading import load_model
from tuner.model.runner import ModelRunner

SIDE = 100


def records_of(truths: list[ImageTruth], detections: list[Detections]) -> MatchRecords:
    categories = {i for truth in truths for i in truth.ground_truth.category_ids.tolist()}
    matches = [match_image(truth, found, categories) for truth, found in zip(truths, detections, strict=True)]
    return match_records([truth.image_id for truth in truths], categories, matches)


def random_scene(seed: int, images: int = 8, *, ties: bool = False) -> tuple[list[ImageTruth], list[Detections]]:
    """Images with crowds, near misses, strangers' categories, and some with no objects or no finds.

    Scores are often equal in different images; with `ties` in one image too.
    """
    rng = np.random.default_rng(seed)
    truths, detections = [], []
    for image_id in rng.permutation(100)[:images] + 1:
        count = int(rng.integers(0, 7))
        low = rng.uniform(0, 0.6, (count, 2))
        boxes = np.hstack([low, low + rng.uniform(0.05, 0.4, (count, 2))])
        ids = rng.choice([1, 3, 90], count)
        crowd = rng.random(count) < 0.2
        truths.append(ImageTruth(int(image_id), SIDE, SIDE, GroundTruth(boxes, ids, crowd, np.full(count, 100.0))))
        repeats = int(rng.integers(0, 4))
        jitter = np.tile(boxes, (repeats, 1)) + rng.normal(0, 0.03, (count * repeats, 4))
        guesses = np.where(rng.random(len(jitter)) < 0.8, np.tile(ids, repeats), 44)
        levels = rng.integers(1, 6, len(jitter)) if ties else rng.permutation(len(jitter)) + 1
        scores = (levels / 20).astype(np.float32)
        detections.append(Detections(jitter.astype(np.float32), scores, guesses))
    whole = np.array([[0.1, 0.1, 0.5, 0.5]])
    truths.append(ImageTruth(500, SIDE, SIDE, GroundTruth(whole, np.array([1]), np.array([False]), np.array([1600.0]))))
    detections.append(Detections(whole.astype(np.float32), np.array([0.6], np.float32), np.array([1])))
    return truths, detections


def map_of_copies(truths: list[ImageTruth], detections: list[Detections], weights: np.ndarray) -> float:
    """What pycocotools says about the set with copies; a copy's id follows that of its image."""
    copies = [
        (replace(truth, image_id=1000 * truth.image_id + copy), found)
        for truth, found, weight in zip(truths, detections, weights, strict=True)
        for copy in range(weight)
    ]
    return coco_metrics(*map(list, zip(*copies, strict=True)), CocoBackend.PYCOCOTOOLS).figures["mAP"]


@pytest.mark.parametrize("seed", range(8))
def test_equal_scores_in_one_image_are_as_pycocotools_has_them(seed: int) -> None:
    truths, detections = random_scene(seed, ties=True)
    records = records_of(truths, detections)
    expected = map_of_copies(truths, detections, np.ones(len(truths), int))
    assert mean_average_precision(records, np.ones((1, len(records)))) == pytest.approx([expected], abs=1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_the_whole_set_and_sets_of_copies_are_as_pycocotools_has_them(seed: int) -> None:
    truths, detections = random_scene(seed)
    random = np.random.default_rng(seed)
    weights = random.integers(0, 4, (4, len(truths)))
    weights[0] = 1
    weights[:, -1] = 1  # something is annotated and found in every set
    expected = [map_of_copies(truths, detections, row) for row in weights]
    assert mean_average_precision(records_of(truths, detections), weights) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), data=st.data())
def test_rows_images_and_copies_may_change_places(seed: int, data: st.DataObject) -> None:
    records = records_of(*random_scene(seed, images=4, ties=True))
    images = len(records)
    weights = np.array(data.draw(st.lists(st.lists(st.integers(0, 3), min_size=5, max_size=5), min_size=1, max_size=4)))
    values = mean_average_precision(records, weights)
    assert ((values >= 0) & (values <= 1 + 1e-12)).all()
    order = np.array(data.draw(st.permutations(range(images))))
    assert mean_average_precision(records.take(order), weights[:, order]).tolist() == values.tolist()
    drawn = np.flatnonzero(weights[0])
    assert mean_average_precision(records.take(drawn), weights[:1, drawn]).tolist() == values[:1].tolist()
    assert mean_average_precision(records, 3 * weights) == pytest.approx(values, abs=1e-12)


def test_many_sets_at_once_are_as_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    records = records_of(*random_scene(3))
    weights = np.random.default_rng(0).integers(0, 3, (40, len(records)))
    at_once = mean_average_precision(records, weights)
    monkeypatch.setattr("tuner.evaluation.match_records._DRAWN_AT_ONCE", 50)
    assert mean_average_precision(records, weights).tolist() == at_once.tolist()


def test_the_precision_of_a_category_is_the_map_of_a_set_without_others(monkeypatch: pytest.MonkeyPatch) -> None:
    records = records_of(*random_scene(4, images=20))
    weights = np.random.default_rng(4).integers(0, 3, (7, len(records)))
    monkeypatch.setattr("tuner.evaluation.match_records._DRAWN_AT_ONCE", 40)
    found = average_precisions(records, weights)
    for index in range(len(records.category_ids)):
        kept = records.category_of == index
        alone = replace(
            records,
            category_ids=records.category_ids[index : index + 1],
            objects=records.objects[:, index : index + 1],
            image_of=records.image_of[kept],
            category_of=np.zeros(np.count_nonzero(kept), np.int32),
            scores=records.scores[kept],
            outcomes=records.outcomes[kept],
        )
        assert np.array_equal(found[:, index], mean_average_precision(alone, weights))
    assert found.max() > 0


def test_what_is_not_annotated_in_a_set_does_not_count() -> None:
    box = np.array([[0.1, 0.1, 0.5, 0.5]])
    truths = [
        ImageTruth(number, SIDE, SIDE, GroundTruth(box, np.array([category]), np.array([False]), np.array([1600.0])))
        for number, category in ((1, 7), (2, 8), (3, 8))
    ]
    finds = Detections(box.astype(np.float32), np.array([0.9], np.float32), np.array([7]))
    nothing = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    records = records_of(truths, [finds, finds, nothing])
    # Of 7 one of one is found, behind a false alarm of the same score where the second image is drawn as well.
    sets = np.array([[1, 0, 0], [1, 0, 1], [0, 1, 1], [0, 0, 0], [1, 5, 0]])
    assert mean_average_precision(records, sets) == pytest.approx([1.0, 0.5, 0.0, 0.0, 0.5])


@pytest.mark.parametrize("detections", [0, 1])
def test_a_set_in_which_nothing_is_found(detections: int) -> None:
    truths, _ = random_scene(1)
    far = Detections(
        np.full((detections, 4), 0.99, np.float32), np.ones(detections, np.float32), np.full(detections, 1, np.int64)
    )
    records = records_of(truths, [far] * len(truths))
    assert mean_average_precision(records, np.ones((2, len(records)))).tolist() == [0.0, 0.0]


def test_at_most_a_hundred_detections_of_a_category_count_in_an_image() -> None:
    truths, _ = random_scene(0)
    many = Detections(
        np.tile(np.array([0.1, 0.1, 0.5, 0.5], np.float32), (150, 1)),
        np.linspace(1, 0.1, 150, dtype=np.float32),
        np.where(np.arange(150) < 110, 1, 3),
    )
    match = match_image(truths[-1], many, {1, 3})
    assert np.unique(match.category_ids, return_counts=True)[1].tolist() == [100, 40]


def test_a_box_that_is_not_finite_is_named() -> None:
    truths, _ = random_scene(0)
    bad = Detections(np.full((1, 4), np.nan, np.float32), np.ones(1, np.float32), np.ones(1, np.int64))
    with pytest.raises(EvaluationError, match="image 500: a detection's box or score is not a finite number"):
        match_image(truths[-1], bad, {1})


def test_records_come_back_from_a_file_without_pickle() -> None:
    records = records_of(*random_scene(2))
    file = io.BytesIO()
    np.savez(file, **records.to_arrays())
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        again = MatchRecords.from_arrays(arrays)
    for name, values in records.to_arrays().items():
        np.testing.assert_array_equal(values, again.to_arrays()[name], strict=True)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("scores", lambda values: None, "no array scores"),
        ("scores", lambda values: values[:-1], "has the shape"),
        ("outcomes", lambda values: values[:, :9], "outcomes has the shape"),
        ("objects", lambda values: values[:, :-1], "objects has the shape"),
        ("image_of", lambda values: values + 1, "image_of points beyond its 9 entries"),
        ("category_of", lambda values: values - 3, "category_of points beyond its"),
        ("image_of", lambda values: values[::-1], "not in the order of their images"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(name: str, change, message: str) -> None:
    arrays = records_of(*random_scene(2)).to_arrays()
    arrays[name] = change(arrays[name])
    arrays = {key: values for key, values in arrays.items() if values is not None}
    with pytest.raises(EvaluationError, match=message):
        MatchRecords.from_arrays(arrays)


@pytest.mark.parametrize("detector", ["nanodet_plus_m_320", "picodet_s_320", "fastestdet", "yolo_fastestv2_bn"])
def test_real_detectors_are_as_pycocotools_has_them(assets: Path, detector: str) -> None:
    dataset = open_dataset(assets / "coco_val", annotations=assets / "coco_val/instances.json", limit=25)
    with ModelRunner(load_model(assets / f"detectors/{detector}.pb")) as runner:
        detections = [runner.detect(sample.image) for sample in dataset]
    truths = [ImageTruth(e.image_id, e.height, e.width, e.ground_truth) for e in dataset.entries]
    records = records_of(truths, detections)
    weights = np.stack([np.ones(len(truths), int), np.arange(len(truths)) % 3])
    expected = [map_of_copies(truths, detections, row) for row in weights]
    assert min(expected) > 0.1
    assert mean_average_precision(records, weights) == pytest.approx(expected, abs=1e-12)
