"""Dropping a candidate that cannot meet the criterion before all images are seen, at a stated rate of error.

Numbers in, decision out; docs/early_rejection.md has the reasons and what was measured.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tuner.errors import EvaluationError
from tuner.evaluation.match_records import MatchRecords, mean_average_precision
from tuner.trial import Rejection

LOOKS = (100, 300, 800, 2000)
# Fewer images than this say too little about their own spread.
FEWEST_IMAGES = 16
# How many sets of images are drawn for a standard error (known to 5 % by then), and for an interval's ends.
RESAMPLES = 200
INTERVAL_RESAMPLES = 1000
CONFIDENCE = 0.95
# Standard errors that the bound lies lower than the normal distribution says, from so many images on, and more of them
# before: a subset holds fewer categories than the whole set, and few objects of most; what that does to its mAP no
# resampling of the subset can show.
ALLOWANCE, ALLOWANCE_IMAGES = 1.0, 100


@dataclass(frozen=True, slots=True)
class LossLimit:
    """The most mAP that may be lost: a share of the baseline's when relative, else a difference of fractions."""

    kind: Literal["relative", "absolute"]
    value: float


@dataclass(frozen=True, slots=True)
class LossInterval:
    """A bootstrap confidence interval of a loss, in the limit's unit. loss: on the images that were evaluated."""

    loss: float
    low: float
    high: float
    confidence: float


@dataclass(frozen=True)
class EarlyRejection:
    """When to look, and when to drop a candidate; one rule for all candidates of a run.

    baseline: the float model's records on the whole set, in the order in which candidates are evaluated.
    alpha: the probability that a candidate whose loss on the whole set is within the limit is dropped, at all looks
    together. looks: numbers of images, rising, all smaller than the set; None for `default_looks`.

    Raises EvaluationError for an alpha outside 0..0.5 or looks that do not rise or lie outside the set.
    """

    baseline: MatchRecords
    limit: LossLimit
    alpha: float = 0.01
    looks: tuple[int, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 0.5:
            raise EvaluationError(f"early rejection: alpha is {self.alpha}; expected more than 0 and less than 0.5")
        ends = (0, *self.schedule, len(self.baseline))
        if any(before >= after for before, after in pairwise(ends)):
            raise EvaluationError(
                f"early rejection: looks are {list(self.schedule)}; expected rising numbers of images, "
                f"at least 1 and below the {len(self.baseline)} of the set"
            )

    @property
    def schedule(self) -> tuple[int, ...]:
        """The looks: after how many images."""
        return default_looks(len(self.baseline)) if self.looks is None else self.looks

    def look(self, candidate: MatchRecords, tell: Callable[[LossInterval], None] | None = None) -> Rejection | None:
        """Whether to drop a candidate, from its records on the first images; None: go on. Never accepts.

        tell: is given the loss to expect of all images, in the limit's unit, from the sets that are drawn anyway.
        Raises EvaluationError for records of other images than the baseline's first ones, or of a number of images at
        which no look was declared.
        """
        if len(candidate) not in self.schedule:
            raise EvaluationError(
                f"early rejection: {len(candidate)} images are not among the looks {list(self.schedule)}"
            )
        before, after = paired_resamples(self.baseline, candidate, RESAMPLES, self.seed)
        if tell is not None and before[0] > 0 and before[1:].any():
            tell(_percentiles(before, after, "relative", CONFIDENCE, self._unit))
        return self.decide(len(candidate), before, after)

    def decide(self, images: int, before: NDArray[np.float64], after: NDArray[np.float64]) -> Rejection | None:
        """`look` from the mAPs of baseline and candidate: of the images seen, then of sets drawn from them.

        Looked at is d = mAP_float(S) - mAP_candidate(S) - limit * mAP_float(S) on the images S seen so far. An absolute
        limit is taken as the share of the baseline that it is on the whole set: mAP on a subset is biased upwards, and
        a difference of two grows with them. The question is what d will be on the whole set, which is finite: S is a
        sample of it without replacement, and nothing is left to chance once all of it is seen. The standard error is
        that of `paired_resamples` with this in mind. Dropped when d less (z + allowance) standard errors is above 0, z
        the normal quantile for this look's share of alpha.

        alpha is spent in equal shares (the power family of Kim and DeMets 1987 with exponent 1, in looks), and shares
        add up by the union bound, however the looks depend on each other.
        """
        unit = self._unit
        if unit == 0:
            return None
        limit = self.limit.value / unit
        excess = before - after - limit * before
        looks = len(self.schedule)
        quantile = NormalDist().inv_cdf(1 - self.alpha / looks)
        allowance = ALLOWANCE * max(1.0, ALLOWANCE_IMAGES / images)
        lowest = excess[0] - (quantile + allowance) * excess[1:].std(ddof=1)
        if lowest <= 0:
            return None
        number = self.schedule.index(images) + 1
        return Rejection(
            images=images,
            look=number,
            loss=float((limit + excess[0] / before[0]) * unit),
            lower_bound=float(lowest),
            alpha_spent=self.alpha * number / looks,
        )

    @cached_property
    def _unit(self) -> float:
        """What a share of the baseline is in the limit's unit."""
        return 1.0 if self.limit.kind == "relative" else _whole(self.baseline)


def default_looks(images: int) -> tuple[int, ...]:
    """After how many of `images` to look: those of LOOKS in the first half, or a quarter and a half of a small set."""
    looks = [look for look in LOOKS if look <= images / 2]
    if len(looks) < 2:
        looks = [images // 4, images // 2]
    return tuple(look for look in looks if look >= FEWEST_IMAGES)


def loss_interval(
    baseline: MatchRecords,
    candidate: MatchRecords,
    kind: Literal["relative", "absolute"],
    *,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> LossInterval:
    """What a candidate loses on the images there are, and between which bounds it would on others of their kind.

    The percentile interval of the paired bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993,
    chapter 13): images are drawn with replacement, both mAPs accumulated again. Records of the same images in the same
    order. Raises EvaluationError where they are not, or a relative loss has no meaning as the baseline's mAP is 0.
    """
    if len(candidate) != len(baseline):
        raise EvaluationError(f"records of {len(candidate)} images were given for {len(baseline)} of the baseline")
    before, after = paired_resamples(baseline, candidate, INTERVAL_RESAMPLES, seed)
    if kind == "relative" and before[0] == 0:
        raise EvaluationError("the baseline's mAP is 0: a relative loss has no meaning; check model and data set")
    return _percentiles(before, after, kind, confidence)


def paired_resamples(
    baseline: MatchRecords, candidate: MatchRecords, resamples: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The mAPs of both on the candidate's images, then on sets of as many images drawn from them, the same for both.

    Where the baseline has been evaluated on more images, they are the finite population that the candidate's are a
    sample of, and sets are drawn as that one was: without replacement, from as many copies of the sample as make up the
    population (Gross 1980; an incomplete copy is a random part of the sample, anew for each set: Booth, Butler and
    Hall, "Bootstrap methods for finite populations", JASA 89, 1994). Else sets are drawn with replacement.

    Returns [1 + resamples] each. Raises EvaluationError where the candidate's images are not the baseline's first ones,
    in the same order.
    """
    images, whole = len(candidate), len(baseline)
    seen = baseline.first(images) if images < whole else baseline
    if not np.array_equal(seen.image_ids, candidate.image_ids):
        raise EvaluationError("match records of baseline and candidate are not of the same images in the same order")
    if not np.array_equal(seen.category_ids, candidate.category_ids):
        raise EvaluationError("match records of baseline and candidate are not of the same categories")
    random = np.random.default_rng([seed, images])
    weights = np.ones((1 + resamples, images), np.int64)
    for row in weights[1:]:
        if images < whole:
            population = np.full(images, whole // images)
            population[random.permutation(images)[: whole % images]] += 1
            row[:] = random.multivariate_hypergeometric(population, images, method="marginals")
        else:
            row[:] = random.multinomial(images, np.full(images, 1 / images))
    return mean_average_precision(seen, weights), mean_average_precision(candidate, weights)


def _percentiles(
    before: NDArray[np.float64],
    after: NDArray[np.float64],
    kind: Literal["relative", "absolute"],
    confidence: float,
    unit: float = 1.0,
) -> LossInterval:
    """The loss by the first of both mAPs, and the percentile interval of the others, times `unit`."""
    losses = before - after
    if kind == "relative":
        # A draw in which the float model finds nothing says nothing about shares.
        losses = losses[before > 0] / before[before > 0]
    low, high = np.quantile(losses[1:], [(1 - confidence) / 2, (1 + confidence) / 2]) * unit
    return LossInterval(float(losses[0] * unit), float(low), float(high), confidence)


def _whole(records: MatchRecords) -> float:
    return float(mean_average_precision(records, np.ones((1, len(records))))[0])
