"""COCO's figures for boxes and masks: the only door to the evaluators.

The authority takes most of a minute for 5,000 images, and every category by itself until the very last means. So the
figures can be made in parts, in other processes or on other machines, and are the same to the last bit:

    parts = category_parts(coco_tables(truths, detections), 64)
    metrics = metrics_of([category_curves(part, backend) for part in parts])
"""

import contextlib
import io
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import faster_coco_eval
import numpy as np
import pycocotools.coco
import pycocotools.cocoeval
from numpy.typing import NDArray

from tuner.detections import Detections
from tuner.errors import EvaluationError
from tuner.evaluation.coco_tables import SIZE_CLASSES, CocoTables, ImageTruth, IouType, coco_tables, image_tables

__all__ = [
    "COCO_FIGURES",
    "IOU_THRESHOLDS",
    "CategoryCurves",
    "CocoBackend",
    "CocoMetrics",
    "ImageMatches",
    "ImageTruth",
    "IouType",
    "category_curves",
    "coco_metrics",
    "match_image",
    "metrics_of",
]

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
RECALLS = 101  # 0, 0.01 .. 1
DETECTION_LIMITS = (1, 10, 100)  # of each category in an image


class CocoBackend(StrEnum):
    """Which implementation computes the figures: the authority, or the one eight times as fast."""

    PYCOCOTOOLS = "pycocotools"
    FASTER = "faster-coco-eval"


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


@dataclass(frozen=True, slots=True, eq=False)
class CategoryCurves:
    """What an evaluator says of K categories and A size classes, before any mean is taken; -1 where none is annotated.

    category_ids: [K], ascending. sizes: [A], indices into SIZE_CLASSES.
    precision: [10, 101, K, A, 3] float64, at IoU 0.50, 0.55 .. 0.95, recall 0, 0.01 .. 1, and at most 1, 10 and 100
    detections of a category in an image.
    recall: [10, K, A, 3] float64, the highest that is reached.
    """

    category_ids: tuple[int, ...]
    sizes: tuple[int, ...]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]


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
    return metrics_of([category_curves(coco_tables(truths, detections, iou_type), backend)])


def category_curves(tables: CocoTables, backend: CocoBackend = CocoBackend.FASTER) -> CategoryCurves:
    """Evaluate and accumulate the categories and size classes of `tables`, at least one of each."""
    # pycocotools prints its progress; stdout belongs to the results.
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = _EVALUATIONS[backend](tables)
        evaluation.params.areaRng = [evaluation.params.areaRng[size] for size in tables.sizes]
        evaluation.evaluate()
        evaluation.accumulate()
    return CategoryCurves(
        tables.category_ids,
        tables.sizes,
        np.asarray(evaluation.eval["precision"]),
        np.asarray(evaluation.eval["recall"]),
    )


def metrics_of(curves: Sequence[CategoryCurves]) -> CocoMetrics:
    """The figures of all categories together, summarised by pycocotools from curves of either evaluator.

    curves: of every part, in any order. Raises EvaluationError where a category's size class is missing or given twice.
    """
    category_ids = sorted({i for part in curves for i in part.category_ids})
    # As the evaluators lay them out: numpy's sums depend on the order in memory.
    shape = (len(category_ids), len(SIZE_CLASSES), len(DETECTION_LIMITS))
    precision = np.full((IOU_THRESHOLDS, RECALLS, *shape), -1.0)
    recall = np.full((IOU_THRESHOLDS, *shape), -1.0)
    given = np.zeros(shape[:2], np.intp)
    for part in curves:
        where: tuple[Any, ...] = np.ix_(np.searchsorted(category_ids, part.category_ids), np.array(part.sizes))
        precision[:, :, *where] = part.precision
        recall[:, *where] = part.recall
        given[where] += 1
    if (given != 1).any():
        category, size = np.argwhere(given != 1)[0].tolist()
        raise EvaluationError(
            f"category {category_ids[category]}: the curves of size class {SIZE_CLASSES[size]} were given "
            f"{given[category, size]} times; expected once"
        )
    evaluation = pycocotools.cocoeval.COCOeval(iouType=IouType.BBOX.value)
    evaluation.eval = {"precision": precision, "recall": recall}
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.summarize()
    of_all_sizes = precision[:, :, :, 0, -1]
    return CocoMetrics(
        figures={name: float(value) for name, value in zip(COCO_FIGURES, evaluation.stats, strict=True) if value >= 0},
        ap_by_category={
            category: float(of_all_sizes[:, :, k].mean())
            for k, category in enumerate(category_ids)
            if of_all_sizes[0, 0, k] >= 0
        },
    )


def match_image(
    truth: ImageTruth, found: Detections, category_ids: Collection[int], iou_type: IouType = IouType.BBOX
) -> ImageMatches:
    """Match one image's detections by pycocotools; those of categories not among `category_ids` are left out.

    Raises EvaluationError for a box or score that is not finite.
    """
    tables = image_tables(truth, found, iou_type)
    detected = tables.detected[np.isin(tables.detected["category_id"], list(category_ids))]
    detected = detected[np.lexsort((-detected["score"], detected["category_id"]))]
    categories = detected["category_id"]
    rank = np.arange(len(detected)) - np.searchsorted(categories, categories)
    detected, categories = detected[rank < DETECTION_LIMITS[-1]], categories[rank < DETECTION_LIMITS[-1]]
    annotated = tables.of_categories(set(tables.annotated["category_id"].tolist()).intersection(category_ids))
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = _with_pycocotools(annotated)
        evaluation.params.areaRng = evaluation.params.areaRng[:1]
        evaluation.evaluate()
    # Of other categories nothing can be found: false alarms, but for a box of negative area, which COCO ignores.
    ((smallest, largest),) = evaluation.params.areaRng
    ignored = (detected["area"] < smallest) | (detected["area"] > largest)
    outcomes = np.repeat(np.where(ignored, -1, 0).astype(np.int8)[:, np.newaxis], IOU_THRESHOLDS, axis=1)
    for match in evaluation.evalImgs:  # one for each annotated category: matched and ignored are [10, detections]
        matched = np.where(match["dtIgnore"], -1, match["dtMatches"] > 0)
        outcomes[categories == match["category_id"]] = matched.reshape(IOU_THRESHOLDS, -1).T
    return ImageMatches(
        categories,
        detected["score"].astype(np.float32),
        outcomes,
        tables.annotated["category_id"][tables.annotated["iscrowd"] == 0],
    )


def _with_pycocotools(tables: CocoTables) -> Any:
    annotated, detected = (_indexed(pycocotools.coco.COCO(), dataset) for dataset in tables.as_datasets())
    return pycocotools.cocoeval.COCOeval(annotated, detected, tables.iou_type.value)


def _with_faster(tables: CocoTables) -> Any:
    annotated, detected = (_indexed(faster_coco_eval.COCO(), dataset) for dataset in tables.as_datasets())
    return faster_coco_eval.COCOeval_faster(annotated, detected, tables.iou_type.value, extra_calc=False)


_EVALUATIONS: Mapping[CocoBackend, Callable[[CocoTables], Any]] = {
    CocoBackend.PYCOCOTOOLS: _with_pycocotools,
    CocoBackend.FASTER: _with_faster,
}


def _indexed(coco: Any, dataset: dict[str, Any]) -> Any:
    # What loadRes ends in, without the polygon that it makes of every box.
    coco.dataset = dataset
    coco.createIndex()
    return coco
