"""Optuna's samplers as one function: from what was tried to what to try next."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

from tuner.search.space import Outcome
from tuner.trial import Proposal

Choice = str | int
Parameters = Mapping[str, Choice]

# So many draws are random before the sampler models what was tried.
STARTUP_TRIALS = 5
# Stands for infinity, which the samplers cannot compare.
WORST = 1e12


class Sampler(StrEnum):
    """How the next parameters are drawn."""

    TPE = "tpe"
    MULTIVARIATE_TPE = "multivariate_tpe"
    RANDOM = "random"


@dataclass(frozen=True, slots=True)
class Draw:
    """Parameters that were drawn, and how that went; None where the next draw must not know it yet."""

    parameters: Parameters
    outcome: Outcome | None


@dataclass(frozen=True, slots=True)
class Draws:
    """What was drawn so far, and the group that the next draw belongs to.

    Draws come in groups of `at_once`. A draw knows the outcomes from before its group began, and of the group's other
    members what they are but not how they went, so that the members can be tried side by side.

    drawn: all of them, in their order. group: those of them that belong to the group of the next draw.
    """

    drawn: Sequence[Draw]
    group: Sequence[Proposal]


def draws_among(outcomes: Mapping[Proposal, Outcome], names: Collection[str], at_once: int) -> Draws:
    """The draws among what was recorded: what was chosen by parameters of these names."""
    proposals = [proposal for proposal in outcomes if proposal.parameters.keys() == set(names)]
    before = len(proposals) - len(proposals) % at_once
    known = [Draw(proposal.parameters, outcomes[proposal]) for proposal in proposals[:before]]
    group = proposals[before:]
    return Draws([*known, *(Draw(member.parameters, None) for member in group)], group)


def suggestions(
    choices: Mapping[str, Sequence[Choice]], drawn: Sequence[Draw], sampler: Sampler, seed: int
) -> Iterator[Parameters]:
    """Parameters to try next, one after another: of low cost among those without excess, else of low excess.

    choices: the values of each parameter. The same arguments give the same answers. The tree-structured Parzen
    estimator is that of Bergstra et al. 2011, with constraints as Optuna has them; a draw without an outcome counts as
    a bad one (the constant liar of Ginsbourger et al. 2010), which keeps the next ones away from it.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=_SAMPLERS[sampler](seed))
    distributions: dict[str, BaseDistribution] = {
        name: CategoricalDistribution(list(values)) for name, values in choices.items()
    }
    for draw in drawn:
        study.enqueue_trial(dict(draw.parameters))
        trial = study.ask(distributions)
        if draw.outcome is None:
            continue
        trial.set_constraint("limit", min(draw.outcome.excess, WORST))
        study.tell(trial, min(draw.outcome.cost, WORST))
    while True:
        yield dict(study.ask(distributions).params)


_SAMPLERS: Mapping[Sampler, Callable[[int], BaseSampler]] = {
    Sampler.TPE: lambda seed: TPESampler(n_startup_trials=STARTUP_TRIALS, constant_liar=True, seed=seed),
    Sampler.MULTIVARIATE_TPE: lambda seed: TPESampler(
        n_startup_trials=STARTUP_TRIALS, multivariate=True, constant_liar=True, seed=seed
    ),
    Sampler.RANDOM: RandomSampler,
}
