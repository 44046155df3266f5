"""May this graph be accepted? Numbers in, verdict out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from tuner.config.tuning import AccuracyCriterion, ExitPolicy
from tuner.errors import EvaluationError
from tuner.trial import CompletedTrial, Measurement, Trial


class Status(StrEnum):
    """How a run ended."""

    ACCEPTED = "accepted"
    BEST_EFFORT = "best_effort"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the search should stop, and why."""

    stop: bool
    reason: str


def relative_loss(baseline: float, accuracy: float, *, higher_is_better: bool = True) -> float:
    """(baseline - accuracy) / |baseline|, with the sign turned where lower is better; negative is a gain.

    Raises EvaluationError for a baseline of zero, of which nothing can be a share.
    """
    if baseline == 0:
        raise EvaluationError("the baseline's accuracy is 0: a relative loss has no meaning; check model and data set")
    return _loss(baseline, accuracy, higher_is_better=higher_is_better) / abs(baseline)


def share_lost(criterion: AccuracyCriterion, baseline: Measurement, best: CompletedTrial | None) -> float | None:
    """The relative loss of `best`, whatever the criterion counts; None without one, or for a baseline of zero."""
    if best is None or baseline.accuracy == 0:
        return None
    return relative_loss(baseline.accuracy, best.measurement.accuracy, higher_is_better=criterion.higher_is_better)


def loss(criterion: AccuracyCriterion, baseline: Measurement, measurement: Measurement) -> float:
    """What a graph loses, as the criterion counts: a share of the baseline, or in the metric's own unit."""
    better = criterion.higher_is_better
    if criterion.kind == "relative":
        return relative_loss(baseline.accuracy, measurement.accuracy, higher_is_better=better)
    return _loss(baseline.accuracy, measurement.accuracy, higher_is_better=better)


def passes(criterion: AccuracyCriterion, baseline: Measurement, measurement: Measurement) -> bool:
    """Whether a measured graph loses no more than the criterion allows."""
    lost = loss(criterion, baseline, measurement)
    # A loss of exactly the limit passes, whichever way its last bit was rounded.
    return lost <= criterion.limit or math.isclose(lost, criterion.limit, rel_tol=1e-9)


def best_trial(criterion: AccuracyCriterion, baseline: Measurement, trials: Sequence[Trial]) -> CompletedTrial | None:
    """The fastest trial that passes; where none does, the one that loses least; None where none was completed."""
    completed = [trial for trial in trials if isinstance(trial, CompletedTrial)]
    passing = [trial for trial in completed if passes(criterion, baseline, trial.measurement)]
    if passing:
        return min(passing, key=lambda trial: trial.measurement.latency_ms)
    sign = 1 if criterion.higher_is_better else -1
    return max(completed, key=lambda trial: sign * trial.measurement.accuracy, default=None)


def outcome(
    criterion: AccuracyCriterion, baseline: Measurement, best: CompletedTrial | None, *, interrupted: bool
) -> Status:
    """How a run ended that found `best`."""
    if best is None:
        return Status.FAILED
    if interrupted:
        return Status.INTERRUPTED
    return Status.ACCEPTED if passes(criterion, baseline, best.measurement) else Status.BEST_EFFORT


def judge(
    criterion: AccuracyCriterion,
    policy: ExitPolicy,
    baseline: Measurement,
    trials: Sequence[Trial],
    search_s: float,
) -> Verdict:
    """Whether to go on after `trials`. search_s: wall time since the first trial began, earlier sessions included."""
    found = any(
        isinstance(trial, CompletedTrial) and passes(criterion, baseline, trial.measurement) for trial in trials
    )
    if found and policy.timeout_s == 0:
        return Verdict(True, "the first plan that meets the criterion was found")
    if policy.timeout_s and search_s >= policy.timeout_s:
        return Verdict(True, f"the time limit of {policy.timeout_s:g} s is reached")
    if len(trials) >= policy.max_trials:
        return Verdict(True, f"the limit of {policy.max_trials} trials is reached")
    return Verdict(False, "the search goes on")


def _loss(baseline: float, accuracy: float, *, higher_is_better: bool) -> float:
    return baseline - accuracy if higher_is_better else accuracy - baseline
