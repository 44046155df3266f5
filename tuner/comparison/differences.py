"""What two detectors differ by on the same images, and how sure that is: category by category, and in all."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tuner.errors import EvaluationError
from tuner.evaluation.early_rejection import FEWEST_IMAGES, INTERVAL_RESAMPLES
from tuner.evaluation.match_records import MatchRecords, average_precisions

CONFIDENCE = 0.95

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class CategoryDifference:
    """One category's average precision over IoU 0.50 to 0.95, of A and of B, as fractions.

    objects, images: how many are annotated, crowds apart, and in how many images.
    interval: of `difference`, B less A, for this category alone; None where it is in fewer than FEWEST_IMAGES images.
    certain: whether the difference is other than 0 with all categories looked at together.
    """

    category_id: int
    objects: int
    images: int
    ap_a: float
    ap_b: float
    interval: Interval | None
    certain: bool

    @property
    def difference(self) -> float:
        """B less A."""
        return self.ap_b - self.ap_a


@dataclass(frozen=True, slots=True)
class Differences:
    """B less A: of the mAP with its interval, and of each category, the largest loss first."""

    difference: float
    interval: Interval
    categories: tuple[CategoryDifference, ...]


def find_differences(a: MatchRecords, b: MatchRecords, *, seed: int = 0) -> Differences:
    """Compare the records of two detectors on the same images in the same order.

    Intervals are for other images like these: the paired bootstrap of `loss_interval`, which draws as many images with
    replacement and accumulates both again; percentiles for 95 of 100 draws, each for itself. With many categories some
    such intervals miss 0 by chance. So `certain` holds all of them to one bound: the difference in units of its
    standard error has to be larger than the largest deviation of any category in 95 of 100 draws (the single-step maxT
    procedure: Westfall and Young, Resampling-Based Multiple Testing, 1993), which counts that categories share images.

    Draws without an object of a category say nothing of it and are left out for it.
    Raises EvaluationError for records of other images or categories.
    """
    if not np.array_equal(a.image_ids, b.image_ids) or not np.array_equal(a.category_ids, b.category_ids):
        raise EvaluationError("the records of the two detectors are not of the same images and categories")
    images = len(a)
    drawn = np.random.default_rng([seed, images]).multinomial(images, np.full(images, 1 / images), INTERVAL_RESAMPLES)
    # The first set is the images themselves.
    weights = np.concatenate([np.ones((1, images), np.int64), drawn])
    # [sets, categories]; NaN where no object of the category was drawn.
    missing = weights @ a.objects == 0
    of_a, of_b = (np.where(missing, np.nan, average_precisions(one, weights)) for one in (a, b))
    changes = of_b - of_a
    annotated = a.objects.any(axis=0)
    in_images = np.count_nonzero(a.objects, axis=0)
    in_all = changes[:, annotated]
    whole = np.nansum(in_all, axis=1) / np.maximum(np.count_nonzero(~np.isnan(in_all), axis=1), 1)
    certain = _certain(changes, in_images >= FEWEST_IMAGES)
    found = [
        CategoryDifference(
            category_id=int(a.category_ids[k]),
            objects=int(a.objects[:, k].sum()),
            images=int(in_images[k]),
            ap_a=float(of_a[0, k]),
            ap_b=float(of_b[0, k]),
            interval=_interval(changes[1:, k]) if in_images[k] >= FEWEST_IMAGES else None,
            certain=bool(certain[k]),
        )
        for k in np.flatnonzero(annotated)
    ]
    ordered = sorted(found, key=lambda category: (category.difference, category.category_id))
    return Differences(float(whole[0]), _interval(whole[1:]), tuple(ordered))


def _certain(changes: NDArray[np.float64], enough: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """changes: [1 + B, C], those of the images themselves first. enough: [C], whether a category can be judged."""
    found = np.zeros(changes.shape[1], bool)
    judged = np.flatnonzero(enough)
    errors = np.nanstd(changes[1:, judged], axis=0, ddof=1)
    judged, errors = judged[errors > 0], errors[errors > 0]
    if len(judged):
        deviations = np.abs(changes[1:, judged] - changes[0, judged]) / errors
        largest = np.nanmax(deviations, axis=1)
        found[judged] = np.abs(changes[0, judged]) / errors > np.quantile(largest, CONFIDENCE)
    return found


def _interval(values: NDArray[np.float64]) -> Interval:
    low, high = np.nanquantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
