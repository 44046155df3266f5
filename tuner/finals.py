"""The last word on speed: the best int8 graph against the same model in bf16 and in float, timed in turns."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from tuner.config import TuningConfig, resolve_op_rules
from tuner.criterion import best_trial, passes
from tuner.errors import ModelError, QuantizationError
from tuner.evaluation.latency import LatencyFigures
from tuner.meter import timed_in_turns
from tuner.model.detection_model import DetectionModel
from tuner.model.runner import ModelRunner
from tuner.precision import BF16, FP32, Dtype, OpPrecision, PrecisionPlan
from tuner.quantization.cpu import CpuFeatures
from tuner.trial import CompletedTrial, Measurement, Trial
from tuner.trial_runner import TrialRunner

# How much faster than the int8 graph another one has to be to take its place: less is noise.
WORTHWHILE_GAIN = 0.05

FLOAT = "float"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Final:
    """What is handed over. baseline, best: with latencies that were measured in turns.

    rewritten_ms: median latency of the rewritten float model, None where nothing was rewritten.
    note: which graph took the place of the best int8 one and why, or "".
    """

    baseline: Measurement
    best: CompletedTrial
    graph: DetectionModel
    rewritten_ms: float | None
    note: str


def of_search(trials: Sequence[Trial], choices: Mapping[str, Sequence[OpPrecision]]) -> list[Trial]:
    """The trials that the search asked for: not those of plans beyond its `choices`, and of no float for everything."""
    has_int8 = any(precision.dtype is Dtype.INT8 for allowed in choices.values() for precision in allowed)
    return [
        trial
        for trial in trials
        if all(trial.requested[op] in allowed for op, allowed in choices.items())
        and not (has_int8 and all(precision == FP32 for precision in trial.requested.values()))
    ]


def other_plans(
    config: TuningConfig, every_op: Sequence[str], best: PrecisionPlan, features: CpuFeatures | None
) -> dict[str, PrecisionPlan]:
    """The plans that could be faster than the best int8 one, by what they are called, as far as the settings allow.

    bf16 for all operators and for those that int8 leaves in float, where the CPU multiplies it and no rule names other
    dtypes; and float for all operators, which no graph that is handed over should be slower than. None where settings
    want int8 only, or for the engine `inc`. every_op: all of the model's, of which rules may speak.
    """
    if config.quantization.engine == "inc" or config.quantization.int8_only:
        return {}
    rules = config.quantization.op_wise, list(every_op), config.quantization.model_wise
    allowed = resolve_op_rules(*rules, unnamed=tuple(Dtype))
    plans = {FLOAT: {op: FP32 if FP32 in allowed[op] else best[op] for op in best}}
    if features is not None and features.has_bfloat16:
        plans["bf16"] = {op: BF16 if BF16 in allowed[op] else best[op] for op in best}
        plans["int8 and bf16"] = {op: BF16 if best[op] == FP32 and BF16 in allowed[op] else best[op] for op in best}
    named = {name: PrecisionPlan(plan) for name, plan in plans.items()}
    return {name: plan for name, plan in named.items() if plan != best}


def choose_fastest(
    config: TuningConfig,
    plans: Mapping[str, PrecisionPlan],
    runner: TrialRunner,
    *,
    models: Sequence[DetectionModel],
    image: NDArray[Any],
    baseline: Measurement,
    best: CompletedTrial,
) -> Final:
    """Time the best graph, the float model and other plans in turns; a faster plan that passes takes the best's place.

    A plan that is not faster costs no evaluation, one that cannot be made or run is left out. Where the best does not
    pass, any plan but float that does is better, and so is one that loses less.
    models: the float one and, where there is one, its rewritten form. image: [1, H, W, 3].
    """
    criterion, count = config.tuning.accuracy_criterion, best.calibration_images
    best_passes = passes(criterion, baseline, best.measurement)
    graph = runner.graph(best)
    others = _made(runner, plans, best, image)
    if not best_passes:
        others.pop(FLOAT, None)
    graphs = [*models, graph, *others.values()]
    round_ms = len(graphs) * max(baseline.latency_ms, best.measurement.latency_ms)
    latencies = timed_in_turns(config, graphs, image, round_ms)
    before, after, others_after = latencies[0], latencies[len(models)], latencies[len(models) + 1 :]
    baseline = replace(baseline, latency_ms=before.median_ms, latency_p90_ms=before.p90_ms)
    rewritten_ms = latencies[1].median_ms if len(models) > 1 else None
    limit_ms = after.median_ms * (1 - WORTHWHILE_GAIN) if best_passes else math.inf
    figures_of = dict(zip(others, others_after, strict=True))
    tried: list[tuple[str, CompletedTrial]] = []
    for name, figures in sorted(figures_of.items(), key=lambda item: item[1].median_ms):
        if figures.median_ms > limit_ms:
            break
        trial = runner.run(plans[name], count)
        if isinstance(trial, CompletedTrial):
            tried.append((name, trial))
            if passes(criterion, baseline, trial.measurement):
                break
    chosen = best_trial(criterion, baseline, [best, *(trial for _, trial in tried)]) if not best_passes else None
    for name, trial in tried:
        if trial is chosen or (best_passes and passes(criterion, baseline, trial.measurement)):
            figures = figures_of[name]
            note = f"{name} is handed over: {figures.median_ms:.1f} ms, the best int8 plan {after.median_ms:.1f} ms"
            return Final(baseline, _timed(trial, figures), others[name], rewritten_ms, note)
    return Final(baseline, _timed(best, after), graph, rewritten_ms, "")


def still_in_float(reasons: Mapping[str, str], best: CompletedTrial | None) -> dict[str, str]:
    """Those of the operators kept from int8 that are float in what is handed over, with why."""
    return {op: why for op, why in reasons.items() if best is None or best.applied[op] == FP32}


def _made(
    runner: TrialRunner, plans: Mapping[str, PrecisionPlan], best: CompletedTrial, image: NDArray[Any]
) -> dict[str, DetectionModel]:
    """The graphs of plans that can be made and run, each but once: casts that do not pay are left out of bf16."""
    made: dict[str, DetectionModel] = {}
    known = {best.graph_sha256}
    for name, plan in plans.items():
        try:
            graph = runner.quantize(plan, best.calibration_images)
            if graph.sha256 not in known:
                with ModelRunner(graph) as trial_run:
                    trial_run.run(image)
                made[name] = graph
                known.add(graph.sha256)
        except (QuantizationError, ModelError) as error:
            _log.warning("%s cannot be compared: %s", name, error)
    return made


def _timed(trial: CompletedTrial, figures: LatencyFigures) -> CompletedTrial:
    timed = replace(trial.measurement, latency_ms=figures.median_ms, latency_p90_ms=figures.p90_ms)
    return replace(trial, measurement=timed)
