"""The outcome of a run as a value, and as `result.json`, the interface to other programs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tuner.criterion import Status
from tuner.trial import CompletedTrial, Measurement, Trial

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
    """The evaluation set of a run. sha256: of its content, empty where an eval_func keeps its own data."""

    sha256: str
    images: int


@dataclass(frozen=True, slots=True)
class CriterionFacts:
    """The criterion of a run. kind: relative or absolute; limit: a share, or in the metric's own unit."""

    kind: str
    limit: float
    higher_is_better: bool


@dataclass(frozen=True, slots=True)
class StageSeconds:
    """Wall time of each stage of this session, in seconds."""

    total: float = 0.0
    load: float = 0.0
    calibrate: float = 0.0
    baseline: float = 0.0
    sensitivity: float = 0.0
    quantize: float = 0.0
    evaluate: float = 0.0


@dataclass(frozen=True)
class TuningResult:
    """Everything that a run found.

    best: the fastest accepted trial, or the best effort, or None where no trial was completed.
    compared: latency of the float model and of `best`, measured in turns at the end: (baseline, best).
    refused: op -> why it stayed float whatever the plan said. quantizable: number of ops that plans decide about.
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
