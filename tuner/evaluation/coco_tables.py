"""What COCO's evaluators compare, as arrays in COCO's own columns: the only place where boxes are in pixels."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import compress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.detections import Detections, GroundTruth
from tuner.errors import EvaluationError

SIZE_CLASSES = ("all", "small", "medium", "large")  # in the order in which both evaluators have them

IMAGE = np.dtype([("id", np.int64), ("height", np.int64), ("width", np.int64)])
_ROW = [("image_id", np.int64), ("category_id", np.int64), ("bbox", np.float64, 4), ("area", np.float64)]
ANNOTATED = np.dtype([*_ROW, ("iscrowd", np.uint8)])
DETECTED = np.dtype([*_ROW, ("score", np.float64)])

RunLengths = tuple[dict[str, Any], ...]


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


@dataclass(frozen=True, slots=True, eq=False)
class CocoTables:
    """What is annotated and what was found in a series of images, of some categories and size classes.

    The evaluators take every category and every size class by itself: what is left out changes nothing in the others.

    iou_type: what is compared.
    category_ids: ascending. sizes: indices into SIZE_CLASSES.
    images: [I] of IMAGE, in pixels; also those without any object or detection.
    annotated: [A] of ANNOTATED. detected: [D] of DETECTED. Both in the order of `images`; `bbox` is x y w h in pixels,
    `area` in square pixels.
    annotated_masks, detected_masks: of each row, as COCO's run lengths; none where boxes are compared.
    """

    iou_type: IouType
    category_ids: tuple[int, ...]
    images: NDArray[np.void]
    annotated: NDArray[np.void]
    detected: NDArray[np.void]
    annotated_masks: RunLengths
    detected_masks: RunLengths
    sizes: tuple[int, ...] = tuple(range(len(SIZE_CLASSES)))

    @property
    def nbytes(self) -> int:
        """Of the arrays and of the masks' codes."""
        codes = sum(len(mask["counts"]) for mask in self.annotated_masks + self.detected_masks)
        return self.images.nbytes + self.annotated.nbytes + self.detected.nbytes + codes

    def of_categories(self, category_ids: Collection[int]) -> "CocoTables":
        """Those categories alone, on the same images."""
        kept = sorted(category_ids)
        annotated = np.isin(self.annotated["category_id"], kept)
        detected = np.isin(self.detected["category_id"], kept)
        return replace(
            self,
            category_ids=tuple(kept),
            annotated=self.annotated[annotated],
            detected=self.detected[detected],
            annotated_masks=tuple(compress(self.annotated_masks, annotated.tolist())),
            detected_masks=tuple(compress(self.detected_masks, detected.tolist())),
        )

    def as_datasets(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What is annotated and what was found, each as the content of a COCO file."""
        images = _dictionaries(self.images, {})
        categories = [{"id": i, "name": str(i)} for i in self.category_ids]
        annotated, detected = (
            {"images": images, "categories": categories, "annotations": _annotations(rows, masks)}
            for rows, masks in ((self.annotated, self.annotated_masks), (self.detected, self.detected_masks))
        )
        return annotated, detected


def coco_tables(
    truths: Sequence[ImageTruth], detections: Sequence[Detections], iou_type: IouType = IouType.BBOX
) -> CocoTables:
    """What was found in each image beside what is annotated there, of every annotated category.

    detections: one for each of `truths`, in the same order. Detections of categories that no object is annotated with
    are left out. iou_type: with SEGM all need masks.

    Raises EvaluationError when the two do not pair, an image id occurs twice, nothing but crowds is annotated, a box
    or score is not finite, masks are missing, or not one detected category is among the annotated ones.
    """
    _check(truths, detections)
    annotated = _ids(truth.ground_truth.category_ids for truth in truths)
    detected = _ids(found.category_ids for found in detections)
    if detected and not annotated & detected:
        raise EvaluationError(
            f"no detected category is annotated: detected are {_listed(detected)}; annotated are {_listed(annotated)}: "
            "set model.classes, or evaluation.accuracy.metric.COCOmAP.anno_path"
        )
    return _tables(truths, detections, iou_type).of_categories(annotated)


def image_tables(truth: ImageTruth, found: Detections, iou_type: IouType = IouType.BBOX) -> CocoTables:
    """One image's, of every category that is annotated in it or detected.

    Raises EvaluationError for a box or score that is not finite, or masks that are missing.
    """
    _check_finite(truth, found)
    return _tables([truth], [found], iou_type)


def _tables(truths: Sequence[ImageTruth], detections: Sequence[Detections], iou_type: IouType) -> CocoTables:
    images = np.array([(truth.image_id, truth.height, truth.width) for truth in truths], IMAGE)
    objects = [truth.ground_truth for truth in truths]
    annotated, detected = _rows(ANNOTATED, images, objects), _rows(DETECTED, images, detections)
    annotated["iscrowd"] = np.concatenate([one.is_crowd for one in objects])
    annotated["area"] = np.concatenate([one.areas_px for one in objects])
    detected["score"] = np.concatenate([one.scores for one in detections])
    annotated_masks: RunLengths = ()
    detected_masks: RunLengths = ()
    if iou_type is IouType.SEGM:
        annotated_masks, detected_masks = _masks(images, objects), _masks(images, detections)
        # As COCO's `loadRes` has it.
        detected["area"] = np.concatenate([one.masks.areas_px for one in detections if one.masks is not None])
    else:
        detected["area"] = detected["bbox"][:, 2] * detected["bbox"][:, 3]
    categories = np.union1d(annotated["category_id"], detected["category_id"])
    return CocoTables(
        iou_type, tuple(categories.tolist()), images, annotated, detected, annotated_masks, detected_masks
    )


def _rows(
    row: np.dtype[np.void], images: NDArray[np.void], of_images: Sequence[GroundTruth | Detections]
) -> NDArray[np.void]:
    """One of `row` for each object, with what objects and detections have in common; boxes are computed in float64."""
    image = np.repeat(images, [len(one) for one in of_images])
    ymin, xmin, ymax, xmax = np.concatenate([one.boxes for one in of_images]).astype(np.float64).T
    height, width = image["height"], image["width"]
    rows = np.empty(len(image), row)
    rows["image_id"] = image["id"]
    rows["category_id"] = np.concatenate([one.category_ids for one in of_images])
    rows["bbox"] = np.stack([xmin * width, ymin * height, (xmax - xmin) * width, (ymax - ymin) * height], axis=1)
    return rows


def _masks(images: NDArray[np.void], of_images: Sequence[GroundTruth | Detections]) -> RunLengths:
    masks: list[dict[str, Any]] = []
    for image_id, one in zip(images["id"], of_images, strict=True):
        if one.masks is None:
            raise EvaluationError(f"image {image_id}: masks are to be compared, and there are none")
        masks += one.masks.run_lengths
    return tuple(masks)


def _annotations(rows: NDArray[np.void], masks: RunLengths) -> list[dict[str, Any]]:
    # From 1: both evaluators write the id of the match into an array in which 0 means "none".
    more: dict[str, Sequence[Any]] = {"id": range(1, len(rows) + 1)}
    return _dictionaries(rows, {**more, "segmentation": masks} if masks else more)


def _dictionaries(rows: NDArray[np.void], more: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    columns = {**{name: rows[name].tolist() for name in rows.dtype.names or ()}, **more}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


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


def _check_finite(truth: ImageTruth, found: Detections) -> None:
    if not (np.isfinite(found.boxes).all() and np.isfinite(found.scores).all()):
        raise EvaluationError(f"image {truth.image_id}: a detection's box or score is not a finite number")


def _ids(arrays: Iterable[NDArray[np.int64]]) -> set[int]:
    return set(np.unique(np.concatenate(list(arrays))).tolist())


def _listed(ids: set[int]) -> str:
    shown = [str(i) for i in sorted(ids)[:10]]
    return f"{len(ids)} ids ({', '.join(shown)}{', ...' if len(ids) > 10 else ''})"
