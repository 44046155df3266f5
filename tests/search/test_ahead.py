"""Looking ahead changes no run, and tells what runs ask for."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuner.config import Strategy
from tuner.precision import BF16, FP32, INT8, Correction, Dtype
from tuner.search.ahead import NotAskedError, Remembered, likely_next
from tuner.search.space import FAILED, Foresight, Outcome, Search, SearchSpace
from tuner.search.strategy import make_search
from tuner.trial import Proposal

OPS = [f"op{index:02d}" for index in range(60)]
COSTS = {Dtype.INT8: 1.0, Dtype.BF16: 2.0, Dtype.FP32: 3.0}
WEIGHTS = {op: 1 / (index + 1) for index, op in enumerate(OPS)}

Judge = Callable[[Proposal], Outcome]


def cost(proposal: Proposal) -> float:
    return sum(COSTS[decision.dtype] for decision in proposal.plan.values())


def foresight_of(ops: list[str]) -> Foresight:
    return Foresight(lambda proposal: {op: WEIGHTS[op] for op in ops}, cost, lambda: dict.fromkeys(ops, 1.0))


def space_of(ops: list[str], sizes: tuple[int, ...] = (100,)) -> SearchSpace:
    return SearchSpace(dict.fromkeys(ops, (INT8, BF16, FP32)), sizes, (), (Correction.BIAS,))


def monotone(proposal: Proposal) -> Outcome:
    """Passes with the first nine operators out of int8."""
    loss = sum(WEIGHTS[op] for op, decision in proposal.plan.items() if decision.dtype is Dtype.INT8)
    limit = sum(WEIGHTS[op] for op in list(proposal.plan)[9:]) + 1e-9
    return Outcome(loss, loss - limit, cost(proposal) if loss < 2 * limit else math.inf)


def scattered(proposal: Proposal) -> Outcome:
    """Some pass, some fail, some cannot be made, without any order."""
    drawn = int(proposal.plan.sha256[:4], 16)
    loss = drawn / 65536
    return FAILED if drawn % 7 == 0 else Outcome(loss, loss - 0.2, cost(proposal))


@dataclass
class Run:
    """A search that is looked ahead of at every step; with a count of 0 it is left alone."""

    strategy: Strategy
    space: SearchSpace
    goes_on: bool = True
    at_once: int = 1
    recorded: list[tuple[Proposal, Outcome]] = field(default_factory=list)
    ahead: list[list[Proposal]] = field(default_factory=list)

    def made(self, foresight: Foresight) -> Search:
        return make_search(self.strategy, self.space, foresight, seed=5, goes_on=self.goes_on, at_once=self.at_once)

    def go(self, judge: Judge, trials: int, count: int) -> list[Proposal]:
        remembered = Remembered(foresight_of(list(self.space.choices)))
        search = self.made(remembered.for_search)
        while len(self.recorded) < trials and (proposal := search.propose()) is not None:
            if count:
                foresight = remembered.for_ahead(20)
                self.ahead.append(likely_next(lambda foresight=foresight: self.made(foresight), self.recorded, count))
            outcome = judge(proposal)
            search.record(proposal, outcome)
            self.recorded.append((proposal, outcome))
        return [proposal for proposal, _ in self.recorded]

    def steps(self) -> Iterator[tuple[Proposal, list[Proposal], list[Proposal]]]:
        """Each proposal, what was recorded before it, and what looking ahead said then."""
        proposals = [proposal for proposal, _ in self.recorded]
        for position, ahead in enumerate(self.ahead):
            yield proposals[position], proposals[:position], ahead

    def share_foreseen(self, steps: int, kind: Callable[[Proposal], bool]) -> float:
        """Of the proposals of a kind, the share that was foreseen so many steps before."""
        proposals = [proposal for proposal, _ in self.recorded]
        told = zip(proposals[steps:], self.ahead, strict=False)
        hits = [proposal in ahead for proposal, ahead in told if kind(proposal)]
        return sum(hits) / len(hits)


def on_path(proposal: Proposal) -> bool:
    return proposal.idea.startswith("int8, ")


@pytest.mark.parametrize("judge", [monotone, scattered])
@pytest.mark.parametrize("strategy", list(Strategy))
def test_a_run_that_is_looked_ahead_of_goes_as_it_would_alone(strategy: Strategy, judge: Judge) -> None:
    space = space_of(OPS[:12], (100, 50))
    alone = Run(strategy, space).go(judge, trials=12, count=0)
    watched = Run(strategy, space)
    assert watched.go(judge, trials=12, count=3) == alone
    for proposal, before, ahead in watched.steps():
        assert ahead[0] == proposal
        assert len(ahead) == len(set(ahead)) <= 3
        assert not set(ahead) & set(before)


def test_the_points_of_a_bisection_are_told_side_by_side() -> None:
    run = Run(Strategy.GUIDED, space_of(OPS), goes_on=False)
    run.go(monotone, trials=20, count=3)
    ideas = [[int(one.idea.split()[1]) for one in ahead] for proposal, _, ahead in run.steps() if on_path(proposal)]
    # Steps double, and failing is likelier; once 8 failed and 16 passed: the middle, and the middles of both halves.
    assert ideas[0] == [1, 2, 4]
    assert [12, 14, 10] in ideas


def test_the_path_is_foreseen_one_and_two_steps_before() -> None:
    run = Run(Strategy.GUIDED, space_of(OPS), goes_on=False)
    path = [proposal for proposal in run.go(monotone, trials=20, count=7) if on_path(proposal)]
    assert len(path) >= 8
    # The first step of all rests on what is asked for only then.
    assert run.share_foreseen(1, lambda one: on_path(one) and one != path[0]) == 1
    assert run.share_foreseen(2, lambda one: on_path(one) and one not in path[:2]) == 1


@pytest.mark.parametrize("strategy", [Strategy.BASIC, Strategy.RANDOM, Strategy.EXHAUSTIVE])
def test_what_does_not_depend_on_outcomes_is_foreseen(strategy: Strategy) -> None:
    run = Run(strategy, space_of(OPS[:20]))
    run.go(lambda proposal: Outcome(1.0, 0.5, math.inf), trials=12, count=3)
    assert run.share_foreseen(1, lambda proposal: True) == run.share_foreseen(2, lambda proposal: True) == 1


@pytest.mark.parametrize("strategy", [Strategy.TPE, Strategy.BAYESIAN, Strategy.GUIDED])
def test_the_members_of_a_group_of_draws_are_told_side_by_side(strategy: Strategy) -> None:
    run = Run(strategy, space_of(OPS[:12]), at_once=4)
    run.go(lambda proposal: Outcome(2.0 + len(proposal.plan.sha256) % 3, 1.0, math.inf), trials=20, count=4)
    proposals = [proposal for proposal, _ in run.recorded]
    draws = [position for position, proposal in enumerate(proposals) if len(proposal.parameters) > 1]
    begins = [position for position in draws[::4] if position + 4 <= len(proposals)]
    assert len(begins) >= 2
    for begin in begins:
        assert run.ahead[begin] == proposals[begin : begin + 4]


def test_where_the_search_ends_nothing_is_next() -> None:
    space = space_of(OPS[:3])
    int8 = make_search(Strategy.TPE, space, foresight_of(OPS[:3])).propose()
    assert int8 is not None
    passed = [(int8, Outcome(0.0, -1.0, 1.0))]
    assert likely_next(lambda: make_search(Strategy.TPE, space, foresight_of(OPS[:3])), passed, 8) == []
    assert likely_next(lambda: make_search(Strategy.TPE, space, foresight_of(OPS[:3])), [], 0) == []


def test_all_combinations_of_many_operators_are_not_listed() -> None:
    space = space_of([f"op{index:03d}" for index in range(300)])
    ahead = likely_next(lambda: make_search(Strategy.EXHAUSTIVE, space, foresight_of(OPS)), [], 4)
    assert [sum(decision != INT8 for decision in proposal.plan.values()) for proposal in ahead] == [0, 1, 1, 1]


OUTCOMES = st.sampled_from(
    [FAILED, Outcome(0.0, -0.1, 3.0), Outcome(0.1, 0.0, 2.0), Outcome(0.3, 0.2, math.inf), Outcome(9.0, 8.9, 5.0)]
)


@settings(max_examples=15, deadline=None)
@given(
    strategy=st.sampled_from(list(Strategy)),
    outcomes=st.lists(OUTCOMES, max_size=9),
    goes_on=st.booleans(),
    at_once=st.integers(1, 4),
    ops=st.integers(1, 6),
)
def test_whatever_was_recorded_the_first_is_what_the_search_proposes(
    strategy: Strategy, outcomes: list[Outcome], goes_on: bool, at_once: int, ops: int
) -> None:
    run = Run(strategy, space_of(OPS[:ops], (100, 10)), goes_on, at_once)
    told = iter(outcomes)
    run.go(lambda proposal: next(told), trials=len(outcomes), count=4)
    for proposal, before, ahead in run.steps():
        assert ahead[0] == proposal
        assert len(ahead) == len(set(ahead)) <= 4
        assert not set(ahead) & set(before)


@dataclass
class Asked:
    """A foresight that counts what it is asked."""

    damage: int = 0
    cost: int = 0
    gains: int = 0

    def foresight(self, *, knows_costs: bool = True) -> Foresight:
        return Foresight(self._of_damage, self._of_cost, self._of_gains, knows_costs)

    def _of_damage(self, proposal: Proposal) -> Mapping[str, float]:
        self.damage += 1
        return {}

    def _of_cost(self, proposal: Proposal) -> float:
        self.cost += 1
        return cost(proposal)

    def _of_gains(self) -> Mapping[str, float]:
        self.gains += 1
        return {}


def plans(count: int) -> list[Proposal]:
    every = make_search(Strategy.RANDOM, space_of(OPS), foresight_of(OPS), goes_on=True)
    found = []
    while len(found) < count and (proposal := every.propose()) is not None:
        every.record(proposal, Outcome(1.0, 1.0, 1.0))
        found.append(proposal)
    return found


def test_a_search_asks_once_and_looking_ahead_hears_it() -> None:
    asked = Asked()
    remembered = Remembered(asked.foresight())
    (plan,) = plans(1)
    for _ in range(3):
        search, ahead = remembered.for_search, remembered.for_ahead(0)
        assert search.damage(plan) == ahead.damage(plan) == {}
        assert search.cost(plan) == ahead.cost(plan) == cost(plan)
        assert search.gains() == ahead.gains() == {}
    assert (asked.damage, asked.cost, asked.gains) == (1, 1, 1)


def test_nothing_is_measured_ahead() -> None:
    asked = Asked()
    ahead = Remembered(asked.foresight()).for_ahead(9)
    (plan,) = plans(1)
    for ask in (lambda: ahead.damage(plan), lambda: ahead.cost(plan), ahead.gains):
        with pytest.raises(NotAskedError):
            ask()
    run = Run(Strategy.GUIDED, space_of(OPS))
    assert [one.idea for one in likely_next(lambda: run.made(ahead), [], 8)] == ["int8"]
    assert (asked.damage, asked.cost, asked.gains) == (0, 0, 0)


def test_so_many_costs_are_asked_ahead() -> None:
    asked = Asked()
    remembered = Remembered(asked.foresight())
    first, *others = plans(4)
    remembered.for_search.cost(first)
    ahead = remembered.for_ahead(2)
    assert [ahead.cost(one) for one in (*others[:2], first, *others[:2])]
    with pytest.raises(NotAskedError):
        ahead.cost(others[2])
    assert asked.cost == 3
    assert remembered.for_ahead(1).cost(others[2]) == cost(others[2])


def test_where_costs_cannot_be_told_that_is_no_reason_to_stop() -> None:
    (plan,) = plans(1)
    assert (
        Remembered(Foresight(lambda one: {}, lambda one: None, dict, knows_costs=False)).for_ahead(0).cost(plan) is None
    )
