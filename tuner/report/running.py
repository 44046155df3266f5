"""What is told of a search while it runs: each trial as an event of the progress, and to the user's callbacks."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from time import perf_counter

from tuner.config.tuning import AccuracyCriterion, TuningSettings
from tuner.criterion import best_trial, loss, passes
from tuner.precision import OpPrecision
from tuner.progress import Ending, Progress, SearchBegan, SearchEnded, TrialBegan, TrialEnded
from tuner.trial import CompletedTrial, FailedTrial, Measurement, Proposal, RejectedTrial, Trial


class StopTuning(Exception):
    """Raised by a callback to end the search; its text becomes part of the result's reason."""


@dataclass(frozen=True)
class RunningResult:
    """What a run has found so far.

    baseline: of the float model. trials: all of them in order, earlier sessions included.
    best: the trial of least cost that passes, or where none does the one that loses least; None where no trial was
    completed. passes: whether `best` does.
    """

    criterion: AccuracyCriterion
    baseline: Measurement
    trials: Sequence[Trial]
    best: CompletedTrial | None
    passes: bool

    def loss(self, trial: Trial) -> float | None:
        """What a trial loses, as the criterion counts; an estimate where it was dropped early, None where it failed."""
        if isinstance(trial, CompletedTrial):
            return loss(self.criterion, self.baseline, trial.measurement)
        return trial.rejection.loss if isinstance(trial, RejectedTrial) else None


TrialCallback = Callable[[Trial, RunningResult], object]


@dataclass
class TrialWatcher:
    """Tells of the trials of a run. trials: of earlier sessions; those of this one are added.

    callbacks: each is called with a trial once that is recorded. stop_reason: why the search is to end, when one of
    them raised StopTuning; whatever else they raise goes on to whoever started the run.
    """

    settings: TuningSettings
    baseline: Measurement
    trials: list[Trial]
    progress: Progress
    callbacks: Sequence[TrialCallback] = ()
    stop_reason: str = ""
    _trial_began: float = field(default=0.0, repr=False)

    @contextmanager
    def searching(self, earlier_s: float) -> Iterator[None]:
        """Tell that a search begins, and that it is over. earlier_s: that earlier sessions searched."""
        criterion, policy = self.settings.accuracy_criterion, self.settings.exit_policy
        self.progress.event(
            SearchBegan(
                limit=criterion.limit,
                relative=criterion.kind == "relative",
                images=self.baseline.images,
                most_trials=policy.max_trials,
                timeout_s=policy.timeout_s,
                earlier_trials=len(self.trials),
                earlier_s=earlier_s,
                evaluation_s=self.baseline.elapsed_s,
            )
        )
        try:
            yield
        finally:
            self.progress.event(SearchEnded())

    def began(self, number: int, proposal: Proposal) -> None:
        """A plan is tried."""
        best = self._running().best
        changes = ""
        if best is not None:
            changed = describe_changes(proposal, best.proposal) or "nothing"
            changes = f"as trial {self.trials.index(best) + 1}, but {changed}"
        self.progress.event(TrialBegan(number, len(self.trials) + 1, proposal.idea, changes))
        self._trial_began = perf_counter()

    def ended(self, trial: Trial) -> None:
        """A trial is recorded: tell it, and call the callbacks."""
        self.trials.append(trial)
        running = self._running()
        self.progress.event(self._ending(trial, running, perf_counter() - self._trial_began))
        for callback in self.callbacks:
            try:
                callback(trial, running)
            except StopTuning as stop:
                self.stop_reason = ": ".join(filter(None, ("stopped by a callback", str(stop))))

    def _running(self) -> RunningResult:
        criterion = self.settings.accuracy_criterion
        best = best_trial(self.settings.weights, criterion, self.baseline, self.trials)
        accepted = best is not None and passes(criterion, self.baseline, best.measurement)
        return RunningResult(criterion, self.baseline, tuple(self.trials), best, accepted)

    def _ending(self, trial: Trial, running: RunningResult, seconds: float) -> TrialEnded:
        def told(verdict: Ending, **known: object) -> TrialEnded:
            return TrialEnded(trial.number, len(self.trials), trial.proposal.idea, verdict, seconds, **known)  # type: ignore[arg-type]

        if isinstance(trial, FailedTrial):
            return told("failed", cause=trial.cause)
        ops = {dtype.value: count for dtype, count in trial.applied.count().items()}
        lost = running.loss(trial)
        if isinstance(trial, RejectedTrial):
            return told("rejected", loss=lost, images=trial.rejection.images, ops=ops)
        found = trial.measurement
        return told(
            "accepted" if passes(running.criterion, self.baseline, found) else "over_limit",
            loss=lost,
            accuracy=found.accuracy,
            latency_ms=found.latency_ms,
            images=found.images,
            ops=ops,
        )


def describe_changes(proposal: Proposal, best: Proposal) -> str:
    """What a proposal changes against another, as "3 ops int8 -> bf16, calibration images 100 -> 50"."""
    counts = Counter(
        change
        for op, decision in proposal.plan.items()
        if op in best.plan
        for change in _changes(best.plan[op], decision)
    )
    told = [f"{count} op{'' if count == 1 else 's'} {change}" for change, count in counts.most_common()]
    if proposal.calibration_images != best.calibration_images:
        told.append(f"calibration images {best.calibration_images} -> {proposal.calibration_images}")
    told += [f"+ {one.value}" for one in proposal.corrections if one not in best.corrections]
    told += [f"- {one.value}" for one in best.corrections if one not in proposal.corrections]
    return ", ".join(told)


def _changes(before: OpPrecision, after: OpPrecision) -> Iterator[str]:
    """Where the dtype changes, nothing else of a decision has a meaning."""
    names = ["dtype"] if before.dtype is not after.dtype else [one.name for one in fields(OpPrecision)]
    for name in names:
        old, new = getattr(before, name), getattr(after, name)
        if old != new:
            yield f"{old.value} -> {new.value}"
