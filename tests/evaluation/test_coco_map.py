import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pycocotools.coco
import pycocotools.cocoeval
import pytest

from tuner.detections import Detections, GroundTruth
from tuner.errors import EvaluationError
from tuner.evaluation.coco_map import COCO_FIGURES, CocoBackend, ImageTruth, IouType, coco_metrics, match_image
from tuner.evaluation.match_records import match_records, mean_average_precision
from tuner.masks import Masks, paste_masks

HEIGHT, WIDTH = 120, 160


def truth(boxes: list[list[float]], categories: list[int], crowd: list[int] | None = None, image_id: int = 1):
    """One image of 120 x 160 with boxes given as pixel corners ymin xmin ymax xmax."""
    corners = np.array(boxes, float).reshape(-1, 4)
    areas = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
    is_crowd = np.array(crowd if crowd is not None else [0] * len(boxes), bool)
    scale = [HEIGHT, WIDTH, HEIGHT, WIDTH]
    return ImageTruth(
        image_id, HEIGHT, WIDTH, GroundTruth(corners / scale, np.array(categories, np.int64), is_crowd, areas)
    )


def found(boxes: list[list[float]], categories: list[int], scores: list[float]) -> Detections:
    corners = np.array(boxes, float).reshape(-1, 4) / [HEIGHT, WIDTH, HEIGHT, WIDTH]
    return Detections(corners.astype(np.float32), np.array(scores, np.float32), np.array(categories, np.int64))


def random_scene(seed: int) -> tuple[list[ImageTruth], list[Detections]]:
    """Images with crowds, tied scores, near misses, strangers' categories, and some with no objects or no finds."""
    rng = np.random.default_rng(seed)
    truths, detections = [], []
    for image_id in rng.permutation(1000)[:12] + 1:
        count = int(rng.integers(0, 8))
        low = rng.uniform(0, 0.6, (count, 2)) * [HEIGHT, WIDTH]
        boxes = np.hstack([low, low + rng.uniform(0.01, 0.4, (count, 2)) * [HEIGHT, WIDTH]])
        ids = rng.choice([1, 3, 90], count)
        crowd = (rng.random(count) < 0.2).astype(int)
        truths.append(truth(boxes.tolist(), ids.tolist(), crowd.tolist(), int(image_id)))
        repeats = int(rng.integers(0, 4))
        jitter = np.tile(boxes, (repeats, 1)) + rng.normal(0, 4, (count * repeats, 4))
        jitter[:, 2:] = np.maximum(jitter[:, :2], jitter[:, 2:])
        guesses = np.where(rng.random(count * repeats) < 0.8, np.tile(ids, repeats), 44)
        scores = rng.integers(1, 6, count * repeats) / 5
        detections.append(found(jitter.tolist(), guesses.tolist(), scores.tolist()))
    truths.append(truth([[10, 10, 50, 50]], [1], image_id=5000))
    detections.append(found([[12, 10, 50, 52]], [1], [0.6]))
    return truths, detections


@pytest.mark.parametrize("seed", range(25))
def test_both_evaluators_agree_on_random_detections(seed: int) -> None:
    truths, detections = random_scene(seed)
    fast = coco_metrics(truths, detections, CocoBackend.FASTER)
    official = coco_metrics(truths, detections, CocoBackend.PYCOCOTOOLS)
    assert fast.figures.keys() == official.figures.keys()
    assert fast.ap_by_category.keys() == official.ap_by_category.keys()
    for name, value in official.figures.items():
        assert fast.figures[name] == pytest.approx(value, abs=1e-12), name
    assert list(fast.ap_by_category.values()) == pytest.approx(list(official.ap_by_category.values()), abs=1e-12)
    assert np.mean(list(official.ap_by_category.values())) == pytest.approx(official.figures["mAP"], abs=1e-12)


@pytest.mark.parametrize("backend", CocoBackend)
def test_every_object_found_exactly_gives_one(backend: CocoBackend) -> None:
    sizes = [[0, 0, 20, 20], [30, 30, 90, 90], [0, 20, 120, 160]]
    metrics = coco_metrics([truth(sizes, [1, 2, 3])], [found(sizes, [1, 2, 3], [0.9, 0.8, 0.7])], backend)
    assert tuple(metrics.figures) == COCO_FIGURES
    assert list(metrics.figures.values()) == pytest.approx([1.0] * 12)
    assert metrics.ap_by_category == pytest.approx({1: 1.0, 2: 1.0, 3: 1.0})


@pytest.mark.parametrize("backend", CocoBackend)
def test_nothing_found_gives_zero(backend: CocoBackend) -> None:
    metrics = coco_metrics([truth([[0, 0, 20, 20]], [7])], [found([], [], [])], backend)
    assert metrics.figures["mAP"] == 0.0
    assert metrics.ap_by_category == {7: 0.0}


@pytest.mark.parametrize("backend", CocoBackend)
def test_size_classes_without_objects_are_left_out(backend: CocoBackend) -> None:
    figures = coco_metrics([truth([[0, 0, 20, 20]], [7])], [found([], [], [])], backend).figures
    assert set(COCO_FIGURES) - set(figures) == {"AP_medium", "AP_large", "AR_medium", "AR_large"}
    json.dumps(dict(figures), allow_nan=False)


@pytest.mark.parametrize("backend", CocoBackend)
def test_the_overlap_decides(backend: CocoBackend) -> None:
    # 62 of 100 rows overlap: IoU 0.62 passes the thresholds 0.50, 0.55 and 0.60 of ten.
    metrics = coco_metrics([truth([[0, 0, 100, 100]], [1])], [found([[0, 0, 62, 100]], [1], [0.5])], backend)
    assert metrics.figures["AP50"] == pytest.approx(1.0)
    assert metrics.figures["AP75"] == 0.0
    assert metrics.figures["mAP"] == pytest.approx(0.3)


@pytest.mark.parametrize("backend", CocoBackend)
def test_evaluation_is_silent_and_leaves_its_input_alone(
    backend: CocoBackend, capfd: pytest.CaptureFixture[str]
) -> None:
    truths, detections = random_scene(3)
    before = copy.deepcopy((truths, detections))
    coco_metrics(truths, detections, backend)
    assert capfd.readouterr().out == ""
    for old, new in zip(before[1], detections, strict=True):
        np.testing.assert_array_equal(old.boxes, new.boxes)
    for old_truth, new_truth in zip(before[0], truths, strict=True):
        np.testing.assert_array_equal(old_truth.ground_truth.boxes, new_truth.ground_truth.boxes)


@pytest.mark.parametrize(
    "truths, detections, message",
    [
        ([truth([[0, 0, 9, 9]], [1])], [], "detections of 0 images were given for 1"),
        ([], [], "no object is annotated in the 0 images"),
        ([truth([], [])], [found([], [], [])], "no object is annotated"),
        ([truth([[0, 0, 9, 9]], [1], [1])], [found([], [], [])], "no object is annotated"),
        ([truth([[0, 0, 9, 9]], [1])] * 2, [found([], [], [])] * 2, "image id 1 occurs more than once"),
        ([truth([[0, 0, 9, 9]], [1])], [found([[0, 0, 9, np.nan]], [1], [0.5])], "image 1: .* not a finite number"),
        ([truth([[0, 0, 9, 9]], [1])], [found([[0, 0, 9, 9]], [1], [np.inf])], "image 1: .* not a finite number"),
        (
            [truth([[0, 0, 9, 9]] * 2, [17, 18])],
            [found([[0, 0, 9, 9]], [0], [0.5])],
            r"detected are 1 ids \(0\); annotated are 2 ids \(17, 18\)",
        ),
    ],
)
def test_what_cannot_be_compared_is_named(truths: list[ImageTruth], detections: list[Detections], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        coco_metrics(truths, detections)


def test_real_annotations_give_what_pycocotools_gives_from_the_file(assets: Path) -> None:
    path = assets / "coco_val/instances_with_masks.json"
    table = json.loads(path.read_text())
    rng = np.random.default_rng(0)
    official = pycocotools.coco.COCO(str(path))
    results, truths, detections = [], [], []
    for image in table["images"]:
        size = [image["height"], image["width"]] * 2
        objects = official.imgToAnns[image["id"]]
        xywh = np.array([a["bbox"] for a in objects], float).reshape(-1, 4)
        corners = np.stack([xywh[:, 1], xywh[:, 0], xywh[:, 1] + xywh[:, 3], xywh[:, 0] + xywh[:, 2]], axis=1)
        ids = np.array([a["category_id"] for a in objects], np.int64)
        crowd = np.array([a["iscrowd"] for a in objects], bool)
        areas = np.array([a["area"] for a in objects], float)
        truths.append(
            ImageTruth(image["id"], image["height"], image["width"], GroundTruth(corners / size, ids, crowd, areas))
        )
        noisy = ((corners + rng.normal(0, 3, corners.shape)) / size).astype(np.float32)
        scores = rng.random(len(ids)).astype(np.float32)
        detections.append(Detections(noisy, scores, ids))
        pixels = noisy.astype(float) * size
        for box, score, category in zip(pixels, scores, ids, strict=True):
            x, y, w, h = box[1], box[0], box[3] - box[1], box[2] - box[0]
            results.append(
                {"image_id": image["id"], "category_id": int(category), "bbox": [x, y, w, h], "score": float(score)}
            )
    evaluation = pycocotools.cocoeval.COCOeval(official, official.loadRes(results), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    for backend in CocoBackend:
        figures = coco_metrics(truths, detections, backend).figures
        assert list(figures.values()) == pytest.approx(evaluation.stats.tolist(), abs=1e-9), backend


def with_random_masks(truths: list[ImageTruth], detections: list[Detections], seed: int):
    """Blobs within the boxes, those of detections like those of objects."""
    rng = np.random.default_rng(seed)

    def blobs(boxes: np.ndarray) -> Masks:
        return paste_masks(rng.random((len(boxes), 5, 5)).astype(np.float32), boxes.astype(np.float32), HEIGHT, WIDTH)

    masked = [
        replace(one, ground_truth=replace(one.ground_truth, masks=blobs(one.ground_truth.boxes))) for one in truths
    ]
    return masked, [replace(one, masks=blobs(one.boxes)) for one in detections]


@pytest.mark.parametrize("seed", range(5))
def test_both_evaluators_agree_on_masks(seed: int) -> None:
    truths, detections = with_random_masks(*random_scene(seed), seed)
    fast = coco_metrics(truths, detections, CocoBackend.FASTER, IouType.SEGM)
    official = coco_metrics(truths, detections, CocoBackend.PYCOCOTOOLS, IouType.SEGM)
    assert fast.figures == pytest.approx(official.figures, abs=1e-12)
    boxes = coco_metrics(truths, detections, CocoBackend.PYCOCOTOOLS)
    assert official.figures["mAP"] != boxes.figures["mAP"]


def test_masks_that_are_equal_are_found_whatever_the_boxes() -> None:
    truths, detections = [truth([[0, 0, 60, 60]], [1])], [found([[0, 0, 100, 150]], [1], [0.9])]
    masks = paste_masks(np.ones((1, 3, 3), np.float32), truths[0].ground_truth.boxes.astype(np.float32), HEIGHT, WIDTH)
    truths = [replace(truths[0], ground_truth=replace(truths[0].ground_truth, masks=masks))]
    detections = [replace(detections[0], masks=masks)]
    assert coco_metrics(truths, detections, CocoBackend.FASTER, IouType.SEGM).figures["mAP"] == pytest.approx(1)
    assert coco_metrics(truths, detections, CocoBackend.FASTER).figures["mAP"] == 0


@pytest.mark.parametrize("seed", range(3))
def test_matches_of_masks_give_the_same_map(seed: int) -> None:
    truths, detections = with_random_masks(*random_scene(seed), seed)
    categories = {i for one in truths for i in one.ground_truth.category_ids.tolist()}
    matches = [match_image(t, d, categories, IouType.SEGM) for t, d in zip(truths, detections, strict=True)]
    records = match_records([one.image_id for one in truths], categories, matches)
    official = coco_metrics(truths, detections, CocoBackend.PYCOCOTOOLS, IouType.SEGM).figures["mAP"]
    assert mean_average_precision(records, np.ones((1, len(truths)))) == pytest.approx([official], abs=1e-12)
