"""COCO's figures for boxes and masks: the only door to the evaluators, and the only place where boxes are in pixels."""

import contextlib
import io
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import faster_coco_eval
import numpy as np
import pycocotools.coco
import pycocotools.cocoeval
from numpy.typing import NDArray

from tuner.detections import Detections, GroundTruth
from tuner.errors import EvaluationError

COCO_FIGURES = (
    "mAP",
    "AP50",
    "AP75",
    "AP_small",
    "AP_medium",
    "AP_large",
    "AR_1",
    "AR_10",
    "AR_100",
    "AR_small",
    "AR_medium",
    "AR_large",
)  # in the order in which both evaluators state them

IOU_THRESHOLDS = 10  # 0.50, 0.55 .. 0.95


class CocoBackend(StrEnum):
    """Which implementation computes the figures: the authority, or the one eight times as fast."""

    PYCOCOTOOLS = "pycocotools"
    FASTER = "faster-coco-eval"


class IouType(StrEnum):
    """What of an object is compared: its box, or its mask."""

    BBOX = "bbox"
    SEGM = "segm"


@dataclass(frozen=True, slots=True)
class ImageTruth:
    """What is annotated in one image. height, width: in pixels."""

    image_id: int
    height: int
    width: int
    ground_truth: GroundTruth


@dataclass(frozen=True, slots=True)
class ImageMatches:
    """How what was found in one image matches what is annotated there: objects of every size, as pycocotools has it.

    A category's detections follow each other, best score first, at most 100 of them, as COCO counts.

    category_ids: [D] int64. scores: [D] float32.
    outcomes: [D, 10] int8, at IoU 0.50, 0.55 .. 0.95: 1 for an object found, 0 for a false alarm, -1 where a crowd
    region makes it neither.
    objects: [A] int64, the category id of each annotated object that is not a crowd.
    """

    category_ids: NDArray[np.int64]
    scores: NDArray[np.float32]
    outcomes: NDArray[np.int8]
    objects: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class CocoMetrics:
    """The COCO figures of one model, as fractions.

    figures: by the names of COCO_FIGURES; a size class without annotated objects is left out.
    ap_by_category: average precision over IoU 0.50 to 0.95 of each annotated category id; their mean is the mAP.
    """

    figures: Mapping[str, float]
    ap_by_category: Mapping[int, float]


def coco_metrics(
    truths: Sequence[ImageTruth],
    detections: Sequence[Detections],
    backend: CocoBackend = CocoBackend.FASTER,
    iou_type: IouType = IouType.BBOX,
) -> CocoMetrics:
    """Compare what was found in each image with what is annotated there.

    detections: one for each of `truths`, in the same order; no detections at all give a mAP of 0. Categories that no
    object is annotated with do not count, as in COCO's own evaluation. iou_type: with SEGM all need masks.

    Raises EvaluationError when the two do not pair, an image id occurs twice, nothing but crowds is annotated, a box
    or score is not finite, or not one detected category is among the annotated ones.
    """
    _check(truths, detections)
    categories = sorted(_ids(truth.ground_truth.category_ids for truth in truths))
    images = [{"id": truth.image_id, "height": truth.height, "width": truth.width} for truth in truths]
    annotated, detected = [
        {"images": images, "categories": [{"id": i, "name": str(i)} for i in categories], "annotations": rows}
        for rows in (_annotated(truths, iou_type), _detected(truths, detections, set(categories), iou_type))
    ]
    # pycocotools prints its progress; stdout belongs to the results.
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = _EVALUATIONS[backend](annotated, detected, iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # precision: [IoU thresholds, recalls, categories, size classes, detection limits]; -1 where nothing is annotated.
    precision = np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1]
    return CocoMetrics(
        figures={
            name: float(value)
            for name, value in zip(COCO_FIGURES, evaluation.stats[: len(COCO_FIGURES)], strict=True)
            if value >= 0
        },
        ap_by_category={
            category: float(precision[:, :, k].mean())
            for k, category in enumerate(categories)
            if precision[0, 0, k] >= 0
        },
    )


def match_image(
    truth: ImageTruth, found: Detections, category_ids: Collection[int], iou_type: IouType = IouType.BBOX
) -> ImageMatches:
    """Match one image's detections by pycocotools; those of categories not among `category_ids` are left out.

    Raises EvaluationError for a box or score that is not finite.
    """
    _check_finite(truth, found)
    annotated, detected = _annotated([truth], iou_type), _detected([truth], [found], category_ids, iou_type)
    present = sorted({row["category_id"] for row in annotated + detected})
    image = {"id": truth.image_id, "height": truth.height, "width": truth.width}
    truth_table, found_table = (
        {"images": [image], "categories": [{"id": i} for i in present], "annotations": rows}
        for rows in (annotated, detected)
    )
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = _with_pycocotools(truth_table, found_table, iou_type)
        evaluation.params.areaRng = evaluation.params.areaRng[:1]
        evaluation.evaluate()
    matches = evaluation.evalImgs  # one for each category: matched and ignored are [10, detections]
    outcomes = [
        np.where(match["dtIgnore"], -1, match["dtMatches"] > 0).astype(np.int8).reshape(IOU_THRESHOLDS, -1).T
        for match in matches
    ]
    objects = [row["category_id"] for row in annotated if not row["iscrowd"]]
    return ImageMatches(
        np.repeat(np.array(present, np.int64), [len(match["dtScores"]) for match in matches]),
        np.array([score for match in matches for score in match["dtScores"]], np.float32),
        np.concatenate([np.zeros((0, IOU_THRESHOLDS), np.int8), *outcomes]),
        np.array(objects, np.int64),
    )


def _with_pycocotools(truth: dict[str, Any], found: dict[str, Any], iou_type: IouType) -> Any:
    return pycocotools.cocoeval.COCOeval(
        _indexed(pycocotools.coco.COCO(), truth), _indexed(pycocotools.coco.COCO(), found), iou_type.value
    )


def _with_faster(truth: dict[str, Any], found: dict[str, Any], iou_type: IouType) -> Any:
    return faster_coco_eval.COCOeval_faster(
        _indexed(faster_coco_eval.COCO(), truth),
        _indexed(faster_coco_eval.COCO(), found),
        iou_type.value,
        extra_calc=False,
    )


_EVALUATIONS: Mapping[CocoBackend, Callable[[dict[str, Any], dict[str, Any], IouType], Any]] = {
    CocoBackend.PYCOCOTOOLS: _with_pycocotools,
    CocoBackend.FASTER: _with_faster,
}


def _indexed(coco: Any, table: dict[str, Any]) -> Any:
    # What loadRes ends in, without the polygon that it makes of every box.
    coco.dataset = table
    coco.createIndex()
    return coco


def _annotated(truths: Sequence[ImageTruth], iou_type: IouType) -> list[dict[str, Any]]:
    rows = [
        {"image_id": image.image_id, "category_id": category, "bbox": box, "iscrowd": int(crowd), "area": area, **mask}
        for image in truths
        for category, box, crowd, area, mask in zip(
            image.ground_truth.category_ids.tolist(),
            _boxes_px(image.ground_truth.boxes, image),
            image.ground_truth.is_crowd.tolist(),
            image.ground_truth.areas_px.tolist(),
            _segmentations(image.ground_truth, image, iou_type),
            strict=True,
        )
    ]
    return _numbered(rows)


def _detected(
    truths: Sequence[ImageTruth],
    detections: Sequence[Detections],
    categories: Collection[int],
    iou_type: IouType,
) -> list[dict[str, Any]]:
    rows = [
        {"image_id": image.image_id, "category_id": category, "bbox": box, "score": score, "area": area, **mask}
        for image, found in zip(truths, detections, strict=True)
        for category, box, score, area, mask in zip(
            found.category_ids.tolist(),
            _boxes_px(found.boxes, image),
            found.scores.tolist(),
            _areas_px(found, image, iou_type),
            _segmentations(found, image, iou_type),
            strict=True,
        )
        if category in categories
    ]
    return _numbered(rows)


def _segmentations(objects: GroundTruth | Detections, image: ImageTruth, iou_type: IouType) -> list[dict[str, Any]]:
    """What a row says of the mask, for each object."""
    if iou_type is IouType.BBOX:
        return [{}] * len(objects)
    if objects.masks is None:
        raise EvaluationError(f"image {image.image_id}: masks are to be compared, and there are none")
    return [{"segmentation": one} for one in objects.masks.run_lengths]


def _areas_px(found: Detections, image: ImageTruth, iou_type: IouType) -> list[float]:
    """Of the masks where those are compared, as COCO's `loadRes` has it, else of the boxes."""
    if iou_type is IouType.SEGM and found.masks is not None:
        return list(found.masks.areas_px.tolist())
    return [width * height for _, _, width, height in _boxes_px(found.boxes, image)]


def _numbered(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    # From 1: both evaluators write the id of the match into an array in which 0 means "none".
    for number, row in enumerate(rows, start=1):
        row["id"] = number
    return rows


def _boxes_px(boxes: NDArray[np.floating[Any]], image: ImageTruth) -> list[list[float]]:
    """[N, 4] ymin xmin ymax xmax, 0..1 -> N lists x y w h in pixels, computed in float64."""
    ymin, xmin, ymax, xmax = boxes.astype(np.float64).T
    sides = (xmin * image.width, ymin * image.height, (xmax - xmin) * image.width, (ymax - ymin) * image.height)
    boxes_px: list[list[float]] = np.stack(sides, axis=1).tolist()
    return boxes_px


def _check(truths: Sequence[ImageTruth], detections: Sequence[Detections]) -> None:
    if len(truths) != len(detections):
        raise EvaluationError(f"detections of {len(detections)} images were given for {len(truths)} annotated images")
    repeated = [image_id for image_id, count in Counter(truth.image_id for truth in truths).items() if count > 1]
    if repeated:
        raise EvaluationError(f"image id {repeated[0]} occurs more than once among the annotated images")
    if all(truth.ground_truth.is_crowd.all() for truth in truths):
        raise EvaluationError(f"no object is annotated in the {len(truths)} images (crowds do not count)")
    for truth, found in zip(truths, detections, strict=True):
        _check_finite(truth, found)
    annotated = _ids(truth.ground_truth.category_ids for truth in truths)
    detected = _ids(found.category_ids for found in detections)
    if detected and not annotated & detected:
        raise EvaluationError(
            f"no detected category is annotated: detected are {_listed(detected)}; annotated are {_listed(annotated)}: "
            "set model.classes, or evaluation.accuracy.metric.COCOmAP.anno_path"
        )


def _check_finite(truth: ImageTruth, found: Detections) -> None:
    if not (np.isfinite(found.boxes).all() and np.isfinite(found.scores).all()):
        raise EvaluationError(f"image {truth.image_id}: a detection's box or score is not a finite number")


def _ids(arrays: Iterable[NDArray[np.int64]]) -> set[int]:
    return {category for array in arrays for category in array.tolist()}


def _listed(ids: set[int]) -> str:
    shown = [str(i) for i in sorted(ids)[:10]]
    return f"{len(ids)} ids ({', '.join(shown)}{', ...' if len(ids) > 10 else ''})"
