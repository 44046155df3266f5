"""A plan that failed is never proposed again, by any strategy, and the search finds what there is besides."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from tuner.config import Strategy
from tuner.precision import BF16, FP32, INT8, Correction, Dtype, PrecisionPlan
from tuner.search.space import FAILED, Foresight, Outcome, Outcomes, Search, SearchSpace
from tuner.search.strategy import make_search
from tuner.trial import Proposal

OPS = [f"op{index}" for index in range(6)]
SPACE = SearchSpace(dict.fromkeys(OPS, (INT8, BF16, FP32)), (100, 50, 10), (), (Correction.BIAS,))
FORESIGHT = Foresight(
    lambda proposal: dict.fromkeys(OPS, 1.0), lambda proposal: None, lambda: dict.fromkeys(OPS, 1.0), knows_costs=False
)
PLAN = PrecisionPlan(dict.fromkeys(OPS, INT8))


def search_of(strategy: Strategy) -> Search:
    return make_search(strategy, SPACE, FORESIGHT, seed=3, goes_on=True)


def outcome(proposal: Proposal) -> Outcome:
    """op2 fails in int8; of the rest nothing passes."""
    if proposal.plan["op2"].dtype is Dtype.INT8:
        return FAILED
    lost = 1.0 + sum(decision.dtype is Dtype.INT8 for decision in proposal.plan.values())
    return Outcome(lost, lost - 0.5, 1.0)


def run(search: Search, trials: int, judged: Callable[[Proposal], Outcome] = outcome) -> list[Proposal]:
    proposals = []
    while len(proposals) < trials and (proposal := search.propose()) is not None:
        proposals.append(proposal)
        search.record(proposal, judged(proposal))
    return proposals


@pytest.mark.parametrize("strategy", list(Strategy))
def test_no_plan_that_failed_is_proposed_again_and_others_are(strategy: Strategy) -> None:
    proposals = run(search_of(strategy), 30)
    failed = [proposal.plan for proposal in proposals if outcome(proposal) == FAILED]
    assert failed
    assert len(failed) == len(set(failed))
    for position, proposal in enumerate(proposals):
        earlier = [one.plan for one in proposals[:position] if outcome(one) == FAILED]
        assert proposal.plan not in earlier
    assert any(outcome(proposal) != FAILED for proposal in proposals)


@pytest.mark.parametrize("strategy", list(Strategy))
def test_it_is_remembered_by_a_session_that_goes_on(strategy: Strategy) -> None:
    whole = run(search_of(strategy), 14)
    resumed = search_of(strategy)
    for proposal in whole[:5]:
        resumed.record(proposal, outcome(proposal))
    assert whole[:5] + run(resumed, len(whole) - 5) == whole


def test_a_plan_that_failed_counts_as_failed_however_it_comes_about() -> None:
    outcomes = Outcomes()
    first = Proposal(PLAN, 100, idea="int8")
    outcomes.record(first, FAILED)
    for other in (replace(first, calibration_images=7), replace(first, corrections=(Correction.BIAS,))):
        assert outcomes[other] == FAILED
        assert other in outcomes
    assert list(outcomes) == [first]
    assert replace(first, plan=PLAN.with_ops(["op0"], FP32)) not in outcomes


def test_a_plan_that_lost_too_much_is_tried_with_other_images() -> None:
    outcomes = Outcomes()
    first = Proposal(PLAN, 100)
    outcomes.record(first, Outcome(0.5, 0.4, 1.0))
    assert replace(first, calibration_images=7) not in outcomes
