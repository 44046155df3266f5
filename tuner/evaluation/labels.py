"""The float model's own detections as the truth, for images that nobody has annotated."""

from contextlib import closing
from dataclasses import replace

import numpy as np

from tuner.data.dataset import DetectionDataset
from tuner.detections import Detections, GroundTruth
from tuner.errors import EvaluationError
from tuner.evaluation.workers import EvaluationImages, ThisProcess, Workers
from tuner.masks import Masks
from tuner.model.detection_model import DetectionModel
from tuner.progress import Progress


def label_by_model(
    model: DetectionModel,
    dataset: DetectionDataset,
    score: float,
    progress: Progress,
    *,
    masks: bool = False,
    workers: Workers | None = None,
) -> DetectionDataset:
    """The same images, annotated with what `model` finds in them with at least `score`; their own annotations go.

    mAP then measures agreement: the model itself has 1. masks: whether objects get their masks, too.
    workers: run it; this process where none are given.
    Raises EvaluationError when nothing is found in any image, ModelError for a model that does not detect.
    """
    images = EvaluationImages(dataset, masks=masks)
    with (workers or ThisProcess()).running(model, None, images) as graph, closing(graph.find()) as each:
        found = (one.detections for one in each)
        entries = tuple(
            replace(entry, ground_truth=_as_truth(detections, score, entry.height, entry.width))
            for entry, detections in zip(dataset.entries, progress.track(found, len(dataset), "label"), strict=True)
        )
    category_ids = frozenset(i for entry in entries for i in entry.ground_truth.category_ids.tolist())
    if not category_ids:
        raise EvaluationError(
            f"labels: the float model finds nothing with a score of at least {score:g} in {len(entries)} images; "
            "lower label_score, or use images of what it was trained on"
        )
    return replace(dataset, entries=entries, category_ids=category_ids)


def _as_truth(found: Detections, score: float, height: int, width: int) -> GroundTruth:
    sure = np.flatnonzero(found.scores >= score)
    boxes = found.boxes[sure].astype(np.float64)
    masks = found.masks and Masks(height, width, tuple(found.masks.codes[index] for index in sure))
    sides_px = (boxes[:, 2:] - boxes[:, :2]) * [height, width]
    return GroundTruth(
        boxes=boxes,
        category_ids=found.category_ids[sure],
        is_crowd=np.zeros(len(sure), bool),
        areas_px=np.prod(sides_px, axis=1) if masks is None else masks.areas_px,
        masks=masks,
    )
