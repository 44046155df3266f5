"""The basic strategy: everything in int8, then let the most sensitive operators fall back to float."""

from collections.abc import Iterator, Sequence

from tuner.precision import FP32, PrecisionPlan

# A plan close to all-int8 is tried in many variants before many operators are given up: accuracy moves by more than
# the criterion allows when one detection of a rare category is won or lost, and which one is cannot be predicted.
NEAR_SHARE = 0.1
SINGLES = 4


class FallbackSearch:
    """Proposes plans one at a time and learns from how each went; `propose` and `record` take turns.

    start: the plan with every operator at its preferred precision. order: the operators of `start` that may fall back
    to float, most sensitive first.

    While no plan passes: `start`; its first 1, 2, ... operators in float, up to a tenth of them; single operators in
    float further down the order; then twice as many each time, up to all. Once a plan passes: its float operators go
    back to int8 one at a time, least sensitive first, each kept when the plan still passes.
    """

    def __init__(self, start: PrecisionPlan, order: Sequence[str]) -> None:
        self._start = start
        self._order = tuple(order)
        self._falling = self._fall_back()
        self._passing: PrecisionPlan | None = None
        self._restorable: list[str] = []
        self._seen: set[PrecisionPlan] = set()

    def propose(self) -> PrecisionPlan | None:
        """The next plan to try, never one that was recorded before; None when there is nothing left to try."""
        for plan in self._restored() if self._passing is not None else self._falling:
            if plan not in self._seen:
                return plan
        return None

    def record(self, plan: PrecisionPlan, *, passes: bool) -> None:
        """Say how a plan went; one that failed does not pass. Plans of an earlier session are recorded alike."""
        self._seen.add(plan)
        if passes and (self._passing is None or _float_ops(plan) < _float_ops(self._passing)):
            self._passing = plan
            self._restorable = [op for op in reversed(self._order) if plan[op] != self._start[op]]

    def _fall_back(self) -> Iterator[PrecisionPlan]:
        near = max(1, round(len(self._order) * NEAR_SHARE))
        yield self._start
        for count in range(1, near + 1):
            yield self._start.with_ops(self._order[:count], FP32)
        for op in self._order[1 : 1 + near * SINGLES]:
            yield self._start.with_ops([op], FP32)
        while near < len(self._order):
            near = min(2 * near, len(self._order))
            yield self._start.with_ops(self._order[:near], FP32)

    def _restored(self) -> Iterator[PrecisionPlan]:
        if self._passing is None:
            return
        for op in self._restorable:
            yield self._passing.with_ops([op], self._start[op])


def _float_ops(plan: PrecisionPlan) -> int:
    return sum(precision == FP32 for precision in plan.values())
