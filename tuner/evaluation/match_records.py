"""Which detections of each image found an object: all that mAP needs, kept so that images can be drawn again."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.errors import EvaluationError
from tuner.evaluation.coco_map import IOU_THRESHOLDS, ImageMatches

# As pycocotools makes them, to the last bit: precision is read at these recalls.
RECALLS = np.linspace(0.0, 1.0, 101)
_RECALLS_ENDED = np.append(RECALLS, [np.inf, np.inf])
# How many drawn detections are in memory at a time: 4 bytes each.
_DRAWN_AT_ONCE = 4_000_000


@dataclass(frozen=True, slots=True, eq=False)
class MatchRecords:
    """The matches of a detector over a series of images, I images and D detections in all.

    image_ids: [I] int64. category_ids: [C] int64, ascending: all that are annotated in the set that the images are of.
    objects: [I, C] int32, how many objects are annotated, crowds apart.
    image_of: [D] int32, the detection's image as an index into image_ids, ascending.
    category_of: [D] int32, its category as an index into category_ids.
    scores: [D] float32. Within one image and category, best first.
    outcomes: [D, 10] int8, as in `ImageMatches`.

    Raises EvaluationError where the arrays do not fit each other.
    """

    image_ids: NDArray[np.int64]
    category_ids: NDArray[np.int64]
    objects: NDArray[np.int32]
    image_of: NDArray[np.int32]
    category_of: NDArray[np.int32]
    scores: NDArray[np.float32]
    outcomes: NDArray[np.int8]

    def __post_init__(self) -> None:
        images, categories, detections = len(self.image_ids), len(self.category_ids), len(self.scores)
        expected = {
            "image_ids": (images,),
            "category_ids": (categories,),
            "objects": (images, categories),
            "image_of": (detections,),
            "category_of": (detections,),
            "scores": (detections,),
            "outcomes": (detections, IOU_THRESHOLDS),
        }
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise EvaluationError(f"match records: {name} has the shape {getattr(self, name).shape}, not {shape}")
        for name, count in (("image_of", images), ("category_of", categories)):
            values = getattr(self, name)
            if detections and not (values.min() >= 0 and values.max() < count):
                raise EvaluationError(f"match records: {name} points beyond its {count} entries")
        if (np.diff(self.image_of) < 0).any():
            raise EvaluationError("match records: detections are not in the order of their images")

    def __len__(self) -> int:
        return len(self.image_ids)

    def take(self, images: Sequence[int] | NDArray[np.intp]) -> "MatchRecords":
        """The records of some images, by their indices, in that order."""
        starts = np.searchsorted(self.image_of, np.arange(len(self) + 1))
        counts = starts[1:] - starts[:-1]
        kept = np.concatenate([np.zeros(0, np.intp), *(np.arange(starts[i], starts[i + 1]) for i in images)])
        return replace(
            self,
            image_ids=self.image_ids[images],
            objects=self.objects[images],
            image_of=np.repeat(np.arange(len(images), dtype=np.int32), counts[images]),
            category_of=self.category_of[kept],
            scores=self.scores[kept],
            outcomes=self.outcomes[kept],
        )

    def first(self, images: int) -> "MatchRecords":
        """The records of the first images."""
        return self.take(np.arange(images))

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """The records as named arrays, for `np.savez`."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> "MatchRecords":
        """Read `to_arrays` back. Raises EvaluationError for arrays that are missing or do not fit each other."""
        missing = [field.name for field in fields(cls) if field.name not in arrays]
        if missing:
            raise EvaluationError(f"match records: no array {missing[0]}")
        return cls(**{field.name: arrays[field.name] for field in fields(cls)})


def match_records(
    image_ids: Sequence[int], category_ids: Iterable[int], matches: Sequence[ImageMatches]
) -> MatchRecords:
    """Put the matches of single images together.

    matches: one for each of `image_ids`. category_ids: all that are annotated in the whole set; detections of other
    categories must have been left out.
    """
    categories = np.array(sorted(set(category_ids)), np.int64)
    counts = [len(match.scores) for match in matches]
    objects = np.zeros((len(matches), len(categories)), np.int32)
    for row, match in zip(objects, matches, strict=True):
        np.add.at(row, np.searchsorted(categories, match.objects), 1)
    found = np.concatenate([np.zeros(0, np.int64), *(match.category_ids for match in matches)])
    return MatchRecords(
        image_ids=np.array(image_ids, np.int64),
        category_ids=categories,
        objects=objects,
        image_of=np.repeat(np.arange(len(matches), dtype=np.int32), counts),
        category_of=np.searchsorted(categories, found).astype(np.int32),
        scores=np.concatenate([np.zeros(0, np.float32), *(match.scores for match in matches)]),
        outcomes=np.concatenate([np.zeros((0, IOU_THRESHOLDS), np.int8), *(match.outcomes for match in matches)]),
    )


def mean_average_precision(records: MatchRecords, weights: NDArray[Any]) -> NDArray[np.float64]:
    """COCO's mAP (IoU 0.50 to 0.95, 101 recalls) of sets in which each image occurs as often as its weight says.

    weights: [B, I], whole numbers of at least 0, one row for each set. Returns [B] float64; 0 where nothing is
    annotated.

    It is what pycocotools accumulates from as many copies of the images: a category counts where an object of it is
    annotated; equal scores are in the order of the image ids, copies of one detection beside each other. Only
    detections that found an object are looked at: between two of them recall stands still and precision falls, so that
    no maximum of precision lies there.
    """
    objects = _drawn_objects(records, weights)
    total = np.zeros(len(objects))
    for _, sets, precisions in _each_precision(records, weights, objects):
        total[sets] += precisions
    mean: NDArray[np.float64] = total / np.maximum(np.count_nonzero(objects, axis=1), 1)
    return mean


def average_precisions(records: MatchRecords, weights: NDArray[Any]) -> NDArray[np.float64]:
    """Of each category what `mean_average_precision` takes the mean of: [B, C], 0 where nothing of it is annotated."""
    objects = _drawn_objects(records, weights)
    found = np.zeros(objects.shape)
    for category, sets, precisions in _each_precision(records, weights, objects):
        found[sets, category] = precisions
    return found


def _drawn_objects(records: MatchRecords, weights: NDArray[Any]) -> NDArray[np.float64]:
    """[B, C], how many objects are annotated in each set."""
    drawn: NDArray[np.float64] = np.asarray(weights).astype(np.float64) @ records.objects.astype(np.float64)
    return drawn


def _each_precision(
    records: MatchRecords, weights: NDArray[Any], objects: NDArray[np.float64]
) -> Iterator[tuple[int, slice, NDArray[np.float64]]]:
    """The average precision of each category with finds, some sets at a time."""
    by_image = np.ascontiguousarray(np.asarray(weights).T, np.int32)
    for category, images, outcomes in _by_category(records):
        step = max(1, _DRAWN_AT_ONCE // len(images))
        for start in range(0, len(objects), step):
            sets = slice(start, start + step)
            yield category, sets, _average_precision(by_image[images, sets], outcomes, objects[sets, category])


def _by_category(records: MatchRecords) -> Iterator[tuple[int, NDArray[np.int32], NDArray[np.int8]]]:
    """The index, images [d] and outcomes [d, 10] of each category with finds, best score first, up to the last find."""
    order = np.lexsort((records.image_ids[records.image_of], -records.scores, records.category_of))
    bounds = np.searchsorted(records.category_of[order], np.arange(len(records.category_ids) + 1))
    for category, (start, end) in enumerate(pairwise(bounds)):
        rows = order[start:end]
        finds = np.flatnonzero((records.outcomes[rows] == 1).any(axis=1))
        if len(finds):
            rows = rows[: finds[-1] + 1]
            yield category, records.image_of[rows], records.outcomes[rows]


def _average_precision(
    drawn: NDArray[np.int32], outcomes: NDArray[np.int8], objects: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Of one category, the mean over all IoU thresholds. drawn: [d, B], how often each detection occurs. objects: [B].

    The last detection found an object.
    """
    finds = np.flatnonzero((outcomes == 1).any(axis=1))
    groups = np.concatenate([[0], finds[:-1] + 1])  # each ends with a find
    drawn_so_far = np.cumsum(np.add.reduceat(drawn, groups), axis=0)
    drawn_finds = drawn[finds]
    total = np.zeros(drawn.shape[1])
    for outcome in outcomes.T:
        hits = np.flatnonzero(outcome[finds] == 1)
        if not len(hits):
            continue
        found = np.cumsum(drawn_finds[hits], axis=0)
        judged = drawn_so_far[hits]
        ignored = np.flatnonzero(outcome < 0)
        if len(ignored):
            ignored_so_far = np.cumsum(np.insert(drawn[ignored], 0, 0, axis=0), axis=0)
            judged = judged - ignored_so_far[np.searchsorted(ignored, finds[hits])]
        # pycocotools adds the same least number, against 0 / 0.
        precision = found / (judged + np.spacing(1))
        best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
        reached = _recalls_reached(found / np.maximum(objects, 1))
        total += (best_from_here * np.diff(reached, axis=0, prepend=0)).sum(axis=0)
    return total / (IOU_THRESHOLDS * len(RECALLS))


def _recalls_reached(recall: NDArray[np.float64]) -> NDArray[np.intp]:
    """How many of RECALLS are at most so much: `searchsorted` from the right, quicker for evenly spaced values."""
    surely = (recall * (len(RECALLS) - 1)).astype(np.intp)
    return surely + (_RECALLS_ENDED[surely] <= recall) + (_RECALLS_ENDED[surely + 1] <= recall)
