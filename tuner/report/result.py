"""The outcome of a run as a value, and as `result.json`, the interface to other programs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tuner.criterion import Status
from tuner.precision import FP32
from tuner.progress import Clock
from tuner.trial import CompletedTrial, Confirmation, FailedTrial, Measurement, RejectedTrial, Trial

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The float model of a run. inputs, outputs: tensor names."""

    path: Path
    sha256: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DatasetFacts:
    """The evaluation set of a run. sha256: of its content, or the name of the eval_func that keeps its own data.

    labels: annotations, or model, where mAP is agreement with the float model's own detections.
    """

    sha256: str
    images: int
    labels: str = "annotations"


@dataclass(frozen=True, slots=True)
class CriterionFacts:
    """The criterion of a run. kind: relative or absolute; limit: a share, or in the metric's own unit."""

    kind: str
    limit: float
    higher_is_better: bool


@dataclass(frozen=True, slots=True)
class StageSeconds:
    """Wall time of each stage of this session, in seconds; accepted: until the first plan that passes, None without."""

    total: float = 0.0
    load: float = 0.0
    calibrate: float = 0.0
    baseline: float = 0.0
    sensitivity: float = 0.0
    timing: float = 0.0
    quantize: float = 0.0
    evaluate: float = 0.0
    accepted: float | None = None

    @classmethod
    def of(cls, clock: Clock, *, quantize_s: float, evaluate_s: float) -> "StageSeconds":
        """What a clock has by now; making and measuring graphs is not a stage of its own."""
        stages = ("load", "calibrate", "baseline", "sensitivity", "timing")
        spent = {stage: clock.seconds.get(stage, 0.0) for stage in stages}
        accepted = clock.seconds.get("accepted")
        return cls(total=clock.total_s, **spent, quantize=quantize_s, evaluate=evaluate_s, accepted=accepted)


@dataclass(frozen=True)
class TuningResult:
    """Everything that a run found.

    best: the fastest accepted trial, or the best effort, or None where no trial was completed.
    relative_loss: of `best`; None without it, or where the baseline is zero. output_model: where `best` is written.
    trials: all of them, earlier sessions included. calibrations: how often ranges were collected in this session.
    refused: op -> why it stayed float whatever the plan said. rewritten: what else differs between the float model and
    the graphs of the trials, and what was left as it is, with the reason. rewritten_ms: median latency of the float
    model with that alone; None where nothing was rewritten, or timed. pareto_front: the trials than which none loses
    less and is faster too, by the latencies of the trials. loss_interval: between which bounds the loss would lie on 95
    of 100 other sets of as many images, by the bootstrap; None where that is not known. confirmation: of `best`, on
    images kept from the search; None without.
    """

    status: Status
    reason: str
    model: ModelFacts
    dataset: DatasetFacts
    criterion: CriterionFacts
    baseline: Measurement
    best: CompletedTrial | None
    relative_loss: float | None
    output_model: Path
    trials: Sequence[Trial]
    calibrations: int
    seconds: StageSeconds
    refused: Mapping[str, str]
    rewritten: Sequence[str] = ()
    rewritten_ms: float | None = None
    pareto_front: Sequence[CompletedTrial] = ()
    loss_interval: tuple[float, float] | None = None
    confirmation: Confirmation | None = None

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from tuner.report.notebook import result_html  # noqa: PLC0415 - it imports this module

        return result_html(self)


def still_in_float(reasons: Mapping[str, str], best: CompletedTrial | None) -> dict[str, str]:
    """Those of the operators kept from int8 that are float in what is handed over, with why."""
    return {op: why for op, why in reasons.items() if best is None or best.applied[op] == FP32}


def result_json(result: TuningResult) -> dict[str, Any]:
    """The object that `result.json` holds: finite numbers, strings, lists and objects, whatever was measured.

    accuracy is null where it was not finite, relative_loss also where the baseline is zero, best where no trial was
    completed. Of the best trial, ops counts what the graph really holds and plan_sha256 is of the plan that was asked
    for, which plan.yaml pins. images_evaluated counts the images of the trials, those of the baseline apart. A graph
    that several plans made was measured once, and counts once.
    """
    completed = {trial.graph_sha256: trial.measurement for trial in result.trials if isinstance(trial, CompletedTrial)}
    rejected = {trial.graph_sha256: trial.rejection for trial in result.trials if isinstance(trial, RejectedTrial)}
    table = {
        "schema": SCHEMA,
        "status": result.status.value,
        "reason": result.reason,
        "model": {**asdict(result.model), "path": str(result.model.path)},
        "dataset": asdict(result.dataset),
        "criterion": asdict(result.criterion),
        "baseline": _measured(result.baseline),
        "best": None if result.best is None else _best(result.best, result),
        "trials": len(result.trials),
        "full_evaluations": len(completed),
        "rejected_early": len(rejected),
        "images_evaluated": sum(found.images for found in completed.values())
        + sum(found.images for found in rejected.values()),
        "calibrations": result.calibrations,
        "seconds": asdict(result.seconds),
        "failed_trials": [
            {"number": trial.number, "cause": trial.cause} for trial in result.trials if isinstance(trial, FailedTrial)
        ],
        "pareto_front": [
            {
                "trial": trial.number,
                "idea": trial.proposal.idea,
                "accuracy": trial.measurement.accuracy,
                "latency_ms": trial.measurement.latency_ms,
            }
            for trial in result.pareto_front
        ],
        "refused_ops": dict(result.refused),
        "rewritten": {"notes": list(result.rewritten), "float_latency_ms": result.rewritten_ms},
    }
    shown: dict[str, Any] = finite(table)
    return shown


def finite(value: Any) -> Any:
    """`value` with null in the place of numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _measured(measurement: Measurement) -> dict[str, Any]:
    return {
        "accuracy": measurement.accuracy,
        "latency_ms": measurement.latency_ms,
        "latency_p90_ms": measurement.latency_p90_ms,
        "size_bytes": measurement.size_bytes,
        "images": measurement.images,
        "metrics": dict(measurement.metrics),
    }


def _best(best: CompletedTrial, result: TuningResult) -> dict[str, Any]:
    return {
        **_measured(best.measurement),
        "relative_loss": result.relative_loss,
        "loss_interval_95": result.loss_interval,
        "confirmation": None if result.confirmation is None else asdict(result.confirmation),
        "ops": {dtype.value: count for dtype, count in best.applied.count().items()},
        "plan_sha256": best.proposal.plan.sha256,
        "graph_sha256": best.graph_sha256,
        "trial": best.number,
        "output_model": str(result.output_model),
    }
