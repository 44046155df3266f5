"""What was found, in one line for the person who waits."""

from collections.abc import Sequence

from tuner.config import AccuracyCriterion
from tuner.criterion import loss, passes
from tuner.trial import FailedTrial, Measurement, Trial


def describe_endpoints(
    inputs: Sequence[str], outputs: Sequence[str], int8_ops: int, float_ops: int, rewritten: Sequence[str]
) -> str:
    """What a model reads and gives, how many of its convolutions can be int8, and what else was rewritten."""
    convolutions = f"{int8_ops} convolutions can be int8" + (f", {float_ops} cannot" if float_ops else "")
    return "; ".join([f"{', '.join(inputs)} -> {', '.join(outputs)}", convolutions, *rewritten])


def describe_measurement(measurement: Measurement) -> str:
    """Accuracy and latency."""
    return f"accuracy {measurement.accuracy:.4f}, {measurement.latency_ms:.1f} ms"


def describe_trial(trial: Trial, criterion: AccuracyCriterion, baseline: Measurement) -> str:
    """What a trial kept in float, what it lost, and whether that is allowed."""
    if isinstance(trial, FailedTrial):
        return f"failed: {trial.cause}"
    int8_ops = sum(precision.dtype == "int8" for precision in trial.applied.values())
    lost = loss(criterion, baseline, trial.measurement)
    verdict = "accepted" if passes(criterion, baseline, trial.measurement) else "loses too much"
    share = f"{lost:.2%}" if criterion.kind == "relative" else f"{lost:.4f}"
    return (
        f"{int8_ops} of {len(trial.applied)} in int8, {describe_measurement(trial.measurement)}, "
        f"loss {share}: {verdict}"
    )
