"""In which images two detectors say different things."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tuner.detections import Detections, GroundTruth
from tuner.evaluation.coco_map import ImageMatches, ImageTruth, match_image


@dataclass(frozen=True, slots=True)
class Sided:
    """One detector's sure detections in an image. right: how many of them found an annotated object."""

    detections: int
    right: int


@dataclass(frozen=True, slots=True)
class Disagreement:
    """What two detectors say of one image.

    Counted are detections with at least a given score. Two of them say the same where they are of one category and
    overlap with an IoU of at least 0.5; each has at most one partner, found as COCO matches.
    objects: annotated, crowds apart. alone: detections without a partner, of both together. agreement: the share of
    detections with one, 2 P / (A + B) for P pairs among A and B detections (Dice 1945); 1 where both find nothing.
    """

    image_id: int
    name: str
    objects: int
    a: Sided
    b: Sided
    alone: int

    @property
    def agreement(self) -> float:
        """The share of detections that have a partner."""
        detections = self.a.detections + self.b.detections
        return 1 - self.alone / detections if detections else 1.0


def disagreement(
    truth: ImageTruth,
    name: str,
    found: tuple[Detections, Detections],
    matches: tuple[ImageMatches, ImageMatches],
    score: float,
) -> Disagreement:
    """Compare what two detectors found in one image, by their boxes. matches: of each with the annotations."""
    sure_a, sure_b = (_sure(one, score) for one in found)
    as_truth = GroundTruth(
        boxes=sure_a.boxes.astype(np.float64),
        category_ids=sure_a.category_ids,
        is_crowd=np.zeros(len(sure_a), bool),
        # Objects of every size count, so sizes do not matter.
        areas_px=np.ones(len(sure_a)),
    )
    of_a = ImageTruth(truth.image_id, truth.height, truth.width, as_truth)
    pairs = int((match_image(of_a, sure_b, set(sure_a.category_ids.tolist())).outcomes[:, 0] == 1).sum())
    sides = [
        Sided(len(sure), int(((one.outcomes[:, 0] == 1) & (one.scores >= score)).sum()))
        for sure, one in zip((sure_a, sure_b), matches, strict=True)
    ]
    return Disagreement(
        image_id=truth.image_id,
        name=name,
        objects=len(matches[0].objects),
        a=sides[0],
        b=sides[1],
        alone=len(sure_a) + len(sure_b) - 2 * pairs,
    )


def most_disagreeing(found: Sequence[Disagreement], count: int) -> tuple[Disagreement, ...]:
    """The images with most detections without a partner, and of equal ones that with the least agreement, first."""
    differing = [one for one in found if one.alone]
    return tuple(sorted(differing, key=lambda one: (-one.alone, one.agreement, one.image_id))[:count])


def _sure(found: Detections, score: float) -> Detections:
    kept = found.scores >= score
    return Detections(found.boxes[kept], found.scores[kept], found.category_ids[kept])
