import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tuner.config import parse_config
from tuner.explanation import Explanation, explain
from tuner.precision import BF16, FP32, INT8, PrecisionPlan
from tuner.run_record import RunFacts, RunRecord
from tuner.study import StudyRecord
from tuner.trial import CompletedTrial, FailedTrial, Measurement, Proposal, RejectedTrial, Rejection, Trial

ALL = PrecisionPlan({"a": INT8, "b": INT8, "c": INT8})
WITHOUT_A = ALL.with_ops(["a"], FP32)
DAMAGE = {"a": 0.6, "b": 0.3, "c": 0.1}
COSTS = {"a": {"fp32_us": 100.0, "bf16_us": 80.0, "int8_us": 40.0, "int8_alone_us": 60.0}}


def measured(accuracy: float) -> Measurement:
    return Measurement(accuracy, 400, 2.0, 3.0, 1000, 0.5)


def tried(number: int, plan: PrecisionPlan, accuracy: float, images: int = 100, **changes: Any) -> CompletedTrial:
    proposal = Proposal(plan, images, idea="an idea")
    applied = changes.get("applied", plan)
    return CompletedTrial(number, proposal, applied, f"graph {number}", measured(accuracy), 0.5)


def run_of(
    *trials: Trial,
    settings: Mapping[str, Any] | None = None,
    float_ops: Mapping[str, str] | None = None,
    best: int | None = None,
    interval: tuple[float, float] | None = None,
    flags: str = "avx2",
    **parts: Any,
) -> RunRecord:
    """A run with a baseline of 0.5 and a limit of 1 %. best: the trial that its result names."""
    config = parse_config({"model": {"name": "m"}, **(settings or {})}, "here")
    facts = RunFacts("", "", "", "f.pb", "q.pb", "", {}, {"CPU instructions": flags}, float_ops or {}, {}, {})
    result = None
    if best is not None:
        result = {"best": {"graph_sha256": f"graph {best}", "loss_interval_95": interval}}
    study = StudyRecord({}, measured(0.5), trials, {})
    return RunRecord(Path("w"), facts, config, study, result, **parts)


def rules(found: Explanation) -> list[str]:
    return [advice.rule for advice in found.advice]


def test_an_op_that_the_search_left_out_of_int8() -> None:
    run = run_of(tried(0, ALL, 0.49), tried(1, WITHOUT_A, 0.499), best=1, damage=DAMAGE, costs=COSTS)
    found = explain(run)
    assert (found.trial, found.accepted, found.int8_ops) == (1, True, 2)
    assert found.lost == pytest.approx(0.002)
    (op,) = found.ops
    assert (op.op, op.dtype, op.kind) == ("a", "fp32", "search")
    assert "trial 2 (an idea)" in op.reason
    assert (op.damage, op.rank, op.share, op.int8_saves_us) == (0.6, 1, pytest.approx(0.6), 60)
    assert op.int8_loses == pytest.approx(0.6 * 0.02)
    assert json.loads(json.dumps(found.to_json()))["ops"][0]["kind"] == "search"


def test_each_kind_of_reason() -> None:
    plan = PrecisionPlan({"applied": INT8, "pays": INT8, "pinned": FP32, "unprofitable": FP32, "left": BF16})
    best = tried(0, plan, 0.5, applied=plan.with_ops(["applied"], FP32))
    settings = {"quantization": {"op_wise": {"pinned": {"activation": {"dtype": ["fp32"]}}, "elsewhere": {}}}}
    refused = {"depth": "a dilation", "unprofitable": "alone"}
    found = explain(run_of(best, settings=settings, float_ops=refused, best=0))
    assert {one.op: (one.kind, one.dtype) for one in found.ops} == {
        "applied": ("not applied", "fp32"),
        "depth": ("cannot", "fp32"),
        "left": ("search", "bf16"),
        "pinned": ("pinned", "fp32"),
        "unprofitable": ("kept", "fp32"),
    }
    reasons = {one.op: one.reason for one in found.ops}
    assert (reasons["depth"], reasons["pinned"]) == ("a dilation", "the settings allow fp32 only")


def test_one_op_with_most_of_the_damage_is_to_stay_in_float() -> None:
    run = run_of(tried(0, ALL, 0.493), tried(1, ALL.with_ops(ALL, BF16), 0.5), best=1, damage=DAMAGE)
    (advice,) = explain(run).advice
    assert advice.rule == "one op"
    assert advice.try_next == "quantization.op_wise: {a: {activation: {dtype: [fp32]}}}"
    assert advice.why == "it carries 60% of the damage of int8, which loses 1.40%"


@pytest.mark.parametrize(("accuracy", "damage"), [(0.48, DAMAGE), (0.493, {"a": 0.4, "b": 0.35, "c": 0.25})])
def test_else_no_single_op_is_named(accuracy: float, damage: dict[str, float]) -> None:
    """It loses far more than the limit, or no op has half of the damage."""
    run = run_of(tried(0, ALL, accuracy), tried(1, ALL.with_ops(ALL, BF16), 0.5), best=1, damage=damage)
    assert rules(explain(run)) == []


def test_nothing_passed() -> None:
    few = run_of(tried(0, ALL, 0.4, images=20), best=0, flags="avx2 amx_bf16", settings={})
    assert rules(explain(few)) == ["bf16", "calibration images", "limit"]
    assert explain(few).advice[1].try_next == "a calibration set of 100 images"  # all 20 that there are were used
    settings = {"quantization": {"calibration": {"sampling_size": 20}}}
    some = run_of(tried(0, ALL, 0.4, images=20), best=0, flags="avx2 amx_bf16", settings=settings)
    assert explain(some).advice[1].try_next == "quantization.calibration.sampling_size: 100"
    ended = run_of(tried(0, ALL, 0.4), best=0, settings={"tuning": {"exit_policy": {"max_trials": 1}}})
    assert rules(explain(ended)) == ["trials", "limit"]
    assert explain(ended).advice[1].try_next.startswith("a limit of at least 20.00%")
    tried_bf16 = run_of(tried(0, ALL, 0.4), tried(1, ALL.with_ops(["b"], BF16), 0.39), best=0, flags="amx_bf16")
    assert rules(explain(tried_bf16)) == ["limit"]


def test_an_interval_on_both_sides_of_the_limit_wants_more_images() -> None:
    spanning = run_of(tried(0, ALL, 0.4975), best=0, interval=(0.0, 0.02))
    (advice,) = explain(spanning).advice
    assert advice.rule == "evaluation images"
    assert advice.try_next == "more evaluation images, about 1600 instead of 400"
    assert rules(explain(run_of(tried(0, ALL, 0.4975), best=0, interval=(0.0, 0.009)))) == []


def test_runs_that_did_not_end() -> None:
    assert rules(explain(run_of(tried(0, ALL, 0.4975)))) == ["unfinished"]
    rejected = RejectedTrial(0, Proposal(ALL, 100), ALL, "graph 0", Rejection(100, 1, 0.3, 0.1, 0.005), 0.5)
    nothing = explain(run_of(rejected, FailedTrial(1, Proposal(ALL, 100), "no kernel")))
    assert (nothing.trial, nothing.ops, rules(nothing)) == (None, (), ["no measurement"])
