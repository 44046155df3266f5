"""The strategies by the names that settings give them."""

from collections.abc import Callable, Mapping

from tuner.config import Strategy
from tuner.search.fallback import FallbackSearch
from tuner.search.guided import GuidedSearch
from tuner.search.sampled import ExhaustiveSearch, SampledSearch
from tuner.search.sampling import Sampler
from tuner.search.space import Foresight, Search, SearchSpace


def make_search(
    strategy: Strategy,
    space: SearchSpace,
    foresight: Foresight,
    *,
    seed: int = 0,
    goes_on: bool = False,
    at_once: int = 1,
) -> Search:
    """A strategy over a space.

    goes_on: whether to look for a better plan once one passes. at_once: so many draws of Optuna do without the outcomes
    of each other, and can be tried side by side; strategies that draw nothing from Optuna leave it alone.
    """

    def fallback(*, one_by_one: bool) -> Search:
        return FallbackSearch(space, foresight, one_by_one=one_by_one, seed=seed, goes_on=goes_on)

    def sampled(sampler: Sampler) -> Search:
        return SampledSearch(space, sampler, seed=seed, goes_on=goes_on, at_once=at_once)

    strategies: Mapping[Strategy, Callable[[], Search]] = {
        Strategy.GUIDED: lambda: GuidedSearch(space, foresight, seed=seed, goes_on=goes_on, at_once=at_once),
        Strategy.BASIC: lambda: fallback(one_by_one=True),
        Strategy.MSE: lambda: fallback(one_by_one=False),
        Strategy.BAYESIAN: lambda: sampled(Sampler.MULTIVARIATE_TPE),
        Strategy.TPE: lambda: sampled(Sampler.TPE),
        Strategy.RANDOM: lambda: sampled(Sampler.RANDOM),
        Strategy.EXHAUSTIVE: lambda: ExhaustiveSearch(space, goes_on=goes_on),
    }
    return strategies[strategy]()
