"""What the trials of a run lost, in the criterion's terms: what several parts of the report show."""

from dataclasses import dataclass

from tuner.criterion import cost, loss, pareto_front, passes
from tuner.evaluation.early_rejection import loss_interval
from tuner.precision import Dtype
from tuner.run_record import RunRecord
from tuner.trial import CompletedTrial, FailedTrial, Measurement, RejectedTrial, Trial

# Intervals take seconds each on large sets: of so many graphs, where there are at most so many images.
MOST_INTERVALS, MOST_IMAGES = 12, 1000


@dataclass(frozen=True, slots=True)
class Judged:
    """A trial as the criterion sees it.

    lost: None of a trial that failed; of one that was rejected early, the estimate. passes: None where it failed.
    interval: between which bounds the loss would lie on 95 of 100 other sets of images; None where it is not known.
    """

    trial: Trial
    lost: float | None
    passes: bool | None
    interval: tuple[float, float] | None = None

    @property
    def measurement(self) -> Measurement | None:
        """Of a trial that was measured in full."""
        return self.trial.measurement if isinstance(self.trial, CompletedTrial) else None

    @property
    def verdict(self) -> str:
        """What became of it, in words."""
        if isinstance(self.trial, FailedTrial):
            return f"failed: {self.trial.cause}"
        if isinstance(self.trial, RejectedTrial):
            return f"rejected early after {self.trial.rejection.images} images"
        return "passes" if self.passes else "loses too much"


def judged_trials(run: RunRecord) -> list[Judged]:
    """All trials of a run; none where the float model was not measured."""
    return [] if run.baseline is None else [_judged(run, run.baseline, trial) for trial in run.trials]


def with_intervals(run: RunRecord, judged: list[Judged]) -> list[Judged]:
    """The same, with the intervals of the best graphs whose matches were kept."""
    baseline = run.baseline
    before = None if baseline is None or not run.facts.model_sha256 else run.matches(run.facts.model_sha256)
    if baseline is None or before is None:
        return judged
    criterion = run.config.tuning.accuracy_criterion
    front = pareto_front(criterion, baseline, run.trials)
    passing = sorted(
        (one.trial for one in judged if one.passes and isinstance(one.trial, CompletedTrial)),
        key=lambda trial: cost(run.config.tuning.weights, criterion, baseline, trial.measurement),
    )
    few = 1 if len(before) > MOST_IMAGES else MOST_INTERVALS
    chosen = {trial.number for trial in [*([run.best] if run.best else []), *front, *passing][:few]}
    found = []
    for one in judged:
        after = (
            run.matches(one.trial.graph_sha256)
            if one.trial.number in chosen and isinstance(one.trial, CompletedTrial)
            else None
        )
        bounds = None if after is None else loss_interval(before, after, criterion.kind)
        interval = None if bounds is None else (bounds.low, bounds.high)
        found.append(Judged(one.trial, one.lost, one.passes, interval))
    return found


def loss_text(run: RunRecord, lost: float | None) -> str:
    """A loss as the criterion counts it."""
    if lost is None:
        return ""
    return f"{lost:.2%}" if run.config.tuning.accuracy_criterion.kind == "relative" else f"{lost:.4f}"


def about(trial: Trial) -> str:
    """What a trial is: its number from 1, its idea, and how many operators are in which format."""
    return f"trial {trial.number + 1}: {trial.proposal.idea or 'a plan'} ({formats(trial)})"


def formats(trial: Trial) -> str:
    """How many operators a trial's graph has in each format; of a trial that failed, its plan's."""
    plan = trial.proposal.plan if isinstance(trial, FailedTrial) else trial.applied
    return ", ".join(f"{count} {dtype.value}" for dtype, count in plan.count().items() if count)


def dominant(trial: CompletedTrial) -> Dtype:
    """The format of most operators that are not float; float where all are."""
    counts = trial.applied.count()
    return (
        max((Dtype.INT8, Dtype.BF16), key=lambda dtype: counts[dtype])
        if counts[Dtype.FP32] < len(trial.applied)
        else Dtype.FP32
    )


def _judged(run: RunRecord, baseline: Measurement, trial: Trial) -> Judged:
    criterion = run.config.tuning.accuracy_criterion
    if isinstance(trial, CompletedTrial):
        measured = trial.measurement
        return Judged(trial, loss(criterion, baseline, measured), passes(criterion, baseline, measured))
    return Judged(trial, trial.rejection.loss, False) if isinstance(trial, RejectedTrial) else Judged(trial, None, None)
