"""Why each operator that is not int8 in what a run handed over is not, and what to try next, by stated rules."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from tuner.config import resolve_op_rules
from tuner.criterion import loss, passes
from tuner.errors import ConfigError, EvaluationError
from tuner.precision import Dtype, PrecisionPlan
from tuner.run_record import RunRecord
from tuner.trial import CompletedTrial, RejectedTrial, Trial

SCHEMA = 1
# Flags of CPUs that multiply bfloat16, as /proc/cpuinfo has them.
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16"}
# One operator carries most of the damage from this share on; the loss is just above the limit up to so many limits.
MOST_OF_IT, JUST_ABOVE = 0.5, 2.0
FEW_CALIBRATION_IMAGES = 100


@dataclass(frozen=True, slots=True)
class FloatOp:
    """An operator that is not int8 in the graph that was handed over.

    kind: "cannot" (in no plan: refused by the lowering), "kept" (from int8 before the search: it does not pay, or has
    no kernel), "pinned" (by the settings), "search" (left out of int8 by the plan), "not applied" (int8 was asked for).
    damage, rank, share: how much more wrong the results are with it in int8, squared and relative; its place, 1 for the
    most, and its share of the sum over operators. int8_saves_us: what int8 would save in a run over what it is, among
    int8 operators. int8_loses: the loss of the plan with most int8, in the limit's unit, times `share`: a rough guide,
    as mAP does not follow the error of raw results in proportion. None where it was not measured.
    """

    op: str
    dtype: str
    kind: str
    reason: str
    damage: float | None = None
    rank: int | None = None
    share: float | None = None
    int8_saves_us: float | None = None
    int8_loses: float | None = None


@dataclass(frozen=True, slots=True)
class Advice:
    """What to try next. rule: its name, as docs/explain.md lists them."""

    rule: str
    try_next: str
    why: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """What became of a run's operators.

    trial, idea: the plan explained, None without any. lost, limit: as `criterion` counts, relative or absolute.
    ops: those with most damage first, then by name. advice: the first one first.
    """

    trial: int | None
    idea: str
    criterion: str
    lost: float | None
    limit: float
    accepted: bool
    int8_ops: int
    ops: tuple[FloatOp, ...]
    advice: tuple[Advice, ...]

    def to_json(self) -> dict[str, Any]:
        """The explanation as a JSON object."""
        return {"schema": SCHEMA, **asdict(self)}


def explain(run: RunRecord) -> Explanation:
    """Explain the trial that was handed over, or that would be if the run ended now."""
    best, limit = run.best, run.config.tuning.accuracy_criterion.limit
    lost = None if best is None else _loss(run, best)
    return Explanation(
        trial=None if best is None else best.number,
        idea="" if best is None else best.proposal.idea,
        criterion=run.config.tuning.accuracy_criterion.kind,
        lost=lost,
        limit=limit,
        accepted=best is not None and _passes(run, best),
        int8_ops=0 if best is None else best.applied.count()[Dtype.INT8],
        ops=() if best is None else tuple(sorted(_float_ops(run, best), key=lambda one: (-(one.damage or 0), one.op))),
        advice=tuple(_advice(run, best, lost)),
    )


def _float_ops(run: RunRecord, best: CompletedTrial) -> Iterator[FloatOp]:
    damage, costs = run.damage or {}, run.costs or {}
    whole = sum(damage.values())
    ranks = {op: number for number, op in enumerate(sorted(damage, key=lambda op: (-damage[op], op)), start=1)}
    most_lost = _loss(run, most_int8) if (most_int8 := _most_int8(run)) is not None else None
    pinned = _pinned(run, best.applied)
    for op, reason in run.facts.float_ops.items():
        if op not in best.applied:
            yield FloatOp(op, Dtype.FP32.value, "cannot", reason)
    for op, decision in best.applied.items():
        if decision.dtype is Dtype.INT8:
            continue
        dtype, times = decision.dtype.value, costs.get(op)
        share = damage[op] / whole if op in damage and whole else None
        yield FloatOp(
            op,
            dtype,
            *_reason(run, best, op, pinned.get(op)),
            damage=damage.get(op),
            rank=ranks.get(op),
            share=share,
            int8_saves_us=None if times is None else times[f"{dtype}_us"] - times["int8_us"],
            int8_loses=None if share is None or most_lost is None else share * most_lost,
        )


def _reason(run: RunRecord, best: CompletedTrial, op: str, pinned: str | None) -> tuple[str, str]:
    """The kind, and the reason in words."""
    if pinned is not None:
        return "pinned", pinned
    # What is bf16 by the plan may have had no int8 to leave.
    if op in run.facts.float_ops:
        return "kept", run.facts.float_ops[op]
    if best.proposal.plan[op].dtype is Dtype.INT8:
        return "not applied", "the plan asks for int8, and the graph has it in float"
    return "search", f"trial {best.number + 1} ({best.proposal.idea or 'a plan'}) has it so"


def _pinned(run: RunRecord, plan: PrecisionPlan) -> dict[str, str]:
    """The operators that the settings do not let be int8, with what they may be."""
    settings = run.config.quantization
    # A rule may name operators of the model that no plan has.
    names = [*plan, *(op for op in run.facts.float_ops if op not in plan)]
    names += [pattern for pattern in settings.op_wise if pattern not in names]
    try:
        allowed = resolve_op_rules(settings.op_wise, names, settings.model_wise, unnamed=tuple(Dtype))
    except ConfigError:
        return {}
    dtypes = {op: dict.fromkeys(one.dtype.value for one in allowed[op]) for op in plan}
    return {
        op: f"the settings allow {' or '.join(found)} only"
        for op, found in dtypes.items()
        if Dtype.INT8.value not in found
    }


def _advice(run: RunRecord, best: CompletedTrial | None, lost: float | None) -> Iterator[Advice]:
    """What the rules say, in their order."""
    criterion, trials = run.config.tuning.accuracy_criterion, run.trials
    if best is None or lost is None:
        yield Advice(
            "no measurement", "let the run measure a plan: tuner tune --resume", "no plan was measured in full"
        )
        return
    if run.result is None:
        yield Advice("unfinished", "let the run end: tuner tune --resume", "it has written no result yet")
    accepted = _passes(run, best)
    most_int8 = _most_int8(run)
    int8_lost = None if most_int8 is None else _loss(run, most_int8)
    if accepted and best.applied == getattr(most_int8, "applied", None):
        yield from _about_interval(run, lost, criterion.limit)
        return
    if len(trials) >= run.config.tuning.exit_policy.max_trials:
        yield Advice("trials", "--resume with a larger --max_trials", f"the search ended after {len(trials)} trials")
    if not accepted and _may_have_bfloat16(run):
        yield Advice(
            "bf16", "allow bf16 (quantization.model_wise.activation.dtype)", "this CPU multiplies it; no plan had it"
        )
    if int8_lost is not None and int8_lost > criterion.limit:
        yield from _about_one_op(run, int8_lost)
        images = max(trial.proposal.calibration_images for trial in trials)
        if images < FEW_CALIBRATION_IMAGES:
            there_are_more = images >= max(run.config.quantization.calibration.sampling_sizes)
            yield Advice(
                "calibration images",
                f"quantization.calibration.sampling_size: {FEW_CALIBRATION_IMAGES}"
                if there_are_more
                else f"a calibration set of {FEW_CALIBRATION_IMAGES} images",
                f"ranges come from {images} images, and int8 loses {_as_limit(run, int8_lost)}",
            )
    yield from _about_interval(run, lost, criterion.limit)
    if not accepted:
        yield Advice(
            "limit",
            f"a limit of at least {_as_limit(run, lost)}, if that is acceptable",
            f"the best plan loses {_as_limit(run, lost)}, the limit is {_as_limit(run, criterion.limit)}",
        )


def _about_one_op(run: RunRecord, int8_lost: float) -> Iterator[Advice]:
    """Where the plan with most int8 is just above the limit and one operator carries most of the damage."""
    damage, limit = run.damage or {}, run.config.tuning.accuracy_criterion.limit
    whole = sum(damage.values())
    if not whole:
        return
    op = max(damage, key=lambda one: (damage[one], one))
    share = damage[op] / whole
    if share >= MOST_OF_IT and int8_lost <= JUST_ABOVE * limit and not run.config.quantization.op_wise:
        yield Advice(
            "one op",
            f"quantization.op_wise: {{{op}: {{activation: {{dtype: [fp32]}}}}}}",
            f"it carries {share:.0%} of the damage of int8, which loses {_as_limit(run, int8_lost)}",
        )


def _about_interval(run: RunRecord, lost: float, limit: float) -> Iterator[Advice]:
    """Where the interval of the loss spans the limit; half of it shrinks as the root of the number of images."""
    interval = None if run.result is None or run.result["best"] is None else run.result["best"].get("loss_interval_95")
    if interval is None or run.baseline is None or not interval[0] < limit < interval[1]:
        return
    half, margin = (interval[1] - interval[0]) / 2, abs(limit - lost)
    wanted = ""
    if margin:
        needed = round(run.baseline.images * (half / margin) ** 2)
        # Two digits of it mean something.
        wanted = f", about {round(needed, 2 - len(str(needed)))} instead of {run.baseline.images}"
    yield Advice(
        "evaluation images",
        f"more evaluation images{wanted}",
        f"on other images the loss may lie from {_as_limit(run, interval[0])} to {_as_limit(run, interval[1])}, "
        f"on both sides of the limit of {_as_limit(run, limit)}",
    )


def _may_have_bfloat16(run: RunRecord) -> bool:
    """Whether the CPU multiplies bf16 and no plan had any."""
    flags = set(run.facts.environment.get("CPU instructions", "").split())
    tried = any(decision.dtype is Dtype.BF16 for trial in run.trials for decision in trial.proposal.plan.values())
    return not flags.isdisjoint(BFLOAT16_FLAGS) and not tried and not run.config.quantization.int8_only


def _most_int8(run: RunRecord) -> CompletedTrial | RejectedTrial | None:
    """The measured or rejected trial with most int8 operators; of equal ones the first."""
    tried = [trial for trial in run.trials if isinstance(trial, CompletedTrial | RejectedTrial)]
    found = max(tried, key=lambda trial: trial.applied.count()[Dtype.INT8], default=None)
    return None if found is None or not found.applied.count()[Dtype.INT8] else found


def _loss(run: RunRecord, trial: Trial) -> float | None:
    if isinstance(trial, RejectedTrial):
        return trial.rejection.loss
    if not isinstance(trial, CompletedTrial) or run.baseline is None:
        return None
    try:
        return loss(run.config.tuning.accuracy_criterion, run.baseline, trial.measurement)
    except EvaluationError:
        return None


def _passes(run: RunRecord, trial: CompletedTrial) -> bool:
    lost = _loss(run, trial)
    criterion = run.config.tuning.accuracy_criterion
    return lost is not None and run.baseline is not None and passes(criterion, run.baseline, trial.measurement)


def _as_limit(run: RunRecord, value: float) -> str:
    return f"{value:.2%}" if run.config.tuning.accuracy_criterion.kind == "relative" else f"{value:.4f}"
