"""One trial: the plan that was asked for, the plan read back from the graph, and what was measured."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from tuner.precision import PrecisionPlan


@dataclass(frozen=True, slots=True)
class Measurement:
    """A finished evaluation of one graph. It exists only when every image was evaluated.

    accuracy: the criterion's metric as a fraction (mAP 0.231, not 23.1).
    metrics: every figure by name; the twelve COCO figures for a detection metric.
    images: how many images it rests on; 0 where a user's eval_func does not say.
    latency_ms, latency_p90_ms: median and 90th percentile of one batch-1 run. size_bytes: of the frozen graph.
    elapsed_s: wall time of the evaluation.
    """

    accuracy: float
    images: int
    latency_ms: float
    latency_p90_ms: float
    size_bytes: int
    elapsed_s: float
    metrics: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The measurement as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Measurement":
        """Read `to_json` back."""
        return cls(**value)


@dataclass(frozen=True, slots=True)
class CompletedTrial:
    """A plan that became a graph and was evaluated in full.

    requested: what the search asked for. applied: what the graph really holds, read back from its nodes.
    calibration_images: how many images its ranges rest on. quantize_s: wall time of making the graph.
    graph_sha256: of the serialised graph; two plans with one graph are one trial.
    """

    number: int
    calibration_images: int
    requested: PrecisionPlan
    applied: PrecisionPlan
    graph_sha256: str
    measurement: Measurement
    quantize_s: float


@dataclass(frozen=True, slots=True)
class FailedTrial:
    """A plan that could not be lowered, run or evaluated; `cause` is the error in one line."""

    number: int
    calibration_images: int
    requested: PrecisionPlan
    cause: str


Trial = CompletedTrial | FailedTrial
