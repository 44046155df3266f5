"""The default strategy: the fastest plans first, then one nested path, bisected; then samples near its boundary."""

import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

from tuner.precision import BF16, FP32, Correction, Dtype, Granularity, OpPrecision, PrecisionPlan, RangeAlgorithm
from tuner.search.sampling import Parameters, Sampler, draws_among, suggestions
from tuner.search.space import Foresight, Outcome, Outcomes, SearchSpace
from tuner.trial import Proposal

# A plan has to promise so much less cost than the best one that passes: less is beyond what can be predicted.
WORTHWHILE = 0.03
# A plan without int8 goes first when it promises so much less: below that, prediction errs, and int8 files are smaller.
HANDICAP = 1.1
# Steps along the path double, from one part in so many of its length.
FIRST_STEP = 32
# So many operators on either side of the boundary are toggled one by one.
NEAR = 8
# So many draws are looked at for one that promises to be cheaper, before the search gives up.
MOST_DRAWS = 30
# Where nothing passed, the boundary is taken to lie at this share of the path.
GUESSED_BOUNDARY = 0.1

_AS_ALLOWED, _NO_CORRECTION = "as allowed", "none"


class GuidedSearch:
    """Few evaluations to the cheapest plan that passes.

    1. All int8, and where that passes nothing else, unless the search `goes_on` or costs cannot be foreseen: who asks
       compares it with plans of other kinds by the clock. Where it does not pass, int8 under other numbers of
       calibration images and the plans of other kinds (int8 and bf16, bf16), cheapest first by prediction, as long as
       they promise a gain.
    2. The path: operators leave int8 one after another, most damage for the time that they save first, so that each
       plan holds the one before it. Its steps double until a plan passes, then the last step is bisected. Plans that
       promise no gain over the best that passed are left out. The path need not be monotone: a plan is accepted by
       what was measured of it alone.
    3. While nothing passes, or for as long as `goes_on`: samples of range algorithm, weight granularity, number of
       images, correction, and toggles of the operators nearest to the boundary; `at_once` of them do without the
       outcomes of each other, see `Draws`.
    """

    def __init__(
        self, space: SearchSpace, foresight: Foresight, *, seed: int = 0, goes_on: bool = False, at_once: int = 1
    ) -> None:
        self._space, self._foresight, self._seed = space, foresight, seed
        self._goes_on, self._at_once = goes_on, at_once
        self._ways_out = space.ways_out()
        self._outcomes = Outcomes()
        self._costs: dict[Proposal, float | None] = {}
        self._proposals = self._plan()
        self.ending = "every plan that promises a gain was tried"

    def propose(self) -> Proposal | None:
        """The next plan to try; see `Search`."""
        return next((proposal for proposal in self._proposals if proposal not in self._outcomes), None)

    def record(self, proposal: Proposal, outcome: Outcome) -> None:
        """Say how a proposal went; see `Search`."""
        self._outcomes.record(proposal, outcome)

    def _plan(self) -> Iterator[Proposal]:
        first, *others = self._anchors()
        yield first
        if self._outcomes[first].passes and not self._goes_on and self._foresight.knows_costs:
            self.ending = "the first plan that meets the criterion was found"
            return
        anchors = [first, *sorted(others, key=self._handicapped_cost)]  # stable: equal costs keep their order
        yield from (anchor for anchor in anchors[1:] if self._promises_gain(anchor, anchors))
        start = self._best_int8(anchors)
        order: list[str] = []
        boundary = 0
        if start is not None and not self._outcomes[start].passes and self._promises_gain(start, anchors):
            order = self._order(start)
            passing = yield from self._walk(start, order, self._longest(start, order, anchors))
            boundary = passing or max(1, int(len(order) * GUESSED_BOUNDARY))
        if start is not None and (self._goes_on or not self._any_passes):
            order = order or self._order(start)
            yield from self._sample(start, order, boundary)

    def _anchors(self) -> list[Proposal]:
        """The plans of one kind, int8 first, and that under each number of images, the largest first."""
        proposals = []
        for name, plan in self._space.anchors().items():
            sizes = sorted(set(self._space.calibration_images), reverse=True) if name == "int8" else []
            for images in sizes or [self._space.most_images]:
                corrections = self._space.corrections if _has_int8(plan) else ()
                proposals.append(Proposal(plan, images, corrections, idea=name))
        return proposals

    def _handicapped_cost(self, proposal: Proposal) -> float:
        return (self._cost(proposal) or 0.0) * (1 if _has_int8(proposal.plan) else HANDICAP)

    def _best_int8(self, anchors: Sequence[Proposal]) -> Proposal | None:
        """Of the anchors that hold int8 and were tried, the one that lost least."""
        tried = [anchor for anchor in anchors if anchor in self._outcomes and _has_int8(anchor.plan)]
        return min(tried, key=lambda anchor: self._outcomes[anchor].loss, default=None)

    def _order(self, start: Proposal) -> list[str]:
        """The operators that may leave int8, the one with most damage for the time that it saves first."""
        damage, gains = self._foresight.damage(start), self._foresight.gains()
        leaving = [op for op in self._ways_out if start.plan[op].dtype is Dtype.INT8]
        least = min((gain for gain in gains.values() if gain > 0), default=1.0)

        def damage_per_gain(op: str) -> float:
            return damage.get(op, 0.0) / max(gains.get(op, least), least)

        return sorted(leaving, key=lambda op: (-damage_per_gain(op), op))

    def _longest(self, start: Proposal, order: Sequence[str], anchors: Sequence[Proposal]) -> int:
        """The most operators out of int8 with which the path still promises a gain over the plans of one kind."""
        # With all out of it the plan has no int8 left.
        last = len(order) - (len(order) == start.plan.count()[Dtype.INT8])
        if last <= 0 or self._promises_gain(self._on_path(start, order, last), anchors):
            return max(last, 0)
        promising = 0
        while last - promising > 1:
            count = (promising + last) // 2
            if self._promises_gain(self._on_path(start, order, count), anchors):
                promising = count
            else:
                last = count
        return promising

    def _walk(self, start: Proposal, order: Sequence[str], last: int) -> Generator[Proposal, None, int]:
        """Look for the fewest operators out of int8, at most `last`; returns how many passed, 0 where none did."""
        failing, passing = 0, 0
        step = max(1, len(order) // FIRST_STEP)
        while not passing and failing < last:
            count = min(step, last)
            proposal = self._on_path(start, order, count)
            yield proposal
            failing, passing = (failing, count) if self._outcomes[proposal].passes else (count, 0)
            step *= 2
        while passing - failing > 1:
            count = (failing + passing) // 2
            proposal = self._on_path(start, order, count)
            yield proposal
            failing, passing = (failing, count) if self._outcomes[proposal].passes else (count, passing)
        return passing

    def _on_path(self, start: Proposal, order: Sequence[str], count: int) -> Proposal:
        plan = self._out_of_int8(start.plan, order[:count])
        return replace(start, plan=plan, idea=f"{start.idea}, {count} of {len(order)} ops out of int8")

    def _out_of_int8(self, plan: PrecisionPlan, ops: Sequence[str]) -> PrecisionPlan:
        decided = {op: self._ways_out[op][0] for op in ops}
        return PrecisionPlan({op: decided.get(op, decision) for op, decision in plan.items()})

    def _sample(self, start: Proposal, order: Sequence[str], boundary: int) -> Iterator[Proposal]:
        choices = self._parameters(start, order, boundary)
        while self._goes_on or not self._any_passes:
            earlier = draws_among(self._outcomes, choices, self._at_once)
            passing = [one for one, outcome in self._outcomes.items() if outcome.passes and one not in earlier.group]
            draws = suggestions(choices, earlier.drawn, Sampler.TPE, self._seed + len(self._outcomes))
            drawn = (self._drawn(start, order, boundary, parameters) for parameters in islice(draws, MOST_DRAWS))
            promising = (one for one in drawn if _has_int8(one.plan) and self._promises_gain(one, passing))
            found = next((one for one in promising if one not in self._outcomes), None)
            if found is None:
                self.ending = f"none of {MOST_DRAWS} more samples promised a gain"
                return
            yield found

    def _parameters(self, start: Proposal, order: Sequence[str], boundary: int) -> dict[str, Sequence[str | int]]:
        """The values of each parameter of a sample; those with one value only are left out."""
        int8 = [
            decision for allowed in self._space.choices.values() for decision in allowed if decision.dtype is Dtype.INT8
        ]
        corrections = [*self._space.optional_corrections] if not self._space.corrections else []
        near = order[max(0, boundary - NEAR) : boundary + NEAR]
        parameters: dict[str, Sequence[str | int]] = {
            "range_algorithm": [_AS_ALLOWED, *sorted({decision.activation_algorithm.value for decision in int8})],
            "weight_granularity": [_AS_ALLOWED, *sorted({decision.weight_granularity.value for decision in int8})],
            "calibration_images": sorted(set(self._space.calibration_images)),
            "correction": [_NO_CORRECTION, *(correction.value for correction in corrections)],
            "out_of_int8_becomes": [decision.dtype.value for decision in (BF16, FP32) if self._is_way_out(decision)],
            **{f"toggle {op}": ["no", "yes"] for op in near},
        }
        return {name: values for name, values in parameters.items() if len(values) > 1}

    def _is_way_out(self, decision: OpPrecision) -> bool:
        return any(decision in ways for ways in self._ways_out.values())

    def _drawn(self, start: Proposal, order: Sequence[str], boundary: int, parameters: Parameters) -> Proposal:
        """The plan of a sample."""
        toggled = {name.removeprefix("toggle ") for name, value in parameters.items() if value == "yes"}
        leaving = {op for index, op in enumerate(order) if (index < boundary) != (op in toggled)}
        way_out = parameters.get("out_of_int8_becomes")
        decided = {}
        for op, decision in start.plan.items():
            if op in leaving:
                ways = self._ways_out[op]
                decided[op] = next((way for way in ways if way.dtype.value == way_out), ways[0])
            else:
                decided[op] = self._in_form(op, decision, parameters)
        correction = parameters.get("correction", _NO_CORRECTION)
        return Proposal(
            PrecisionPlan(decided),
            int(parameters.get("calibration_images", start.calibration_images)),
            start.corrections if correction == _NO_CORRECTION else (Correction(str(correction)),),
            parameters,
            f"sample, {len(leaving)} of {len(order)} ops out of int8",
        )

    def _in_form(self, op: str, decision: OpPrecision, parameters: Parameters) -> OpPrecision:
        """The decision in the form that the parameters name, where the operator may have it."""
        if decision.dtype is not Dtype.INT8:
            return decision
        algorithm = parameters.get("range_algorithm", _AS_ALLOWED)
        granularity = parameters.get("weight_granularity", _AS_ALLOWED)
        wanted = decision
        if algorithm != _AS_ALLOWED:
            wanted = replace(wanted, activation_algorithm=RangeAlgorithm(str(algorithm)))
        if granularity != _AS_ALLOWED:
            wanted = replace(wanted, weight_granularity=Granularity(str(granularity)))
        return wanted if wanted in self._space.choices[op] else decision

    @property
    def _any_passes(self) -> bool:
        return any(outcome.passes for outcome in self._outcomes.values())

    def _promises_gain(self, proposal: Proposal, among: Iterable[Proposal]) -> bool:
        """Whether a proposal should cost less than every one `among` these that passed, or nobody can tell."""
        cost = self._cost(proposal)
        if cost is None:
            return True
        passing = [self._cost(one) for one in among if one in self._outcomes and self._outcomes[one].passes]
        return cost < min((known for known in passing if known is not None), default=math.inf) * (1 - WORTHWHILE)

    def _cost(self, proposal: Proposal) -> float | None:
        if proposal not in self._costs:
            self._costs[proposal] = self._foresight.cost(proposal)
        return self._costs[proposal]


def _has_int8(plan: PrecisionPlan) -> bool:
    return any(decision.dtype is Dtype.INT8 for decision in plan.values())
