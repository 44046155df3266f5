"""COCO's evaluation in parts against the same evaluators run on everything at once: no tolerance anywhere."""

import contextlib
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import faster_coco_eval
import numpy as np
import pycocotools.coco
import pycocotools.cocoeval
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuner.data.dataset import open_dataset
from tuner.detections import Detections, GroundTruth
from tuner.errors import EvaluationError
from tuner.evaluation.coco_map import COCO_FIGURES, CocoBackend, category_curves, coco_metrics, match_image, metrics_of
from tuner.evaluation.coco_parts import category_parts
from tuner.evaluation.coco_tables import SIZE_CLASSES, CocoTables, ImageTruth, IouType, coco_tables, image_tables
from tuner.masks import paste_masks
from tuner.model.loading import load_model
from tuner.model.runner import ModelRunner

HEIGHT, WIDTH = 240, 320
# Of 7 there are crowds alone, 8 is never detected, 44 never annotated.
FOUND, CROWD_ONLY, MISSED, STRANGER = [1, 3, 90], 7, 8, 44


def with_masks(random: np.random.Generator, one: Any) -> Any:
    blobs = random.random((len(one), 4, 4)).astype(np.float32)
    return replace(one, masks=paste_masks(blobs, one.boxes.astype(np.float32), HEIGHT, WIDTH))


def random_scene(seed: int, *, masks: bool = False, images: int = 9) -> tuple[list[ImageTruth], list[Detections]]:
    """Tied scores, crowds, images with nothing, boxes inside out, objects of every size; once 130 of a category."""
    random = np.random.default_rng(seed)
    truths, detections = [], []
    for number, image_id in enumerate(random.permutation(1000)[:images].tolist()):
        count = 0 if number == 1 else int(random.integers(0, 9))
        low = random.uniform(0, 0.5, (count, 2))
        boxes = np.hstack([low, low + np.exp(random.uniform(np.log(0.02), np.log(0.5), (count, 2)))])
        ids = random.choice([*FOUND, CROWD_ONLY, MISSED], count)
        crowd = (random.random(count) < 0.2) | (ids == CROWD_ONLY)
        if number == 0:  # whatever is drawn, something is annotated and found
            boxes, ids, crowd = np.vstack([boxes, [[0.1, 0.1, 0.7, 0.8]]]), np.append(ids, 1), np.append(crowd, False)
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) * HEIGHT * WIDTH
        truth = GroundTruth(boxes, ids, crowd, areas)
        finds = 130 if number == 0 else int(random.integers(0, 4)) * len(boxes)
        about = random.integers(0, max(len(boxes), 1), finds)
        near = (boxes[about] + random.normal(0, 0.03, (finds, 4))).astype(np.float32)
        if not masks and finds:
            near[-1] = near[-1][[2, 1, 0, 3]]
        guesses = np.where(random.random(finds) < 0.8, ids[about], random.choice([*FOUND, STRANGER], finds))
        guesses = np.full(finds, 1) if number == 0 else np.where(guesses == MISSED, STRANGER, guesses)
        found = Detections(near, (random.integers(1, 6, finds) / 5).astype(np.float32), guesses)
        if masks:
            truth, found = with_masks(random, truth), with_masks(random, found)
        truths.append(ImageTruth(image_id, HEIGHT, WIDTH, truth))
        detections.append(found)
    return truths, detections


def at_once(tables: CocoTables, backend: CocoBackend) -> Any:
    """The evaluator as its authors have it, on everything."""
    module, kind = (
        (pycocotools.coco, pycocotools.cocoeval.COCOeval)
        if backend is CocoBackend.PYCOCOTOOLS
        else (faster_coco_eval, faster_coco_eval.COCOeval_faster)
    )
    cocos = []
    for dataset in tables.as_datasets():
        coco = module.COCO()
        coco.dataset = dataset
        coco.createIndex()
        cocos.append(coco)
    evaluation = kind(*cocos, tables.iou_type.value)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def random_parts(tables: CocoTables, random: np.random.Generator) -> list[CocoTables]:
    """Categories in groups drawn at random, some of which are parted by size classes, in any order."""
    group = random.integers(0, random.integers(1, len(tables.category_ids) + 1), len(tables.category_ids))
    parts = []
    for one in np.unique(group):
        part = tables.of_categories(np.array(tables.category_ids)[group == one].tolist())
        size = random.permutation(len(SIZE_CLASSES)).tolist()
        cuts = np.sort(random.integers(0, 5, random.integers(0, 3))).tolist()
        sizes = [size[low:high] for low, high in zip([0, *cuts], [*cuts, 4], strict=True)]
        parts += [replace(part, sizes=tuple(some)) for some in sizes if some]
    return [parts[i] for i in random.permutation(len(parts))]


def assert_parts_are_the_whole(tables: CocoTables, parts: list[CocoTables], backend: CocoBackend) -> None:
    whole = at_once(tables, backend)
    curves = [category_curves(part, backend) for part in parts]
    for part, curve in zip(parts, curves, strict=True):
        assert (curve.category_ids, curve.sizes) == (part.category_ids, part.sizes)
        where = np.ix_(np.searchsorted(tables.category_ids, part.category_ids), part.sizes)
        np.testing.assert_array_equal(curve.precision, whole.eval["precision"][:, :, *where], strict=True)
        np.testing.assert_array_equal(curve.recall, whole.eval["recall"][:, *where], strict=True)
    metrics = metrics_of(curves)
    assert [metrics.figures.get(name, -1.0) for name in COCO_FIGURES] == whole.stats.tolist()
    of_all_sizes = whole.eval["precision"][:, :, :, 0, -1]
    assert dict(metrics.ap_by_category) == {
        category: of_all_sizes[:, :, k].mean()
        for k, category in enumerate(tables.category_ids)
        if of_all_sizes[0, 0, k] >= 0
    }


@pytest.mark.parametrize("backend", CocoBackend)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_any_parts_of_boxes_are_the_whole_to_the_last_bit(backend: CocoBackend, seed: int) -> None:
    tables = coco_tables(*random_scene(seed))
    assert_parts_are_the_whole(tables, random_parts(tables, np.random.default_rng(seed)), backend)


@pytest.mark.parametrize("backend", CocoBackend)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_any_parts_of_masks_are_the_whole_to_the_last_bit(backend: CocoBackend, seed: int) -> None:
    tables = coco_tables(*random_scene(seed, masks=True), IouType.SEGM)
    assert_parts_are_the_whole(tables, random_parts(tables, np.random.default_rng(seed)), backend)


@pytest.mark.parametrize("backend", CocoBackend)
def test_the_scenes_hold_what_is_hard(backend: CocoBackend) -> None:
    truths, detections = random_scene(0, images=40)
    tables = coco_tables(truths, detections)
    metrics = coco_metrics(truths, detections, backend)
    assert set(metrics.figures) == set(COCO_FIGURES)
    assert tables.category_ids == (1, 3, CROWD_ONLY, MISSED, 90)
    assert set(metrics.ap_by_category) == {*FOUND, MISSED}
    assert metrics.ap_by_category[MISSED] == 0 < metrics.ap_by_category[3] < 1
    assert (tables.detected["area"] < 0).any()
    assert STRANGER in np.concatenate([one.category_ids for one in detections])
    assert metrics_of([category_curves(tables, backend)]) == metrics


def test_a_part_knows_nothing_of_other_categories() -> None:
    truths, detections = random_scene(5)
    part = coco_tables(truths, detections).of_categories([90, 3])
    assert part.category_ids == (3, 90)
    assert set(part.detected["category_id"]) | set(part.annotated["category_id"]) == {3, 90}
    assert part.images["id"].tolist() == [truth.image_id for truth in truths]
    masked = coco_tables(*random_scene(5, masks=True), IouType.SEGM).of_categories([3])
    assert len(masked.detected_masks) == len(masked.detected) > 0
    assert len(masked.annotated_masks) == len(masked.annotated) > 0
    assert masked.nbytes > masked.detected.nbytes + masked.annotated.nbytes + masked.images.nbytes


def test_curves_that_are_missing_or_given_twice_are_named() -> None:
    tables = coco_tables(*random_scene(1))
    curves = [category_curves(tables.of_categories([category])) for category in tables.category_ids]
    small = category_curves(replace(tables.of_categories([3]), sizes=(1,)))
    with pytest.raises(EvaluationError, match="category 3: the curves of size class small were given 2 times"):
        metrics_of([*curves, small])
    others = [one for one in curves if one.category_ids != (3,)]
    with pytest.raises(EvaluationError, match="category 3: the curves of size class all were given 0 times"):
        metrics_of([*others, small])


def flat_tables(counts: dict[int, int]) -> CocoTables:
    """Ten images and so many detections of each category."""
    box = np.array([[0.1, 0.1, 0.5, 0.5]])
    ids = np.repeat(list(counts), list(counts.values()))
    truths = [
        ImageTruth(number, HEIGHT, WIDTH, GroundTruth(box[:0], ids[:0], np.zeros(0, bool), np.zeros(0)))
        for number in range(9)
    ]
    objects = np.array(list(counts))
    every = GroundTruth(box.repeat(len(objects), 0), objects, np.zeros(len(objects), bool), np.full(len(objects), 50.0))
    nothing = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), ids[:0])
    everything = Detections(box.repeat(len(ids), 0).astype(np.float32), np.ones(len(ids), np.float32), ids)
    return coco_tables([*truths, ImageTruth(9, HEIGHT, WIDTH, every)], [*[nothing] * 9, everything])


@pytest.mark.parametrize(
    ("counts", "parts", "expected"),
    [
        ({1: 100, 2: 100, 3: 100}, 1, [((1, 2, 3), 4)]),
        ({1: 100, 2: 100, 3: 100}, 3, [((1,), 4), ((2,), 4), ((3,), 4)]),
        ({1: 300, 2: 90, 3: 100, 4: 110}, 2, [((1,), 4), ((2, 3, 4), 4)]),
        ({1: 300, 2: 90, 3: 100}, 5, [((2, 3), 4), *[((1,), 1)] * 4]),
        ({1: 100}, 3, [((1,), 4)]),
        ({1: 100}, 4, [((1,), 4)]),
        ({1: 100}, 50, [((1,), 1)] * 4),
        ({1: 100, 2: 100}, 50, [*[((1,), 1)] * 4, *[((2,), 1)] * 4]),
    ],
)
def test_parts_are_of_equal_work(
    counts: dict[int, int], parts: int, expected: list[tuple[tuple[int, ...], int]]
) -> None:
    found = category_parts(flat_tables(counts), parts)
    assert sorted((part.category_ids, len(part.sizes)) for part in found) == sorted(expected)


@settings(max_examples=50, deadline=None)
@given(
    counts=st.dictionaries(st.integers(1, 90), st.integers(0, 60), min_size=1, max_size=12), parts=st.integers(1, 70)
)
def test_every_size_of_every_category_is_in_one_part(counts: dict[int, int], parts: int) -> None:
    tables = flat_tables(counts)
    found = category_parts(tables, parts)
    units = [(category, size) for part in found for category in part.category_ids for size in part.sizes]
    assert len(found) <= parts
    assert all(part.category_ids and part.sizes for part in found)
    assert sorted(units) == [(category, size) for category in tables.category_ids for size in range(4)]


@pytest.mark.parametrize("masks", [False, True])
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_an_image_is_matched_as_pycocotools_matches_every_category(masks: bool, seed: int) -> None:
    categories = [*FOUND, CROWD_ONLY, MISSED]
    iou_type = IouType.SEGM if masks else IouType.BBOX
    for truth, found in zip(*random_scene(seed, masks=masks), strict=True):
        matches = match_image(truth, found, categories, iou_type)
        tables = image_tables(truth, found, iou_type)
        known = tables.of_categories(set(tables.category_ids) - {STRANGER})
        expected = [] if not known.category_ids else [m for m in at_once(known, CocoBackend.PYCOCOTOOLS).evalImgs if m]
        expected = [one for one in expected if one["aRng"] == [0, 1e10]]
        rows = [
            (
                one["category_id"],
                score,
                *(-1 if ignored else int(match > 0) for match, ignored in zip(*outcome, strict=True)),
            )
            for one in expected
            for score, *outcome in zip(one["dtScores"], one["dtMatches"].T, one["dtIgnore"].T, strict=True)
        ]
        assert matches.outcomes.dtype == np.int8
        assert rows == [
            (category, score, *outcomes)
            for category, score, outcomes in zip(
                matches.category_ids.tolist(), matches.scores.tolist(), matches.outcomes.tolist(), strict=True
            )
        ]
        truth_ids, crowd = truth.ground_truth.category_ids, truth.ground_truth.is_crowd
        np.testing.assert_array_equal(matches.objects, truth_ids[~crowd], strict=True)


def test_categories_that_are_not_asked_for_are_not_matched() -> None:
    (truth, *_), (found, *_) = random_scene(2)
    every, some = match_image(truth, found, [1, 3, 90]), match_image(truth, found, [3, 90])
    assert 1 in every.objects
    kept = every.category_ids != 1
    assert np.count_nonzero(~kept) > 0
    for name in ("category_ids", "scores", "outcomes"):
        np.testing.assert_array_equal(getattr(some, name), getattr(every, name)[kept], strict=True)
    np.testing.assert_array_equal(some.objects, every.objects)


def test_parts_of_a_real_detector_are_the_whole(assets: Path) -> None:
    dataset = open_dataset(assets / "coco_val", annotations=assets / "coco_val/instances_with_masks.json", limit=40)
    with ModelRunner(load_model(assets / "detectors/fastestdet.pb")) as runner:
        detections = [runner.detect(sample.image) for sample in dataset]
    truths = [ImageTruth(e.image_id, e.height, e.width, e.ground_truth) for e in dataset.entries]
    tables = coco_tables(truths, detections)
    parts = category_parts(tables, 24)
    assert len(parts) == 24
    assert any(len(part.sizes) == 1 for part in parts)
    for backend in CocoBackend:
        assert_parts_are_the_whole(tables, parts, backend)
        metrics = metrics_of([category_curves(part, backend) for part in parts])
        assert metrics == coco_metrics(truths, detections, backend)
        assert metrics.figures["mAP"] > 0.1
