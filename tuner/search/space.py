"""What may be tried, what is known of it before it is, and how it went."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from tuner.precision import BF16, FP32, Correction, Dtype, OpPrecision, PrecisionPlan
from tuner.trial import Proposal


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a proposal went.

    loss: as the criterion counts; infinite where the trial failed, an estimate where it was rejected early.
    excess: the loss beyond what is allowed; not above 0 where the trial passes.
    cost: what the objective counts, less is better; infinite where it was not measured.
    """

    loss: float
    excess: float
    cost: float

    @property
    def passes(self) -> bool:
        """Whether the trial may be handed over."""
        return self.excess <= 0


FAILED = Outcome(math.inf, math.inf, math.inf)


class Outcomes(Mapping[Proposal, Outcome]):
    """How proposals went, in the order in which they were recorded.

    A plan that failed is in quarantine: a proposal of it, under whatever number of images and with whatever
    corrections, counts as one that was recorded as failed. It is not among those that are iterated over.
    """

    def __init__(self) -> None:
        self._recorded: dict[Proposal, Outcome] = {}
        self._quarantine: set[PrecisionPlan] = set()

    def record(self, proposal: Proposal, outcome: Outcome) -> None:
        """Say how a proposal went."""
        self._recorded[proposal] = outcome
        if outcome == FAILED:
            self._quarantine.add(proposal.plan)

    def __getitem__(self, proposal: Proposal) -> Outcome:
        if proposal not in self._recorded and proposal.plan in self._quarantine:
            return FAILED
        return self._recorded[proposal]

    def __iter__(self) -> Iterator[Proposal]:
        return iter(self._recorded)

    def __len__(self) -> int:
        return len(self._recorded)


class Search(Protocol):
    """Proposes plans one at a time and learns from how each went; `propose` and `record` take turns.

    What is proposed depends on what was recorded and on nothing else: a search that is told the outcomes of an earlier
    session goes on as that would have.
    """

    def propose(self) -> Proposal | None:
        """The next plan to try, never one that was recorded before or whose plan failed; None when none is left."""

    def record(self, proposal: Proposal, outcome: Outcome) -> None:
        """Say how a proposal went. Those of an earlier session count alike, in the order in which they went."""

    @property
    def ending(self) -> str:
        """Why nothing is proposed any more, in words."""


@dataclass(frozen=True)
class SearchSpace:
    """The choices of a search.

    choices: op -> allowed decisions, the preferred one first. calibration_images: the numbers of images to try.
    corrections: what is done to the weights of every plan. optional_corrections: what may be done to them, one at most.
    """

    choices: Mapping[str, tuple[OpPrecision, ...]]
    calibration_images: tuple[int, ...]
    corrections: tuple[Correction, ...] = ()
    optional_corrections: tuple[Correction, ...] = ()

    @property
    def most_images(self) -> int:
        """The largest number of calibration images."""
        return max(self.calibration_images)

    def anchors(self) -> dict[str, PrecisionPlan]:
        """The plans of one kind, by name: all int8, all bf16, and int8 with bf16 for the rest; equal ones but once.

        An operator that must not be of that kind is float where it may be, else what it has to be. All float is a plan
        only where nothing else may be.
        """
        kinds = {
            "int8": (Dtype.INT8, Dtype.FP32),
            "int8 and bf16": (Dtype.INT8, Dtype.BF16, Dtype.FP32),
            "bf16": (Dtype.BF16, Dtype.FP32),
        }
        found: dict[str, PrecisionPlan] = {}
        for name, dtypes in kinds.items():
            plan = PrecisionPlan({op: _first(allowed, dtypes) for op, allowed in self.choices.items()})
            if plan not in found.values() and not plan.is_float:
                found[name] = plan
        return found or {"float": PrecisionPlan(dict.fromkeys(self.choices, FP32))}

    def ways_out(self) -> dict[str, tuple[OpPrecision, ...]]:
        """What each operator that prefers int8 may be instead: bf16, float, both, or (then it is left out) neither."""
        found = {}
        for op, allowed in self.choices.items():
            others = tuple(decision for decision in (BF16, FP32) if decision in allowed)
            if allowed[0].dtype is Dtype.INT8 and others:
                found[op] = others
        return found


@dataclass(frozen=True)
class Foresight:
    """What is known of plans before they are tried; each is asked for when it is needed first.

    damage: op -> how much more wrong the results get when it leaves float, in any unit. Of a plan.
    cost: the objective's cost of a plan, as predicted; None where that cannot be told without trying.
    gains: op -> the time that int8 saves there over what it would be instead, in any unit.
    knows_costs: whether `cost` can tell at all; to ask that of it might take a measurement.
    """

    damage: Callable[[Proposal], Mapping[str, float]]
    cost: Callable[[Proposal], float | None]
    gains: Callable[[], Mapping[str, float]]
    knows_costs: bool = True


def _first(allowed: tuple[OpPrecision, ...], dtypes: tuple[Dtype, ...]) -> OpPrecision:
    """The first decision of the first of `dtypes` that is allowed; where none is, the preferred decision."""
    for dtype in dtypes:
        for decision in allowed:
            if decision.dtype is dtype:
                return decision
    return allowed[0]
