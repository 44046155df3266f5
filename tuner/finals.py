"""The last word on cost: the plans that passed, those of one kind that were not tried, and float, timed in turns."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from tuner.config import AccuracyCriterion, Objective, TuningConfig
from tuner.criterion import cost, least_loss, passes
from tuner.errors import ModelError, QuantizationError
from tuner.evaluation.latency import LatencyFigures
from tuner.meter import Meter
from tuner.model.detection_model import DetectionModel
from tuner.model.runner import ModelRunner
from tuner.precision import FP32, PrecisionPlan
from tuner.search.space import SearchSpace
from tuner.timing import timed_in_turns
from tuner.trial import CompletedTrial, Measurement, Proposal, Trial
from tuner.trial_runner import TrialRunner

# How much less than the leading plan another one has to cost to take its place: less is noise.
WORTHWHILE_GAIN = 0.05
# So many plans that passed are timed.
MOST_COMPARED = 3

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Final:
    """What is handed over. baseline, best: with latencies that were measured in turns.

    rewritten_ms: median latency of the rewritten float model, None where nothing was rewritten.
    note: which plan took the place of the leading one and why, or "".
    """

    baseline: Measurement
    best: CompletedTrial
    graph: DetectionModel
    rewritten_ms: float | None
    note: str


@dataclass(frozen=True)
class _Candidate:
    """A plan that may be handed over. trial: how it went, None where it was not tried yet."""

    proposal: Proposal
    graph: DetectionModel
    trial: CompletedTrial | None
    latency: LatencyFigures | None = None

    @property
    def median_ms(self) -> float:
        return math.nan if self.latency is None else self.latency.median_ms


def choose_final(
    config: TuningConfig,
    runner: TrialRunner,
    meter: Meter,
    *,
    models: Sequence[DetectionModel],
    leading: Sequence[CompletedTrial],
    untried: Sequence[Proposal],
) -> Final:
    """Time plans and the float model in turns; the cheapest plan that passes and is confirmed is handed over.

    models: the float one and, where there is one, its rewritten form. leading: trials, the best first; where that
    passes all do. untried: plans that are tried only when they turn out to cost less than the best one. Where none is
    confirmed, the best is handed over, and fails.
    """
    criterion, baseline, image = config.tuning.accuracy_criterion, meter.baseline, meter.image
    candidates = [_Candidate(trial.proposal, runner.graph(trial), trial) for trial in leading[:MOST_COMPARED]]
    candidates += _made(runner, untried, {candidate.graph.sha256 for candidate in candidates}, image)
    graphs = [*models, *(candidate.graph for candidate in candidates)]
    round_ms = len(graphs) * max(baseline.latency_ms, leading[0].measurement.latency_ms)
    latencies = meter.workers.alone(timed_in_turns, config, graphs, image, round_ms)
    baseline = replace(baseline, latency_ms=latencies[0].median_ms, latency_p90_ms=latencies[0].p90_ms)
    rewritten_ms = latencies[1].median_ms if len(models) > 1 else None
    first, *others = [
        replace(candidate, latency=figures)
        for candidate, figures in zip(candidates, latencies[len(models) :], strict=True)
    ]

    def cost_of(candidate: _Candidate) -> float:
        return _cost(config.tuning.weights, criterion, baseline, candidate)

    others.sort(key=cost_of)
    limit = cost_of(first) * (1 - WORTHWHILE_GAIN)
    cheaper = [other for other in others if cost_of(other) <= limit]
    if passes(criterion, baseline, leading[0].measurement):
        order = [*cheaper, first, *(other for other in others if other not in cheaper and other.trial is not None)]
    else:
        # Better slow than too much lost; but float for everything is what there was before.
        cheaper = []
        order = [other for other in others if not other.proposal.plan.is_float]
    tried = {leading[0].number: first}
    for candidate in order:
        trial = candidate.trial or runner.run(candidate.proposal)
        if not isinstance(trial, CompletedTrial):
            continue
        tried[trial.number] = replace(candidate, trial=trial)
        if candidate in cheaper and cost_of(tried[trial.number]) > limit:
            continue  # accuracy or memory turned out to cost more than was assumed
        if passes(criterion, baseline, trial.measurement) and meter.confirm(candidate.graph):
            return _final(baseline, tried[trial.number], first, rewritten_ms)
    trials = [candidate.trial for candidate in tried.values() if candidate.trial is not None]
    best = least_loss(criterion, baseline, trials)
    return _final(baseline, tried[leading[0].number if best is None else best.number], first, rewritten_ms)


def untried_proposals(config: TuningConfig, space: SearchSpace, trials: Sequence[Trial]) -> list[Proposal]:
    """The plans of one kind that no trial was about, and float for all operators; only what the settings allow.

    No graph that is handed over should be slower than float. No more than there are trials left; none where settings
    want int8 only, or for the engine `inc`.
    """
    if config.quantization.engine == "inc" or config.quantization.int8_only:
        return []
    floats = PrecisionPlan({op: FP32 if FP32 in allowed else allowed[0] for op, allowed in space.choices.items()})
    plans = {**space.anchors(), "float": floats}
    known = {trial.proposal.plan for trial in trials}
    left = max(0, config.tuning.exit_policy.max_trials - len(trials))
    proposals = [
        Proposal(plan, space.most_images, space.corrections, idea=name)
        for name, plan in plans.items()
        if plan not in known
    ]
    return proposals[:left]


def _cost(
    weights: Mapping[Objective, float], criterion: AccuracyCriterion, baseline: Measurement, candidate: _Candidate
) -> float:
    """Of a plan that was not tried, accuracy and memory are taken to be the float model's."""
    known = baseline if candidate.trial is None else candidate.trial.measurement
    size_bytes = candidate.graph.size_bytes
    return cost(weights, criterion, baseline, replace(known, latency_ms=candidate.median_ms, size_bytes=size_bytes))


def _made(runner: TrialRunner, proposals: Sequence[Proposal], known: set[str], image: NDArray[Any]) -> list[_Candidate]:
    """The graphs of plans that can be made and run, each but once: casts that do not pay are left out of bf16."""
    made = []
    for proposal in proposals:
        try:
            graph = runner.engine.quantize(proposal)
            if graph.sha256 not in known:
                with ModelRunner(graph) as trial_run:
                    trial_run.run(image)
                made.append(_Candidate(proposal, graph, None))
                known.add(graph.sha256)
        except (QuantizationError, ModelError) as error:
            _log.warning("%s cannot be compared: %s", proposal.idea, error)
    return made


def _final(baseline: Measurement, chosen: _Candidate, first: _Candidate, rewritten_ms: float | None) -> Final:
    if chosen.trial is None or chosen.latency is None:
        raise ValueError("a plan is handed over only when it was tried and timed")
    figures, note = chosen.latency, ""
    if chosen.graph.sha256 != first.graph.sha256:
        note = (
            f"{chosen.proposal.idea} is handed over: {chosen.median_ms:.1f} ms, "
            f"{first.proposal.idea} took {first.median_ms:.1f} ms"
        )
    timed = replace(chosen.trial.measurement, latency_ms=figures.median_ms, latency_p90_ms=figures.p90_ms)
    return Final(baseline, replace(chosen.trial, measurement=timed), chosen.graph, rewritten_ms, note)
