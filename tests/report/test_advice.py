from collections.abc import Sequence

import pytest

from tuner.precision import INT8, PrecisionPlan
from tuner.report.advice import advice, repeated_failure
from tuner.trial import CompletedTrial, FailedTrial, Measurement, Proposal, Trial

PLAN = PrecisionPlan({"stem": INT8, "mixed_5b/conv": INT8, "head": INT8})
PROPOSAL = Proposal(PLAN, 10)
COMPLETED = CompletedTrial(9, PROPOSAL, PLAN, "123abc", Measurement(0.5, 4, 1.0, 1.0, 10, 1.0), 1.0)


def failed(*causes: str) -> list[Trial]:
    return [FailedTrial(number, PROPOSAL, cause) for number, cause in enumerate(causes)]


@pytest.mark.parametrize(
    "causes",
    [
        ["a cause"] * 3,
        ["neural-compressor: not done after 60 s, ended"] * 3,
        ["stem: no kernel", "mixed_5b/conv: no kernel", "head: no kernel"],
        ["OOM for shape[1,2] of float", "OOM for shape[3, 4, 5] of float", "OOM for shape[6] of float"],
        [f"OOM when allocating tensor with shape[{n},{n + 7},3] and type float on /cpu:{n}" for n in range(3)],
        ["its weights stem/weights:0 are odd", "its weights head/w are odd", "its weights a/b/c_12 are odd"],
        ["q8.pb: failed while running: no", "/tmp/a/q9.pb: failed while running: no", "x/y: failed while running: no"],
    ],
)
def test_three_failures_of_one_cause_in_a_row_end_the_search(causes: Sequence[str]) -> None:
    told = repeated_failure([COMPLETED, *failed("another", *causes)])
    assert told.startswith(f"3 plans in a row failed alike: {causes[-1]}; ")
    assert told.endswith(advice(causes[-1]))
    assert "\n" not in told


@pytest.mark.parametrize(
    "trials",
    [
        [],
        failed("a", "a"),
        failed("a", "a", "b"),
        [*failed("a", "a", "a"), COMPLETED],
        [*failed("a", "a"), COMPLETED, *failed("a", "a")],
        failed("eval_func raised ValueError: a", "eval_func raised ValueError: b", "eval_func raised ValueError: a"),
    ],
)
def test_otherwise_it_goes_on(trials: Sequence[Trial]) -> None:
    assert repeated_failure(trials) == ""


@pytest.mark.parametrize(
    ("cause", "told"),
    [
        ("neural-compressor: not done after 1800 s, ended", "quantization.converter_timeout_s"),
        ("neural-compressor: took more than 900 MiB of memory, ended", "quantization.converter_memory_mb"),
        ("neural-compressor: crashed with SIGKILL", "quantization.converter_memory_mb"),
        ("neural-compressor: crashed with SIGSEGV", "use the default engine: --engine lowering"),
        ("neural-compressor: returned no graph", "use the default engine: --engine lowering"),
        ("eval_func raised ValueError: no", "call the function by itself"),
        ("eval_func returned None; expected a number", "call the function by itself"),
        ("the process died 2 times while this plan was tried", "quantization.op_wise"),
        ("a.pb: failed while running: OOM when allocating tensor with shape[1,2]", "close other programs"),
        ("MemoryError: Unable to allocate 3.00 GiB for an array", "close other programs"),
        ("a.pb: failed while running: No kernel for op", "this TensorFlow cannot run"),
        ("a.pb: cannot be run: Op type not registered", "this TensorFlow cannot run"),
        ("KeyError: 'stem'", "a mistake of the tuner"),
        ("no range was collected for x, which int8 convolutions read or make", "quantization.op_wise"),
    ],
)
def test_advice_by_cause(cause: str, told: str) -> None:
    assert told in advice(cause)
