"""What a search will probably ask for next, so that it can be begun before the search asks."""

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import count as numbers

from tuner.precision import Dtype
from tuner.search.space import FAILED, Foresight, Outcome, Search
from tuner.trial import Proposal

# How likely a plan is to pass, by what is known of others. Rough: they only rank what is begun first.
# Of plans that pass and fail, one passes with at least its int8 operators, or one fails with at most these.
LIKELY, UNLIKELY = 0.8, 0.2
# One passes with fewer of its int8 operators: the plan lies between that and what fails, as in a bisection.
BETWEEN = 0.5
# Nothing is known: searches begin at the fast end, and more plans fail than pass. Above 0.38 both outcomes of one step,
# p and 1 - p, are followed before two failures in a row, (1 - p)^2.
UNKNOWN = 0.4
# So many steps ahead are taken for each proposal that is wanted, and no more: what they lead to may be the same.
MOST_STEPS = 2

Recorded = tuple[Proposal, Outcome]


class NotAskedError(Exception):
    """What is asked ahead takes too much to be told."""


class Remembered:
    """A foresight that is asked but once for each thing, by the search itself and by those that are played out."""

    def __init__(self, foresight: Foresight) -> None:
        self._foresight = foresight
        self._damage: dict[Proposal, Mapping[str, float]] = {}
        self._costs: dict[Proposal, float | None] = {}
        self._gains: Mapping[str, float] | None = None

    @property
    def for_search(self) -> Foresight:
        """What the search itself asks."""
        return Foresight(self._ask_damage, self._ask_cost, self._ask_gains, self._foresight.knows_costs)

    def for_ahead(self, most_costs: int) -> Foresight:
        """What searches that are played out may ask; for anything further it raises NotAskedError.

        Damage, gains and the first cost may each take a measurement, in vain and beside the trial that runs: they are
        told once the search itself asked for them. A further cost takes lowering a graph: so many are asked, at most.
        """
        left = numbers(-most_costs)

        def cost(proposal: Proposal) -> float | None:
            told = proposal in self._costs or not self._foresight.knows_costs
            if not told and (not self._costs or next(left) >= 0):
                raise NotAskedError
            return self._ask_cost(proposal)

        return Foresight(self._kept_damage, cost, self._kept_gains, self._foresight.knows_costs)

    def _ask_damage(self, proposal: Proposal) -> Mapping[str, float]:
        if proposal not in self._damage:
            self._damage[proposal] = self._foresight.damage(proposal)
        return self._damage[proposal]

    def _ask_cost(self, proposal: Proposal) -> float | None:
        if proposal not in self._costs:
            self._costs[proposal] = self._foresight.cost(proposal)
        return self._costs[proposal]

    def _ask_gains(self) -> Mapping[str, float]:
        if self._gains is None:
            self._gains = self._foresight.gains()
        return self._gains

    def _kept_damage(self, proposal: Proposal) -> Mapping[str, float]:
        if proposal not in self._damage:
            raise NotAskedError
        return self._damage[proposal]

    def _kept_gains(self) -> Mapping[str, float]:
        if self._gains is None:
            raise NotAskedError
        return self._gains


def likely_next(make: Callable[[], Search], recorded: Sequence[Recorded], count: int) -> list[Proposal]:
    """What a search will probably propose next, the likeliest first: at most `count`, distinct, none recorded.

    The first is what it does propose; the others it would, if that failed, or passed, and so on. Each is found by
    playing out a new search, so that the one that runs is not touched.

    make: gives a new search, equal to the one that runs; it may raise NotAskedError where it proposes.
    """
    found: dict[Proposal, None] = {}
    turns = numbers()
    first = _proposed(make, recorded)
    # How likely (negative, since the least comes first), in which turn found, what is proposed, what was told by then.
    waiting = [] if first is None else [(-1.0, next(turns), first, list(recorded))]
    for _ in range(MOST_STEPS * count):
        if not waiting:
            break
        likelihood, _turn, proposal, known = heapq.heappop(waiting)
        found.setdefault(proposal)
        if len(found) == count:
            break
        chance = _chance_to_pass(proposal, known)
        failing, passing = [*known, (proposal, _failing(known))], [*known, (proposal, _passing(known))]
        if_failing, if_passing = _proposed(make, failing), _proposed(make, passing)
        if if_failing == if_passing:  # whatever comes of this one, the same is next
            if_passing, chance = None, 0.0
        if if_failing is not None:
            heapq.heappush(waiting, (likelihood * (1 - chance), next(turns), if_failing, failing))
        if if_passing is not None:
            heapq.heappush(waiting, (likelihood * chance, next(turns), if_passing, passing))
    return list(found)


def _proposed(make: Callable[[], Search], known: Sequence[Recorded]) -> Proposal | None:
    """What a new search proposes that was told these; None where it would end, or has to ask first."""
    search = make()
    for proposal, outcome in known:
        search.record(proposal, outcome)
    try:
        return search.propose()
    except NotAskedError:
        return None


def _chance_to_pass(proposal: Proposal, known: Sequence[Recorded]) -> float:
    mine = _int8_ops(proposal)
    # A plan without int8 tells nothing of one with it.
    others = [(theirs, outcome.passes) for other, outcome in known if (theirs := _int8_ops(other))]
    more_passes = any(passes and theirs >= mine for theirs, passes in others)
    less_fails = any(not passes and theirs <= mine for theirs, passes in others)
    if more_passes != less_fails:
        return LIKELY if more_passes else UNLIKELY
    return BETWEEN if any(passes for theirs, passes in others if theirs <= mine) else UNKNOWN


def _int8_ops(proposal: Proposal) -> frozenset[str]:
    return frozenset(op for op, decision in proposal.plan.items() if decision.dtype is Dtype.INT8)


def _failing(known: Sequence[Recorded]) -> Outcome:
    """As bad as the worst, and at least twice the limit, so that nothing that was measured ranks behind it."""
    limit = _limit(known)
    loss = max([2 * limit, *(outcome.loss for _, outcome in known if math.isfinite(outcome.loss))])
    return Outcome(loss, loss - limit, math.inf)


def _passing(known: Sequence[Recorded]) -> Outcome:
    """Just at the limit, and as cheap as the cheapest."""
    limit = _limit(known)
    return Outcome(limit, 0.0, min((outcome.cost for _, outcome in known if outcome.passes), default=0.0))


def _limit(known: Sequence[Recorded]) -> float:
    """The loss that is allowed, as the outcomes tell; 1 where none does."""
    limits = (outcome.loss - outcome.excess for _, outcome in known if outcome != FAILED)
    return next((limit for limit in limits if math.isfinite(limit) and limit > 0), 1.0)
