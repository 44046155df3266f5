from statistics import NormalDist
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuner.errors import EvaluationError
from tuner.evaluation.early_rejection import (
    RESAMPLES,
    EarlyRejection,
    LossInterval,
    LossLimit,
    default_looks,
    loss_interval,
    paired_resamples,
)
from tuner.evaluation.match_records import MatchRecords, mean_average_precision

IMAGES, CATEGORIES = 120, 4
ONE_PERCENT = LossLimit("relative", 0.01)


def detector(quality: float, seed: int = 0, images: int = IMAGES) -> MatchRecords:
    """One to three objects of four categories in each image; each is found at about `quality` of the IoU thresholds.

    Detectors of one seed meet the same objects and differ by what they are worth alone.
    """
    random = np.random.default_rng(seed)
    counts = random.integers(1, 4, images)
    image_of = np.repeat(np.arange(images, dtype=np.int32), counts)
    total = len(image_of)
    category_of = random.choice(CATEGORIES, total, p=[0.6, 0.25, 0.1, 0.05]).astype(np.int32)
    objects = np.zeros((images, CATEGORIES), np.int32)
    np.add.at(objects, (image_of, category_of), 1)
    ease = random.random(total)
    scores = (0.5 * ease + 0.5 * random.random(total)).astype(np.float32)
    thresholds = np.clip(10 * ease + random.normal(0, 1, total) + 10 * (quality - 0.5), 0, 10)
    outcomes = (np.arange(10) < thresholds[:, np.newaxis]).astype(np.int8)
    order = np.lexsort((-scores, category_of, image_of))
    return MatchRecords(
        np.arange(1, images + 1),
        np.arange(1, CATEGORIES + 1),
        objects,
        image_of,
        category_of[order],
        scores[order],
        outcomes[order] if quality > 0 else np.zeros_like(outcomes),
    )


def true_loss(baseline: MatchRecords, candidate: MatchRecords) -> float:
    before, after = (mean_average_precision(one, np.ones((1, len(one))))[0] for one in (baseline, candidate))
    return float(1 - after / before)


@pytest.mark.parametrize("limit", [ONE_PERCENT, LossLimit("relative", 0.5), LossLimit("absolute", 0.01)])
@pytest.mark.parametrize("images", [64, 120, 1000])
def test_what_finds_nothing_is_dropped_at_the_first_look(limit: LossLimit, images: int) -> None:
    policy = EarlyRejection(detector(0.6, images=images), limit)
    first = policy.schedule[0]
    rejection = policy.look(detector(0, images=images).first(first))
    assert rejection is not None
    assert (rejection.images, rejection.look) == (first, 1)
    assert rejection.alpha_spent == pytest.approx(0.01 / len(policy.schedule))
    assert rejection.lower_bound > 0
    assert rejection.loss > limit.value
    if limit.kind == "relative":
        assert rejection.loss == pytest.approx(1)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    alpha=st.floats(1e-6, 0.49),
    kind=st.sampled_from(["relative", "absolute"]),
    limit=st.floats(0, 0.5),
)
def test_an_identical_candidate_and_a_better_one_are_never_dropped(
    seed: int, alpha: float, kind: str, limit: float
) -> None:
    baseline = detector(0.5, seed, images=64)
    policy = EarlyRejection(baseline, LossLimit(kind, limit), alpha)
    for images in policy.schedule:
        assert policy.look(baseline.first(images)) is None
        assert policy.look(detector(0.7, seed, images=64).first(images)) is None


def test_a_clear_loss_is_dropped_and_told_in_the_unit_of_the_limit() -> None:
    baseline, candidate = detector(0.6, images=700), detector(0.4, images=700)
    whole = mean_average_precision(baseline, np.ones((1, 700)))[0]
    loss = true_loss(baseline, candidate)
    relative = EarlyRejection(baseline, LossLimit("relative", 0.05)).look(candidate.first(300))
    absolute = EarlyRejection(baseline, LossLimit("absolute", 0.05 * whole)).look(candidate.first(300))
    assert relative is not None
    assert absolute is not None
    assert relative.loss == pytest.approx(loss, rel=0.3)
    assert 0 < relative.lower_bound < (loss - 0.05) * whole
    assert (absolute.loss, absolute.lower_bound) == pytest.approx((relative.loss * whole, relative.lower_bound))
    assert (relative.look, relative.images, relative.alpha_spent) == (2, 300, 0.01)


def test_the_bound_is_the_stated_one_and_sharpens_as_the_set_is_used_up() -> None:
    baseline, candidate = detector(0.6), detector(0.4)
    bounds = []
    for images in (40, 80, 119):
        policy = EarlyRejection(baseline, LossLimit("relative", 0.0), alpha=0.02, looks=(images,))
        before, after = paired_resamples(baseline, candidate.first(images), RESAMPLES, seed=0)
        rejection = policy.decide(images, before, after)
        assert rejection == policy.look(candidate.first(images))
        assert rejection is not None
        error = (before - after)[1:].std(ddof=1)
        allowance = {40: 2.5, 80: 1.25, 119: 1.0}[images]
        expected = before[0] - after[0] - (NormalDist().inv_cdf(0.98) + allowance) * error
        assert rejection.lower_bound == pytest.approx(expected)
        bounds.append(before[0] - after[0] - rejection.lower_bound)
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[-1] < 0.2 * bounds[0]


@pytest.mark.parametrize("qualities", [(0.6, 0.55), (0.6, 0.4), (0.5, 0.48)])
def test_candidates_at_the_limit_are_dropped_no_oftener_than_stated(qualities: tuple[float, float]) -> None:
    baseline, candidate = (detector(quality, seed=5) for quality in qualities)
    limit = LossLimit("relative", true_loss(baseline, candidate))
    dropped, alpha, orders = 0, 0.05, 40
    for seed in range(orders):
        order = np.random.default_rng(seed).permutation(IMAGES)
        policy = EarlyRejection(baseline.take(order), limit, alpha, seed=seed)
        dropped += any(policy.look(candidate.take(order[:images])) is not None for images in policy.schedule)
    assert dropped <= alpha * orders


def test_a_seed_decides_alone() -> None:
    baseline, candidate = detector(0.6), detector(0.2)
    looks = [EarlyRejection(baseline, ONE_PERCENT, seed=seed).look(candidate.first(60)) for seed in (1, 1, 2)]
    assert looks[0] == looks[1] != looks[2]


@pytest.mark.parametrize(
    ("images", "looks"),
    [
        (20, ()),
        (32, (16,)),
        (64, (16, 32)),
        (206, (51, 103)),
        (300, (75, 150)),
        (599, (149, 299)),
        (600, (100, 300)),
        (1600, (100, 300, 800)),
        (5000, (100, 300, 800, 2000)),
    ],
)
def test_when_to_look(images: int, looks: tuple[int, ...]) -> None:
    assert default_looks(images) == looks


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"alpha": 0.5}, "alpha is 0.5"),
        ({"looks": (0, 50)}, r"looks are \[0, 50\]"),
        ({"looks": (50, 50)}, "expected rising"),
        ({"looks": (50, 120)}, "below the 120 of the set"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        EarlyRejection(detector(0.5), ONE_PERCENT, **changes)


def test_records_that_do_not_belong_together_are_refused() -> None:
    policy = EarlyRejection(detector(0.5), ONE_PERCENT)
    with pytest.raises(EvaluationError, match=r"31 images are not among the looks \[30, 60\]"):
        policy.look(detector(0.5).first(31))
    with pytest.raises(EvaluationError, match="not of the same images in the same order"):
        policy.look(detector(0.5).take(np.arange(30)[::-1]))
    with pytest.raises(EvaluationError, match="records of 30 images were given for 120"):
        loss_interval(detector(0.5), detector(0.5).first(30), "relative")


def test_a_baseline_that_finds_nothing_drops_nobody() -> None:
    nothing = detector(0)
    for kind in ("relative", "absolute"):
        assert EarlyRejection(nothing, LossLimit(kind, 0.01)).look(nothing.first(30)) is None
    with pytest.raises(EvaluationError, match="the baseline's mAP is 0"):
        loss_interval(nothing, nothing, "relative")
    assert loss_interval(nothing, nothing, "absolute").high == 0


@pytest.mark.parametrize("kind", ["relative", "absolute"])
def test_the_interval_holds_the_loss_and_widens_with_confidence(kind: str) -> None:
    baseline, candidate = detector(0.6), detector(0.5)
    narrow = loss_interval(baseline, candidate, kind, confidence=0.5)
    wide = loss_interval(baseline, candidate, kind, confidence=0.95)
    unit = 1.0 if kind == "relative" else mean_average_precision(baseline, np.ones((1, IMAGES)))[0]
    assert wide.loss == narrow.loss == pytest.approx(true_loss(baseline, candidate) * unit)
    assert wide.low < narrow.low < wide.loss < narrow.high < wide.high
    assert loss_interval(baseline, candidate, kind) == wide
    same = loss_interval(baseline, baseline, kind)
    assert (same.loss, same.low, same.high) == (0, 0, 0)


def test_intervals_hold_the_loss_of_the_population_about_as_often_as_they_say() -> None:
    baseline, candidate = detector(0.6, images=600), detector(0.5, images=600)
    loss = true_loss(baseline, candidate)
    orders = np.random.default_rng(3).permutation(600).reshape(10, 60)
    intervals = [loss_interval(baseline.take(order), candidate.take(order), "relative") for order in orders]
    assert sum(one.low <= loss <= one.high for one in intervals) >= 8


@pytest.mark.parametrize("kind", ["relative", "absolute"])
def test_a_look_tells_the_loss_that_it_decides_by(kind: Literal["relative", "absolute"]) -> None:
    baseline, candidate = detector(0.6, images=600), detector(0.3, images=600)
    policy = EarlyRejection(baseline, LossLimit(kind, 0.01))
    told: list[LossInterval] = []
    rejection = policy.look(candidate.first(100), told.append)
    assert rejection == policy.look(candidate.first(100))
    assert rejection is not None
    (interval,) = told
    assert interval.loss == pytest.approx(rejection.loss)
    assert 0 < interval.low < interval.loss < interval.high
    assert interval.confidence == 0.95
