"""Which graphs are accepted, and when the search ends: tables of numbers."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from tuner.config import AccuracyCriterion, ExitPolicy, Objective
from tuner.criterion import (
    Status,
    best_trial,
    cost,
    judge,
    least_loss,
    loss,
    outcome,
    pareto_front,
    passes,
    passing_trials,
    relative_loss,
    share_lost,
)
from tuner.errors import EvaluationError
from tuner.precision import INT8, PrecisionPlan
from tuner.trial import CompletedTrial, FailedTrial, Measurement, Proposal, RejectedTrial, Rejection, Trial

PLAN = PrecisionPlan({"conv": INT8})
PROPOSAL = Proposal(PLAN, 1)
PERFORMANCE = {Objective.PERFORMANCE: 1.0}


def measured(accuracy: float, latency_ms: float = 1.0) -> Measurement:
    return Measurement(
        accuracy=accuracy, images=4, latency_ms=latency_ms, latency_p90_ms=latency_ms, size_bytes=1, elapsed_s=1.0
    )


def completed(number: int, accuracy: float, latency_ms: float = 1.0) -> CompletedTrial:
    return CompletedTrial(
        number=number,
        proposal=PROPOSAL,
        applied=PLAN,
        graph_sha256=str(number),
        measurement=measured(accuracy, latency_ms),
        quantize_s=1.0,
    )


def failed(number: int) -> FailedTrial:
    return FailedTrial(number=number, proposal=PROPOSAL, cause="no kernel")


def rejected(number: int) -> RejectedTrial:
    return RejectedTrial(number, PROPOSAL, PLAN, str(number), Rejection(10, 1, 0.5, 0.2, 0.001, 1.0), 1.0)


RELATIVE = AccuracyCriterion(relative=0.01)
ABSOLUTE = AccuracyCriterion(absolute=0.01)
LOWER_IS_BETTER = AccuracyCriterion(relative=0.01, higher_is_better=False)
BASELINE = measured(0.50)


@pytest.mark.parametrize(
    ("baseline", "accuracy", "higher_is_better", "expected"),
    [
        (0.50, 0.50, True, 0.0),
        (0.50, 0.45, True, 0.1),
        (0.50, 0.55, True, -0.1),
        (0.50, 0.00, True, 1.0),
        (-0.50, -0.55, True, 0.1),
        (-0.50, -0.45, True, -0.1),
        (0.50, 0.55, False, 0.1),
        (0.50, 0.45, False, -0.1),
        (-0.50, -0.45, False, 0.1),
    ],
)
def test_relative_loss(baseline: float, accuracy: float, higher_is_better: bool, expected: float) -> None:
    found = relative_loss(baseline, accuracy, higher_is_better=higher_is_better)
    assert found == pytest.approx(expected, abs=1e-12)


def test_nothing_is_a_share_of_zero() -> None:
    with pytest.raises(EvaluationError, match="the baseline's accuracy is 0"):
        relative_loss(0.0, 0.1)
    with pytest.raises(EvaluationError, match="the baseline's accuracy is 0"):
        passes(RELATIVE, measured(0.0), measured(0.1))


@pytest.mark.parametrize(
    ("criterion", "baseline", "accuracy", "accepted"),
    [
        (RELATIVE, 0.50, 0.495, True),  # in floats the loss is a little more than 0.01
        (RELATIVE, 0.50, 0.4949, False),
        (RELATIVE, 0.50, 0.51, True),  # better than float is no loss
        (RELATIVE, 0.50, 0.0, False),
        (AccuracyCriterion(relative=0.5), 0.50, 0.25, True),
        (AccuracyCriterion(), 0.50, 0.496, True),  # 0.01 relative where nothing is said
        (AccuracyCriterion(), 0.50, 0.494, False),
        (ABSOLUTE, 0.50, 0.4901, True),
        (ABSOLUTE, 0.50, 0.4899, False),
        (ABSOLUTE, 0.0, 0.0, True),
        (ABSOLUTE, 0.0, -0.02, False),
        (LOWER_IS_BETTER, 0.50, 0.5049, True),
        (LOWER_IS_BETTER, 0.50, 0.5051, False),
        (LOWER_IS_BETTER, 0.50, 0.1, True),
        (AccuracyCriterion(absolute=2.0, higher_is_better=False), 10.0, 12.0, True),
        (AccuracyCriterion(absolute=2.0, higher_is_better=False), 10.0, 12.1, False),
        (RELATIVE, 0.50, float("nan"), False),
        (ABSOLUTE, 0.50, float("nan"), False),
    ],
)
def test_passes(criterion: AccuracyCriterion, baseline: float, accuracy: float, accepted: bool) -> None:
    assert passes(criterion, measured(baseline), measured(accuracy)) is accepted


def test_loss_counts_as_the_criterion_does() -> None:
    assert loss(RELATIVE, BASELINE, measured(0.45)) == pytest.approx(0.1)
    assert loss(ABSOLUTE, BASELINE, measured(0.45)) == pytest.approx(0.05)
    assert loss(LOWER_IS_BETTER, BASELINE, measured(0.45)) == pytest.approx(-0.1)


@pytest.mark.parametrize(
    ("criterion", "trials", "best"),
    [
        (RELATIVE, [], None),
        (RELATIVE, [failed(0)], None),
        (RELATIVE, [completed(0, 0.50, 3.0), completed(1, 0.499, 2.0)], 1),  # the fastest of those that pass
        (RELATIVE, [completed(0, 0.50, 3.0), completed(1, 0.10, 1.0)], 0),  # however fast the others are
        (RELATIVE, [completed(0, 0.10, 1.0), completed(1, 0.40, 9.0), failed(2)], 1),  # else what loses least
        (RELATIVE, [completed(0, 0.50, 2.0), completed(1, 0.51, 2.0)], 0),  # the first of equals
        (LOWER_IS_BETTER, [completed(0, 0.9, 1.0), completed(1, 0.6, 9.0)], 1),
        (LOWER_IS_BETTER, [completed(0, 0.9, 1.0), completed(1, 0.5, 9.0)], 1),
    ],
)
def test_what_is_handed_over(criterion: AccuracyCriterion, trials: Sequence[Trial], best: int | None) -> None:
    found = best_trial(PERFORMANCE, criterion, BASELINE, [*trials, rejected(9)])
    assert (None if found is None else found.number) == best


def test_passing_trials_come_cheapest_first() -> None:
    trials = [completed(0, 0.5, 3.0), completed(1, 0.1, 1.0), completed(2, 0.499, 2.0), completed(3, 0.51, 2.5)]
    assert [trial.number for trial in passing_trials(PERFORMANCE, RELATIVE, BASELINE, trials)] == [2, 3, 0]
    by_accuracy = {Objective.ACCURACY: 1.0}
    assert [trial.number for trial in passing_trials(by_accuracy, RELATIVE, BASELINE, trials)] == [3, 0, 2]


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({Objective.PERFORMANCE: 1.0}, 0.5),
        ({Objective.MODELSIZE: 1.0}, 0.25),
        ({Objective.FOOTPRINT: 1.0}, 0.8),
        ({Objective.ACCURACY: 1.0}, 1.1),
        ({Objective.PERFORMANCE: 0.75, Objective.ACCURACY: 0.25}, 0.65),
    ],
)
def test_cost(weights: dict[Objective, float], expected: float) -> None:
    before = Measurement(0.5, 4, 10.0, 11.0, 400, 1.0, memory_bytes=1000)
    after = Measurement(0.45, 4, 5.0, 6.0, 100, 1.0, memory_bytes=800)
    assert cost(weights, RELATIVE, before, after) == pytest.approx(expected)
    assert cost(weights, RELATIVE, before, before) == pytest.approx(1)


def test_pareto_front() -> None:
    trials = [
        completed(0, 0.50, 4.0),
        completed(1, 0.40, 1.0),
        completed(2, 0.45, 2.0),
        completed(3, 0.44, 3.0),  # slower than 2, and loses more
        completed(4, 0.50, 5.0),  # slower than 0, and loses as much
        failed(5),
        rejected(6),
    ]
    assert [trial.number for trial in pareto_front(RELATIVE, BASELINE, trials)] == [1, 2, 0]
    assert pareto_front(RELATIVE, BASELINE, [failed(0)]) == []


@pytest.mark.parametrize(
    ("best", "interrupted", "status"),
    [
        (completed(0, 0.50), False, Status.ACCEPTED),
        (completed(0, 0.10), False, Status.BEST_EFFORT),
        (completed(0, 0.50), True, Status.INTERRUPTED),
        (None, False, Status.FAILED),
    ],
)
def test_outcome(best: CompletedTrial | None, interrupted: bool, status: Status) -> None:
    assert outcome(RELATIVE, BASELINE, best, interrupted=interrupted) is status


@pytest.mark.parametrize(
    ("timeout", "max_trials", "trials", "search_s", "reason"),
    [
        (0, 3, 0, 0.0, None),
        (0, 3, 2, 1e6, None),  # no timeout: as long as it takes
        (0, 2, 2, 0.0, "the limit of 2 trials is reached"),
        (60, 3, 1, 59.9, None),
        (60, 3, 1, 60.0, "the time limit of 60 s is reached"),
        (60, 1, 1, 1.0, "the limit of 1 trials is reached"),
        (0.5, 3, 0, 0.5, "the time limit of 0.5 s is reached"),
    ],
)
def test_judge(timeout: float, max_trials: int, trials: int, search_s: float, reason: str | None) -> None:
    verdict = judge(ExitPolicy.model_validate({"timeout": timeout, "max_trials": max_trials}), trials, search_s)
    assert (verdict.stop, verdict.reason) == (reason is not None, reason or "the search goes on")


def watching(bbox: float, segm: float) -> Measurement:
    return replace(measured(bbox), watched={"bbox": bbox, "segm": segm})


def test_of_several_figures_the_one_that_loses_most_counts() -> None:
    baseline = watching(0.50, 0.20)
    assert loss(RELATIVE, baseline, watching(0.50, 0.19)) == pytest.approx(0.05)
    assert loss(RELATIVE, baseline, watching(0.45, 0.20)) == pytest.approx(0.1)
    assert loss(ABSOLUTE, baseline, watching(0.48, 0.19)) == pytest.approx(0.02)
    assert passes(RELATIVE, baseline, watching(0.496, 0.199))
    assert not passes(RELATIVE, baseline, watching(0.60, 0.19))
    pairs = [(0.6, 0.1), (0.5, 0.2)]
    trials = [replace(completed(number, 0.5), measurement=watching(*pair)) for number, pair in enumerate(pairs)]
    best = least_loss(RELATIVE, baseline, trials)
    assert best is trials[1]
    assert share_lost(RELATIVE, baseline, trials[0]) == pytest.approx(0.5)
    assert share_lost(RELATIVE, watching(0.5, 0.0), trials[0]) is None
