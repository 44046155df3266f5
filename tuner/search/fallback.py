"""The basic strategy: everything in int8, then let the most sensitive operators fall back to float."""

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tuner.precision import FP32, OpPrecision, PrecisionPlan

# Plans with at most this share of the operators in float are near all-int8: there the search walks in small steps.
NEAR_SHARE = 0.1
# Ends the draws when nobody else does; the limit of trials or time usually comes first.
MOST_DRAWS = 1000


@dataclass(frozen=True, slots=True)
class Proposal:
    """A plan to try, with ranges from the first `calibration_images` images."""

    plan: PrecisionPlan
    calibration_images: int


class FallbackSearch:
    """Proposes plans one at a time and learns from how each went; `propose` and `record` take turns.

    choices: op -> allowed decisions, the preferred one first. calibration_images: the numbers of images to try.
    rank: the operators of a plan, most sensitive first; asked for when the preferred plan does not pass.
    seed: of the random draws.

    While no plan passes: the preferred plan under each number of images; then, under the number that lost least, its
    first 1, 2, ... operators in float, up to a tenth of them; then twice as many each time, short of all; then random
    sets of up to a tenth. The draws are for detectors whose accuracy on the evaluation set moves by more than the
    criterion allows whenever a rare category wins or loses a detection: which small change does so no sensitivity
    tells. Once a plan passes: its float operators go back one at a time, least sensitive first, each kept when the
    plan still passes.
    """

    def __init__(
        self,
        choices: Mapping[str, Sequence[OpPrecision]],
        calibration_images: Sequence[int],
        rank: Callable[[Proposal], Sequence[str]],
        seed: int = 0,
    ) -> None:
        self._start = PrecisionPlan({op: allowed[0] for op, allowed in choices.items()})
        self._may_fall_back = {op for op, allowed in choices.items() if FP32 in allowed and allowed[0] != FP32}
        self._calibration_images = sorted(set(calibration_images), reverse=True)
        self._rank = rank
        self._random = random.Random(seed)
        self._losses: dict[Proposal, float] = {}
        self._passing: Proposal | None = None
        self._falling = self._fall_back()

    def propose(self) -> Proposal | None:
        """The next plan to try, never one that was recorded before; None when there is nothing left to try."""
        proposals = self._falling if self._passing is None else self._restored(self._passing)
        return next((proposal for proposal in proposals if proposal not in self._losses), None)

    def record(self, proposal: Proposal, *, loss: float, passes: bool) -> None:
        """Say how a proposal went; one that failed has an infinite loss. Those of an earlier session count alike."""
        self._losses[proposal] = loss
        if passes and (self._passing is None or _float_ops(proposal) < _float_ops(self._passing)):
            self._passing = proposal

    def _fall_back(self) -> Iterator[Proposal]:
        for images in self._calibration_images:
            yield Proposal(self._start, images)
        start = self._best_start()
        order = self._order(start)
        near = max(1, int(len(order) * NEAR_SHARE))
        for count in range(1, min(near, len(order)) + 1):
            yield _in_float(start, order[:count])
        count = 2 * near
        while count < len(order):
            yield _in_float(start, order[:count])
            count *= 2
        for _ in range(MOST_DRAWS if order else 0):
            yield _in_float(start, self._random.sample(order, self._random.randint(1, near)))

    def _restored(self, passing: Proposal) -> Iterator[Proposal]:
        in_float = {op for op in self._may_fall_back if passing.plan[op] == FP32}
        if in_float:
            for op in reversed(self._order(self._best_start())):
                if op in in_float:
                    yield Proposal(passing.plan.with_ops([op], self._start[op]), passing.calibration_images)

    def _best_start(self) -> Proposal:
        starts = [Proposal(self._start, images) for images in self._calibration_images]
        return min(starts, key=lambda start: self._losses.get(start, math.inf))

    def _order(self, start: Proposal) -> list[str]:
        ranked = [op for op in self._rank(start) if op in self._may_fall_back]
        # Only int8 operators are ranked: those in bf16 do little damage and come last.
        return [*ranked, *sorted(self._may_fall_back.difference(ranked))]


def _in_float(start: Proposal, ops: Sequence[str]) -> Proposal:
    return Proposal(start.plan.with_ops(ops, FP32), start.calibration_images)


def _float_ops(proposal: Proposal) -> int:
    return sum(precision == FP32 for precision in proposal.plan.values())
