"""May this graph be accepted, and which is the best of those that may? Numbers in, verdict out."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from tuner.config.tuning import AccuracyCriterion, ExitPolicy, Objective
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
    if best is None or 0 in _watched(baseline):
        return None
    return _worst_share(criterion, baseline, best.measurement)


def loss(criterion: AccuracyCriterion, baseline: Measurement, measurement: Measurement) -> float:
    """What a graph loses, as the criterion counts: a share of the baseline, or in the metric's own unit.

    Of several figures that are watched, what the worst one loses.
    """
    if criterion.kind == "relative":
        return _worst_share(criterion, baseline, measurement)
    pairs = zip(_watched(baseline), _watched(measurement), strict=True)
    return max(_loss(before, after, higher_is_better=criterion.higher_is_better) for before, after in pairs)


def passes(criterion: AccuracyCriterion, baseline: Measurement, measurement: Measurement) -> bool:
    """Whether a measured graph loses no more than the criterion allows."""
    lost = loss(criterion, baseline, measurement)
    # A loss of exactly the limit passes, whichever way its last bit was rounded.
    return lost <= criterion.limit or math.isclose(lost, criterion.limit, rel_tol=1e-9)


def cost(
    weights: Mapping[Objective, float], criterion: AccuracyCriterion, baseline: Measurement, measurement: Measurement
) -> float:
    """What a graph costs: its latency, memory and size as shares of the baseline's, weighted; less is better.

    The share of accuracy is one more than the relative loss. weights: of each objective; they add up to 1.
    """
    shares = {
        Objective.PERFORMANCE: lambda: measurement.latency_ms / baseline.latency_ms,
        Objective.FOOTPRINT: lambda: measurement.memory_bytes / max(baseline.memory_bytes, 1),
        Objective.MODELSIZE: lambda: measurement.size_bytes / baseline.size_bytes,
        Objective.ACCURACY: lambda: 1 + _worst_share(criterion, baseline, measurement),
    }
    return sum(weight * shares[objective]() for objective, weight in weights.items())


def passing_trials(
    weights: Mapping[Objective, float], criterion: AccuracyCriterion, baseline: Measurement, trials: Sequence[Trial]
) -> list[CompletedTrial]:
    """The trials that pass, the one of least cost first."""
    passing = [
        trial
        for trial in trials
        if isinstance(trial, CompletedTrial) and passes(criterion, baseline, trial.measurement)
    ]
    return sorted(passing, key=lambda trial: cost(weights, criterion, baseline, trial.measurement))


def least_loss(criterion: AccuracyCriterion, baseline: Measurement, trials: Sequence[Trial]) -> CompletedTrial | None:
    """The trial that loses least, whether it passes or not; None where none was completed."""
    completed = [trial for trial in trials if isinstance(trial, CompletedTrial)]
    return min(completed, key=lambda trial: loss(criterion, baseline, trial.measurement), default=None)


def best_trial(
    weights: Mapping[Objective, float], criterion: AccuracyCriterion, baseline: Measurement, trials: Sequence[Trial]
) -> CompletedTrial | None:
    """The trial of least cost of those that pass, else the one that loses least; None where none was completed."""
    passing = passing_trials(weights, criterion, baseline, trials)
    return passing[0] if passing else least_loss(criterion, baseline, trials)


def pareto_front(criterion: AccuracyCriterion, baseline: Measurement, trials: Sequence[Trial]) -> list[CompletedTrial]:
    """The trials than which none loses less and is faster too, the fastest first."""
    completed = [trial for trial in trials if isinstance(trial, CompletedTrial)]
    front: list[CompletedTrial] = []
    for trial in sorted(
        completed, key=lambda one: (one.measurement.latency_ms, loss(criterion, baseline, one.measurement))
    ):
        lost = loss(criterion, baseline, trial.measurement)
        if not front or lost < loss(criterion, baseline, front[-1].measurement):
            front.append(trial)
    return front


def outcome(
    criterion: AccuracyCriterion,
    baseline: Measurement,
    best: CompletedTrial | None,
    *,
    interrupted: bool,
    confirmed: bool = True,
) -> Status:
    """How a run ended that found `best`. confirmed: whether it passes on images that were kept from the search too."""
    if best is None:
        return Status.FAILED
    if interrupted:
        return Status.INTERRUPTED
    accepted = confirmed and passes(criterion, baseline, best.measurement)
    return Status.ACCEPTED if accepted else Status.BEST_EFFORT


def judge(policy: ExitPolicy, trials: int, search_s: float) -> Verdict:
    """Whether to go on after so many trials. search_s: wall time since the first began, earlier sessions included."""
    if policy.timeout_s and search_s >= policy.timeout_s:
        return Verdict(True, f"the time limit of {policy.timeout_s:g} s is reached")
    if trials >= policy.max_trials:
        return Verdict(True, f"the limit of {policy.max_trials} trials is reached")
    return Verdict(False, "the search goes on")


def _watched(measurement: Measurement) -> Sequence[float]:
    return list(measurement.watched.values()) or [measurement.accuracy]


def _worst_share(criterion: AccuracyCriterion, baseline: Measurement, measurement: Measurement) -> float:
    pairs = zip(_watched(baseline), _watched(measurement), strict=True)
    return max(relative_loss(before, after, higher_is_better=criterion.higher_is_better) for before, after in pairs)


def _loss(baseline: float, accuracy: float, *, higher_is_better: bool) -> float:
    return baseline - accuracy if higher_is_better else accuracy - baseline
