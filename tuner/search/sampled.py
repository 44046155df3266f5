"""Strategies that draw a decision for every operator: by Optuna's samplers, or all combinations in turn."""

import itertools
from collections.abc import Iterator, Mapping, Sequence

from tuner.precision import OpPrecision, PrecisionPlan
from tuner.search.sampling import Parameters, Sampler, draws_among, suggestions
from tuner.search.space import Outcome, Outcomes, SearchSpace
from tuner.trial import Proposal

# So many draws are made for one that is new, before the search gives up.
MOST_DRAWS = 100

_IMAGES = "calibration_images"


class SampledSearch:
    """The preferred plan, then one draw after another, each operator decided by itself.

    goes_on: whether to look for a better plan once one passes. at_once: how many draws do without the outcomes of each
    other, see `Draws`; the preferred plan counts as the first.
    """

    def __init__(
        self, space: SearchSpace, sampler: Sampler, *, seed: int = 0, goes_on: bool = False, at_once: int = 1
    ) -> None:
        self._space, self._sampler, self._seed = space, sampler, seed
        self._goes_on, self._at_once = goes_on, at_once
        self._outcomes = Outcomes()
        self.ending = "the first plan that meets the criterion was found"
        self._choices: dict[str, Sequence[str | int]] = {
            **{op: list(range(len(allowed))) for op, allowed in space.choices.items() if len(allowed) > 1},
            **({_IMAGES: list(space.calibration_images)} if len(space.calibration_images) > 1 else {}),
        }

    def propose(self) -> Proposal | None:
        """The next plan to try; see `Search`."""
        if not self._outcomes:
            return self._proposal({name: values[0] for name, values in self._choices.items()})
        if not self._goes_on and any(outcome.passes for outcome in self._outcomes.values()):
            return None
        # Plans that were compared at the end of an earlier session were not drawn.
        drawn = draws_among(self._outcomes, self._choices, self._at_once).drawn
        draws = suggestions(self._choices, drawn, self._sampler, self._seed + len(self._outcomes))
        for parameters in itertools.islice(draws, MOST_DRAWS):
            proposal = self._proposal(parameters)
            if proposal not in self._outcomes and not proposal.plan.is_float:
                return proposal
        self.ending = f"{MOST_DRAWS} more draws brought no new plan"
        return None

    def record(self, proposal: Proposal, outcome: Outcome) -> None:
        """Say how a proposal went; see `Search`."""
        self._outcomes.record(proposal, outcome)

    def _proposal(self, parameters: Parameters) -> Proposal:
        return _decided(self._space, parameters, f"{self._sampler.value.replace('_', ' ')} sample")


class ExhaustiveSearch:
    """Every combination of decisions, the preferred ones first and the last operators varied soonest."""

    def __init__(self, space: SearchSpace, *, goes_on: bool = False) -> None:
        self._space, self._goes_on = space, goes_on
        self._outcomes = Outcomes()
        self._proposals = self._all()
        self.ending = "every plan was tried"

    def propose(self) -> Proposal | None:
        """The next plan to try; see `Search`."""
        if not self._goes_on and any(outcome.passes for outcome in self._outcomes.values()):
            self.ending = "the first plan that meets the criterion was found"
            return None
        untried = (proposal for proposal in self._proposals if proposal not in self._outcomes)
        return next((proposal for proposal in untried if not proposal.plan.is_float or not self._outcomes), None)

    def record(self, proposal: Proposal, outcome: Outcome) -> None:
        """Say how a proposal went; see `Search`."""
        self._outcomes.record(proposal, outcome)

    def _all(self) -> Iterator[Proposal]:
        numbers = [range(len(allowed)) for allowed in self._space.choices.values()]
        for images in self._space.calibration_images:
            for decided in itertools.product(*numbers):
                parameters: dict[str, str | int] = dict(zip(self._space.choices, decided, strict=True))
                yield _decided(self._space, {**parameters, _IMAGES: images}, "combination")


def _decided(space: SearchSpace, parameters: Parameters, idea: str) -> Proposal:
    """parameters: of each operator the number of its decision, 0 where it has but one."""

    def decision(op: str, allowed: Sequence[OpPrecision]) -> OpPrecision:
        return allowed[int(parameters.get(op, 0))]

    decided: Mapping[str, OpPrecision] = {op: decision(op, allowed) for op, allowed in space.choices.items()}
    images = int(parameters.get(_IMAGES, space.most_images))
    return Proposal(PrecisionPlan(decided), images, space.corrections, parameters, idea)
