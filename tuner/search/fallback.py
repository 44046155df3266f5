"""LPOT's strategies `basic` and `mse`: everything in int8, then operators fall back to float one after another."""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from tuner.precision import FP32, Dtype
from tuner.search.space import Foresight, Outcome, Outcomes, SearchSpace
from tuner.trial import Proposal

# Plans with at most this share of the operators in float are near all-int8: there the search walks in small steps.
NEAR_SHARE = 0.1
# Ends the draws when nobody else does; the limit of trials or time usually comes first.
MOST_DRAWS = 1000


class FallbackSearch:
    """While no plan passes: all int8 under each number of images; then, under the number that lost least, operators go
    to float in an order: the first 1, 2, ... up to a tenth of them, then twice as many each time, short of all; then
    random sets of up to a tenth. Once a plan passes, and if the search `goes_on`: its float operators return to int8
    one at a time, in the opposite order, each for good when the plan still passes.

    one_by_one: the order is by what each operator's own fallback gains, which takes a trial for each (`basic`);
    otherwise it is by the damage that is foreseen (`mse`). seed: of the random sets. These are for detectors whose
    accuracy moves by more than is allowed whenever a rare category wins or loses a detection.
    """

    def __init__(
        self,
        space: SearchSpace,
        foresight: Foresight,
        *,
        one_by_one: bool = False,
        seed: int = 0,
        goes_on: bool = False,
    ) -> None:
        self._foresight, self._one_by_one, self._goes_on = foresight, one_by_one, goes_on
        plan = next(iter(space.anchors().values()))
        self._starts = [
            Proposal(plan, images, space.corrections, idea="int8")
            for images in sorted(set(space.calibration_images), reverse=True)
        ]
        self._may_fall_back = [
            op for op, allowed in space.choices.items() if FP32 in allowed and plan[op].dtype is Dtype.INT8
        ]
        self._has_int8 = sum(decision.dtype is Dtype.INT8 for decision in plan.values())
        self._random = random.Random(seed)
        self._outcomes = Outcomes()
        self._passing: Proposal | None = None
        self._falling = self._fall_back()
        self.ending = "there is no plan left to try"

    def propose(self) -> Proposal | None:
        """The next plan to try; see `Search`."""
        if self._passing is not None and not self._goes_on:
            self.ending = "the first plan that meets the criterion was found"
            return None
        proposals = self._falling if self._passing is None else self._restored(self._passing)
        return next((proposal for proposal in proposals if proposal not in self._outcomes), None)

    def record(self, proposal: Proposal, outcome: Outcome) -> None:
        """Say how a proposal went; see `Search`."""
        self._outcomes.record(proposal, outcome)
        if outcome.passes and (self._passing is None or _float_ops(proposal) < _float_ops(self._passing)):
            self._passing = proposal

    def _fall_back(self) -> Iterator[Proposal]:
        yield from self._starts
        start = self._best_start()
        if self._one_by_one:
            yield from (_in_float(start, [op]) for op in self._may_fall_back)
        order = self._order(start)
        most = max(0, len(order) - (len(order) == self._has_int8))
        near = max(1, int(len(order) * NEAR_SHARE))
        for count in range(1, min(near, most) + 1):
            yield _in_float(start, order[:count])
        count = 2 * near
        while count <= most:
            yield _in_float(start, order[:count])
            count *= 2
        for _ in range(MOST_DRAWS if most else 0):
            yield _in_float(start, self._random.sample(order, self._random.randint(1, min(near, most))))

    def _restored(self, passing: Proposal) -> Iterator[Proposal]:
        start = self._best_start()
        in_float = {op for op in self._may_fall_back if passing.plan[op] == FP32}
        for op in reversed(self._order(start) if in_float else []):
            if op in in_float:
                rest = [other for other in self._may_fall_back if other in in_float and other != op]
                yield _in_float(replace(start, calibration_images=passing.calibration_images), rest)

    def _best_start(self) -> Proposal:
        return min(self._starts, key=self._loss)

    def _order(self, start: Proposal) -> Sequence[str]:
        if self._one_by_one:
            return sorted(self._may_fall_back, key=lambda op: self._loss(_in_float(start, [op])))
        damage: Mapping[str, float] = self._foresight.damage(start)
        return sorted(self._may_fall_back, key=lambda op: -damage.get(op, 0.0))

    def _loss(self, proposal: Proposal) -> float:
        return self._outcomes[proposal].loss if proposal in self._outcomes else math.inf


def _in_float(start: Proposal, ops: Sequence[str]) -> Proposal:
    return replace(start, plan=start.plan.with_ops(ops, FP32), idea=f"int8, {len(ops)} ops in float" if ops else "int8")


def _float_ops(proposal: Proposal) -> int:
    return sum(precision == FP32 for precision in proposal.plan.values())
