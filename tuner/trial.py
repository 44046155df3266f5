"""One trial: the plan that was asked for, the plan read back from the graph, and what was measured."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from tuner.precision import Correction, PrecisionPlan


@dataclass(frozen=True, slots=True)
class Proposal:
    """A plan to try, with ranges from the first `calibration_images` images, on weights with `corrections` made.

    parameters: what the strategy chose to come to this plan, by name; `idea` says it in words. Neither is part of what
    the proposal is: two that make one graph are equal.
    """

    plan: PrecisionPlan
    calibration_images: int
    corrections: tuple[Correction, ...] = ()
    parameters: Mapping[str, str | int] = field(default_factory=dict, compare=False)
    idea: str = field(default="", compare=False)

    def to_json(self) -> dict[str, Any]:
        """The proposal as a JSON object."""
        return {
            "plan": self.plan.to_json(),
            "calibration_images": self.calibration_images,
            "corrections": [correction.value for correction in self.corrections],
            "parameters": dict(self.parameters),
            "idea": self.idea,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Proposal":
        """Read `to_json` back."""
        return cls(
            PrecisionPlan.from_json(value["plan"]),
            value["calibration_images"],
            tuple(Correction(correction) for correction in value["corrections"]),
            value["parameters"],
            value["idea"],
        )


@dataclass(frozen=True, slots=True)
class Measurement:
    """A finished evaluation of one graph. It exists only when every image was evaluated.

    accuracy: the criterion's metric as a fraction (mAP 0.231, not 23.1).
    metrics: every figure by name; the twelve COCO figures for a detection metric.
    watched: the figures that the criterion watches, by name, where they are more than `accuracy`, which is the first.
    images: how many images it rests on; 0 where a user's eval_func does not say.
    latency_ms, latency_p90_ms: median and 90th percentile of one batch-1 run. size_bytes: of the frozen graph.
    memory_bytes: what loading and running it takes at most; 0 where nobody asked.
    elapsed_s: wall time of the evaluation.
    """

    accuracy: float
    images: int
    latency_ms: float
    latency_p90_ms: float
    size_bytes: int
    elapsed_s: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    memory_bytes: int = 0
    watched: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The measurement as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Measurement":
        """Read `to_json` back."""
        return cls(**value)


@dataclass(frozen=True, slots=True)
class Rejection:
    """A candidate that was dropped before every image was seen; it has no accuracy.

    images: how many were evaluated. look: the number of the look, from 1. loss: the estimate for the whole set, in the
    limit's unit. lower_bound: of what is lost beyond the limit, at that look's share of alpha; in mAP, above 0.
    alpha_spent: at this look and those before it. elapsed_s: wall time of the evaluation.
    """

    images: int
    look: int
    loss: float
    lower_bound: float
    alpha_spent: float
    elapsed_s: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The rejection as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Rejection":
        """Read `to_json` back."""
        return cls(**value)


@dataclass(frozen=True, slots=True)
class Confirmation:
    """How a graph did on images that the search never saw. loss: as the criterion counts; passes: whether it may be."""

    images: int
    baseline_accuracy: float
    accuracy: float
    loss: float
    passes: bool


@dataclass(frozen=True, slots=True)
class CompletedTrial:
    """A plan that became a graph and was evaluated in full.

    proposal: what the search asked for. applied: what the graph really holds, read back from its nodes.
    graph_sha256: of the serialised graph; two plans with one graph are one trial. quantize_s: wall time of making it.
    """

    number: int
    proposal: Proposal
    applied: PrecisionPlan
    graph_sha256: str
    measurement: Measurement
    quantize_s: float


@dataclass(frozen=True, slots=True)
class RejectedTrial:
    """A plan that became a graph, whose evaluation ended early. Fields as those of `CompletedTrial`."""

    number: int
    proposal: Proposal
    applied: PrecisionPlan
    graph_sha256: str
    rejection: Rejection
    quantize_s: float


@dataclass(frozen=True, slots=True)
class FailedTrial:
    """A plan that could not be lowered, run or evaluated; `cause` is the error in one line.

    A search tries it no more in this study, with whatever images and corrections.
    """

    number: int
    proposal: Proposal
    cause: str


Trial = CompletedTrial | RejectedTrial | FailedTrial
