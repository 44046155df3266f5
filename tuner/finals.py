"""The last word on speed: the best int8 graph against the same model in bf16 and in float, timed in turns."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from tuner.config import TuningConfig, resolve_op_rules
from tuner.criterion import passes
from tuner.evaluation.latency import LatencyFigures
from tuner.meter import timed_in_turns
from tuner.model.detection_model import DetectionModel
from tuner.precision import BF16, FP32, Dtype, OpPrecision, PrecisionPlan
from tuner.quantization.cpu import CpuFeatures
from tuner.trial import CompletedTrial, Measurement
from tuner.trial_runner import TrialRunner

# How much faster than the int8 graph another one has to be to take its place: less is noise.
WORTHWHILE_GAIN = 0.05

FLOAT = "float"


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


def other_plans(
    config: TuningConfig, ops: Sequence[str], best: PrecisionPlan, features: CpuFeatures | None
) -> dict[str, PrecisionPlan]:
    """The plans that could be faster than the best int8 one, by what they are called, as far as the settings allow.

    bf16 for all operators and for those that int8 leaves in float, where the CPU multiplies it and no rule names other
    dtypes; and float for all operators, which no graph that is handed over should be slower than. None where settings
    want int8 only, or for the engine `inc`.
    """
    if config.quantization.engine == "inc" or config.quantization.int8_only:
        return {}
    rules = config.quantization.op_wise, list(ops), config.quantization.model_wise
    allowed = resolve_op_rules(*rules, unnamed=tuple(Dtype))
    plans: dict[str, Mapping[str, OpPrecision]] = {}
    if features is not None and features.has_bfloat16:
        plans["bf16"] = {op: BF16 if BF16 in allowed[op] else best[op] for op in ops}
        plans["int8 and bf16"] = {op: BF16 if best[op] == FP32 and BF16 in allowed[op] else best[op] for op in ops}
    plans[FLOAT] = {op: FP32 if FP32 in allowed[op] else best[op] for op in ops}
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

    A plan that is not faster costs no evaluation. Where the best does not pass, any plan but float that does is better.
    models: the float one and, where there is one, its rewritten form. image: [1, H, W, 3].
    """
    criterion, count = config.tuning.accuracy_criterion, best.calibration_images
    best_passes = passes(criterion, baseline, best.measurement)
    if not best_passes:
        plans = {name: plan for name, plan in plans.items() if name != FLOAT}
    graph = runner.graph(best)
    made = {name: runner.quantize(plan, count) for name, plan in plans.items()}
    # Casts that cost more than bf16 saves are left out, so another plan can be the same graph.
    plans = {name: plan for name, plan in plans.items() if made[name].sha256 != graph.sha256}
    others = [made[name] for name in plans]
    graphs = [*models, graph, *others]
    latencies = timed_in_turns(
        config, graphs, image, len(graphs) * max(baseline.latency_ms, best.measurement.latency_ms)
    )
    before, after, others_after = latencies[0], latencies[len(models)], latencies[len(models) + 1 :]
    baseline = replace(baseline, latency_ms=before.median_ms, latency_p90_ms=before.p90_ms)
    rewritten_ms = latencies[1].median_ms if len(models) > 1 else None
    limit_ms = after.median_ms * (1 - WORTHWHILE_GAIN) if best_passes else math.inf
    candidates = sorted(zip(plans.items(), others, others_after, strict=True), key=lambda one: one[2].median_ms)
    for (name, plan), other, figures in candidates:
        if figures.median_ms > limit_ms:
            break
        trial = runner.run(plan, count)
        if isinstance(trial, CompletedTrial) and passes(criterion, baseline, trial.measurement):
            note = f"{name} is handed over: {figures.median_ms:.1f} ms, the best int8 plan {after.median_ms:.1f} ms"
            return Final(baseline, _timed(trial, figures), other, rewritten_ms, note)
    return Final(baseline, _timed(best, after), graph, rewritten_ms, "")


def _timed(trial: CompletedTrial, figures: LatencyFigures) -> CompletedTrial:
    timed = replace(trial.measurement, latency_ms=figures.median_ms, latency_p90_ms=figures.p90_ms)
    return replace(trial, measurement=timed)
