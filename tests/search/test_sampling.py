"""Optuna's draws, one after another and in groups."""

import math
from collections.abc import Callable, Mapping, Sequence

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

from tuner.config import Strategy
from tuner.precision import BF16, FP32, INT8, Correction, Dtype
from tuner.search.sampling import STARTUP_TRIALS, Choice, Draw, Sampler, suggestions
from tuner.search.space import Foresight, Outcome, Search, SearchSpace
from tuner.search.strategy import make_search
from tuner.trial import Proposal

OPS = [f"op{index}" for index in range(9)]
SPACE = SearchSpace(dict.fromkeys(OPS, (INT8, BF16, FP32)), (100, 50), (), (Correction.BIAS,))
FORESIGHT = Foresight(lambda proposal: dict.fromkeys(OPS, 1.0), lambda proposal: None, lambda: dict.fromkeys(OPS, 1.0))
SAMPLED = [Strategy.TPE, Strategy.BAYESIAN, Strategy.GUIDED, Strategy.RANDOM]


def search_of(strategy: Strategy, at_once: int = 1, *, goes_on: bool = True) -> Search:
    return make_search(strategy, SPACE, FORESIGHT, seed=11, goes_on=goes_on, at_once=at_once)


def judged(proposal: Proposal) -> Outcome:
    int8 = proposal.plan.count()[Dtype.INT8]
    return Outcome(float(int8), int8 - 2.5, 9.0 - int8 if int8 < 6 else math.inf)


def run(search: Search, trials: int, judge: Callable[[Proposal], Outcome] = judged) -> list[Proposal]:
    proposals: list[Proposal] = []
    while len(proposals) < trials and (proposal := search.propose()) is not None:
        search.record(proposal, judge(proposal))
        proposals.append(proposal)
    return proposals


def is_draw(proposal: Proposal) -> bool:
    return bool(proposal.parameters)


CHOICES: Mapping[str, Sequence[Choice]] = {f"p{index}": [0, 1, 2] for index in range(8)}
SAMPLERS: Mapping[Sampler, Callable[[int], BaseSampler]] = {
    Sampler.MULTIVARIATE_TPE: lambda seed: TPESampler(
        n_startup_trials=STARTUP_TRIALS, multivariate=True, constant_liar=False, seed=seed
    ),
    Sampler.TPE: lambda seed: TPESampler(n_startup_trials=STARTUP_TRIALS, constant_liar=False, seed=seed),
    Sampler.RANDOM: RandomSampler,
}


@pytest.mark.parametrize("sampler", list(Sampler))
def test_where_nothing_is_being_tried_the_constant_liar_changes_no_draw(sampler: Sampler) -> None:
    drawn: list[Draw] = []
    for number in range(11):
        study = optuna.create_study(sampler=SAMPLERS[sampler](number))
        for draw in drawn:
            assert draw.outcome is not None
            study.enqueue_trial(dict(draw.parameters))
            trial = study.ask({name: CategoricalDistribution(list(values)) for name, values in CHOICES.items()})
            trial.set_constraint("limit", draw.outcome.excess)
            study.tell(trial, draw.outcome.cost)
        expected = study.ask({name: CategoricalDistribution(list(values)) for name, values in CHOICES.items()}).params
        parameters = next(suggestions(CHOICES, drawn, sampler, number))
        assert parameters == expected
        total = sum(map(int, parameters.values()))
        drawn.append(Draw(parameters, Outcome(1.0, total - 7.0, float(total))))


@pytest.mark.parametrize("sampler", [Sampler.TPE, Sampler.MULTIVARIATE_TPE])
def test_draws_keep_away_from_what_is_being_tried(sampler: Sampler) -> None:
    values = list(range(12))
    tried = [Draw({"p": value}, Outcome(0.0, -1.0, float(value))) for value in values]

    def drawn_next(drawn: Sequence[Draw]) -> set[Choice]:
        return {next(suggestions({"p": values}, drawn, sampler, seed))["p"] for seed in range(6)}

    # The best tenth, rounded up, is drawn from: the first two.
    assert drawn_next(tried) == {0, 1}
    assert drawn_next([*tried, *[Draw({"p": 0}, None)] * 3]) == {1}


@settings(max_examples=10, deadline=None)
@given(
    strategy=st.sampled_from(SAMPLED),
    at_once=st.integers(2, 5),
    changes=st.lists(
        st.sampled_from([(0.0, -1.0, 1.0), (7.0, 4.5, 2.0), (30.0, 27.5, math.inf)]), min_size=5, max_size=5
    ),
)
def test_a_groups_members_do_not_depend_on_each_others_outcomes(
    strategy: Strategy, at_once: int, changes: list[tuple[float, float, float]]
) -> None:
    whole = run(search_of(strategy, at_once), 20)
    draws = [position for position, proposal in enumerate(whole) if is_draw(proposal)]
    begin = draws[len(draws) // at_once // 2 * at_once]
    search = search_of(strategy, at_once)
    for proposal in whole[:begin]:
        search.record(proposal, judged(proposal))
    told = iter(changes)
    assert run(search, at_once, lambda proposal: Outcome(*next(told))) == whole[begin : begin + at_once]


@pytest.mark.parametrize("strategy", SAMPLED)
@pytest.mark.parametrize("cut", [9, 14])
def test_a_resumed_search_goes_on_within_its_group(strategy: Strategy, cut: int) -> None:
    whole = run(search_of(strategy, 4), 17)
    resumed = search_of(strategy, 4)
    for proposal in whole[:cut]:
        resumed.record(proposal, judged(proposal))
    assert [*whole[:cut], *run(resumed, 17 - cut)] == whole


@pytest.mark.parametrize("strategy", SAMPLED)
def test_the_rest_of_a_group_is_not_proposed_once_a_plan_passes(strategy: Strategy) -> None:
    search = search_of(strategy, 4, goes_on=False)
    for _ in range(30):
        proposal = search.propose()
        assert proposal is not None
        if is_draw(proposal) and proposal.plan.count()[Dtype.INT8] < len(OPS):
            break
        search.record(proposal, Outcome(3.0, 2.0, math.inf))
    search.record(proposal, Outcome(0.0, -1.0, 1.0))
    assert search.propose() is None


def test_only_what_optuna_draws_comes_in_groups() -> None:
    for strategy in (Strategy.BASIC, Strategy.MSE, Strategy.EXHAUSTIVE, Strategy.RANDOM):
        assert run(search_of(strategy, 4), 15) == run(search_of(strategy), 15)
    assert run(search_of(Strategy.TPE, 4), 15) != run(search_of(Strategy.TPE), 15)
