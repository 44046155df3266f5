"""What is told of trials, and what callbacks may do."""

from dataclasses import replace
from typing import Any

import pytest

from tuner.config.tuning import TuningSettings
from tuner.precision import BF16, FP32, INT8, Correction, Granularity, PrecisionPlan, RangeAlgorithm
from tuner.progress import Event, SearchBegan, SearchEnded, Silent, TrialBegan, TrialEnded
from tuner.report.running import RunningResult, StopTuning, TrialWatcher, describe_changes
from tuner.trial import CompletedTrial, FailedTrial, Measurement, Proposal, RejectedTrial, Rejection, Trial

ALL_INT8 = Proposal(PrecisionPlan({"a": INT8, "b": INT8, "c": FP32}), 100, idea="int8")
BASELINE = Measurement(accuracy=0.5, images=40, latency_ms=8.0, latency_p90_ms=9.0, size_bytes=100, elapsed_s=3.0)


def completed(number: int, accuracy: float, latency_ms: float = 4.0, plan: PrecisionPlan | None = None) -> Trial:
    measured = replace(BASELINE, accuracy=accuracy, latency_ms=latency_ms)
    proposal = ALL_INT8 if plan is None else replace(ALL_INT8, plan=plan)
    return CompletedTrial(number, proposal, proposal.plan, f"{number}", measured, 0.1)


class Events(Silent):
    def __init__(self) -> None:
        self.told: list[Event] = []

    def event(self, event: Event) -> None:
        self.told.append(event)


def watcher(*callbacks: Any, trials: tuple[Trial, ...] = ()) -> tuple[TrialWatcher, list[Any]]:
    settings = TuningSettings.model_validate({"accuracy_criterion": {"relative": 0.01}, "exit_policy": {"timeout": 60}})
    events = Events()
    return TrialWatcher(settings, BASELINE, list(trials), events, callbacks), events.told


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, ""),
        ({"plan": {"a": BF16, "b": BF16, "c": FP32}}, "2 ops int8 -> bf16"),
        ({"plan": {"a": BF16, "b": INT8, "c": INT8}}, "1 op int8 -> bf16, 1 op fp32 -> int8"),
        (
            {
                "plan": {
                    "a": replace(INT8, activation_algorithm=RangeAlgorithm.KL),
                    "b": replace(INT8, weight_granularity=Granularity.PER_TENSOR),
                    "c": FP32,
                }
            },
            "1 op minmax -> kl, 1 op per_channel -> per_tensor",
        ),
        (
            {"calibration_images": 50, "corrections": (Correction.BIAS,)},
            "calibration images 100 -> 50, + bias_correction",
        ),
    ],
)
def test_changes(changed: dict[str, Any], expected: str) -> None:
    if "plan" in changed:
        changed = {**changed, "plan": PrecisionPlan(changed["plan"])}
    proposal = replace(ALL_INT8, **changed)
    assert describe_changes(proposal, ALL_INT8) == expected
    if proposal.corrections:
        assert describe_changes(ALL_INT8, proposal).endswith("- bias_correction")


def test_a_search_is_told_trial_by_trial() -> None:
    one, told = watcher(trials=(completed(0, 0.45),))
    fallen = PrecisionPlan({"a": BF16, "b": INT8, "c": FP32})
    rejected = RejectedTrial(3, ALL_INT8, ALL_INT8.plan, "x", Rejection(16, 1, 0.08, 0.03, 0.0025, 1.0), 0.1)
    with one.searching(12.5):
        one.began(2, replace(ALL_INT8, plan=fallen, idea="1 of 2 ops out of int8"))
        one.ended(completed(2, 0.499, plan=fallen))
        one.began(3, ALL_INT8)
        one.ended(rejected)
        one.began(4, ALL_INT8)
        one.ended(FailedTrial(4, ALL_INT8, "no kernel"))
    search, began, ended, after, dropped, _, failed, over = told
    assert search == SearchBegan(0.01, True, 40, 100, 60.0, 1, 12.5, 3.0)
    assert began == TrialBegan(2, 2, "1 of 2 ops out of int8", "as trial 1, but 1 op int8 -> bf16")
    assert (ended.verdict, ended.accuracy, ended.images, ended.count) == ("accepted", 0.499, 40, 2)
    assert ended.loss == pytest.approx(0.002) and ended.ops == {"int8": 1, "bf16": 1, "fp32": 1}
    # The trial that passes is the best one now, though an earlier one is as fast.
    assert after.changes == "as trial 2, but 1 op bf16 -> int8"
    assert (dropped.verdict, dropped.loss, dropped.images, dropped.latency_ms) == ("rejected", 0.08, 16, None)
    assert (failed.verdict, failed.cause, failed.loss) == ("failed", "no kernel", None)
    assert over == SearchEnded()
    assert all(event.seconds >= 0 for event in told if isinstance(event, TrialEnded))


def test_callbacks_see_the_trial_and_what_was_found() -> None:
    seen: list[tuple[Trial, RunningResult]] = []
    one, _ = watcher(lambda trial, running: seen.append((trial, running)))
    trials = [completed(0, 0.45), completed(1, 0.499, 6.0), completed(2, 0.498, 5.0)]
    for trial in trials:
        one.began(trial.number, trial.proposal)
        one.ended(trial)
    assert [trial for trial, _ in seen] == trials
    assert [(running.best, running.passes) for _, running in seen] == [
        (trials[0], False),
        (trials[1], True),
        (trials[2], True),
    ]
    assert [running.loss(trial) for trial, running in seen] == pytest.approx([0.1, 0.002, 0.004])
    assert [len(running.trials) for _, running in seen] == [1, 2, 3]
    assert seen[0][1].loss(FailedTrial(9, ALL_INT8, "no")) is None
    assert one.stop_reason == ""


@pytest.mark.parametrize(
    ("stop", "reason"),
    [(StopTuning("fast enough"), "stopped by a callback: fast enough"), (StopTuning(), "stopped by a callback")],
)
def test_a_callback_that_stops_lets_the_others_know(stop: StopTuning, reason: str) -> None:
    def stopping(trial: Trial, running: RunningResult) -> None:
        raise stop

    seen: list[Trial] = []
    one, _ = watcher(stopping, lambda trial, running: seen.append(trial))
    one.began(0, ALL_INT8)
    one.ended(completed(0, 0.5))
    assert one.stop_reason == reason
    assert len(seen) == 1


def test_what_else_a_callback_raises_goes_on() -> None:
    def failing(trial: Trial, running: RunningResult) -> None:
        raise ValueError("mine")

    one, told = watcher(failing)
    with pytest.raises(ValueError, match="mine"), one.searching(0.0):
        one.began(0, ALL_INT8)
        one.ended(completed(0, 0.5))
    assert told[-1] == SearchEnded()
