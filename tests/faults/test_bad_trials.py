"""Runs in which plans fail: by a real graph that TensorFlow refuses, a lowering that breaks, or a user's function.

The network has three convolutions, `stem`, `middle` and `head`. Every plan with `middle` in int8 is bad.
"""

import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework.graph_pb2 import GraphDef

from tuner import engine, foresight
from tuner.cli.tune_command import EXIT_CODES, NOT_ACCEPTED
from tuner.config import Strategy, parse_config
from tuner.criterion import Status
from tuner.errors import EvaluationError, QuantizationError
from tuner.job import TuningJob
from tuner.model.detection_model import DetectionModel
from tuner.pipeline import STOPPED, tune
from tuner.precision import INT8, Dtype, PrecisionPlan
from tuner.quantization.lowering.kernels import KERNEL_OPS
from tuner.quantization.quantize import find_quantizable_ops, prepare, quantize
from tuner.quantization.ranges import collect_ranges
from tuner.report.result import TuningResult
from tuner.study import Study
from tuner.trial import FailedTrial

OPS = {"stem", "middle", "head"}
IMAGES = [np.random.default_rng(seed).normal(0, 1, (8, 8, 3)).astype(np.float32) for seed in range(3)]

MakeJob = Callable[..., TuningJob]


def int8_ops(graph_def: Any) -> set[str]:
    return {node.name.removesuffix("/int8") for node in graph_def.node if node.op in KERNEL_OPS}


def accuracy(graph_def: Any) -> float:
    return 1 - 0.01 * len(int8_ops(graph_def))


class Accuracy:
    """An eval_func: 1 % is lost for each op in int8.

    faults: how its calls end after the first `after` ones, the last of them for good: in an exception, or with what is
    returned; `accuracy` for the real one. seen: the ops in int8 of each call.
    """

    def __init__(self, *faults: Any, after: int = 1) -> None:
        self.faults, self.after = faults or (accuracy,), after
        self.seen: list[set[str]] = []

    def __call__(self, graph_def: Any) -> Any:
        self.seen.append(int8_ops(graph_def))
        faulty = len(self.seen) - self.after
        if faulty <= 0:
            return accuracy(graph_def)
        fault = self.faults[min(faulty, len(self.faults)) - 1]
        if isinstance(fault, BaseException):
            raise fault
        return accuracy(graph_def) if fault is accuracy else fault


@pytest.fixture
def make_job(float_graph: Any, tmp_path: Path) -> MakeJob:
    """A job of its own folder; (strategy, relative limit, max_trials, calibration sizes, seed, fields of the job)."""
    network = float_graph(channels=3)
    data = network.x
    for name in ("stem", "middle", "head"):
        data = network.convolve(data, name, bias=True, activation="Relu")
    network.named(data, "out")
    path = tmp_path / "float.pb"
    path.write_bytes(network.model().graph_def.SerializeToString())

    def make(
        strategy: Strategy = Strategy.GUIDED,
        relative: float = 0.5,
        max_trials: int = 12,
        sizes: Any = 3,
        seed: int = 0,
        **fields: Any,
    ) -> TuningJob:
        settings = {
            "model": {"name": "tiny", "inputs": "x", "outputs": "out"},
            "quantization": {
                "int8_only": True,
                "calibration": {"sampling_size": sizes},
                "model_wise": {"activation": {"dtype": ["int8", "fp32"]}},
            },
            "evaluation": {"performance": {"warmup": 1, "iteration": 3}},
            "tuning": {
                "strategy": {"name": strategy.value},
                "random_seed": seed,
                "accuracy_criterion": {"relative": relative},
                "exit_policy": {"max_trials": max_trials},
            },
        }
        job = TuningJob(
            config=parse_config(settings, "test"),
            input_model=path,
            output_model=tmp_path / "int8.pb",
            workspace=tmp_path / "workspace",
            eval_func=Accuracy(),
            q_dataloader=IMAGES,
        )
        return replace(job, **fields)

    return make


Make = Callable[[DetectionModel], DetectionModel]
Spoil = Callable[[Make], None]


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Spoil:
    """Let something else become of the graphs of bad plans, in trials and wherever graphs are made to be timed."""

    def replace_bad(make: Make) -> None:
        def made(prepared: DetectionModel, plan: Any, *arguments: Any, **options: Any) -> DetectionModel:
            graph = quantize(prepared, plan, *arguments, **options)
            return make(graph) if plan["middle"].dtype is Dtype.INT8 else graph

        monkeypatch.setattr(engine, "quantize", made)
        monkeypatch.setattr(foresight, "quantize", made)

    return replace_bad


def raising(error: Exception) -> Make:
    def make(graph: DetectionModel) -> DetectionModel:
        raise error

    return make


def ending_in(make_end: Callable[[tf.Tensor], tf.Tensor]) -> Make:
    """Puts nodes between the network and its output."""

    def make(graph: DetectionModel) -> DetectionModel:
        with tf.Graph().as_default() as changed:
            whole = GraphDef.FromString(graph.graph_def.SerializeToString())
            next(node for node in whole.node if node.name == "out").name = "before"
            tf.import_graph_def(whole, name="")
            tf.identity(make_end(changed.get_tensor_by_name("before:0")), name="out")
        return graph.with_graph(changed.as_graph_def())

    return make


def with_unknown_op(graph: DetectionModel) -> DetectionModel:
    whole = GraphDef.FromString(graph.graph_def.SerializeToString())
    next(node for node in whole.node if node.name == "out").op = "NoSuchOp"
    return graph.with_graph(whole)


def huge(data: tf.Tensor) -> tf.Tensor:
    """Of 2^44 values, a number that no graph optimisation can know."""
    side = tf.cast(tf.size(data) * 0 + 2**22, tf.int64)
    return data + tf.reduce_max(tf.fill([side, side], tf.reduce_max(data)))


FAULTS: dict[str, tuple[Make, str]] = {
    "refuses": (raising(QuantizationError("middle cannot be int8: no kernel")), "middle cannot be int8: no kernel"),
    "a bug": (raising(KeyError("middle")), "KeyError: 'middle'"),
    "a bug that says nothing": (raising(RecursionError()), "RecursionError"),
    "no memory here": (raising(MemoryError("Unable to allocate 9 GiB")), "MemoryError: Unable to allocate 9 GiB"),
    "cannot be loaded": (with_unknown_op, "cannot be run: .*NoSuchOp"),
    "InvalidArgument": (
        ending_in(lambda data: tf.reshape(data, [tf.size(data) * 0 + 7, 7])),
        "failed while running: .*[Rr]eshape",
    ),
    "ResourceExhausted": (ending_in(huge), "failed while running: .*OOM when allocating tensor"),
}


def failed(result: TuningResult) -> list[FailedTrial]:
    return [trial for trial in result.trials if isinstance(trial, FailedTrial)]


def checked(job: TuningJob, result: TuningResult, cause: str) -> None:
    """One plan or more failed of the cause, none twice, and the best of the others was written."""
    assert result.status is Status.ACCEPTED, result.reason
    assert "middle" not in int8_ops(GraphDef.FromString(job.output_model.read_bytes()))
    failures = failed(result)
    assert failures
    plans = [trial.proposal.plan for trial in failures]
    assert len(plans) == len(set(plans))
    assert all(plan["middle"].dtype is Dtype.INT8 for plan in plans)
    for trial in failures:
        assert re.search(cause, trial.cause)
        assert "\n" not in trial.cause


@pytest.mark.parametrize(
    "fault", [pytest.param(one, marks=pytest.mark.slow) if one == "ResourceExhausted" else one for one in FAULTS]
)
def test_a_bad_plan_fails_and_the_search_goes_on(make_job: MakeJob, spoil: Spoil, fault: str) -> None:
    """TensorFlow waits ten seconds for memory before it gives up."""
    make, cause = FAULTS[fault]
    spoil(make)
    job = make_job(sizes=[3, 2])
    checked(job, tune(job), cause)


@pytest.mark.parametrize(("strategy", "seed"), [(Strategy.BASIC, 0), (Strategy.TPE, 1)])
def test_other_strategies_go_on_too(make_job: MakeJob, spoil: Spoil, strategy: Strategy, seed: int) -> None:
    """Samples at random would be bad three times in a row with other seeds."""
    make, cause = FAULTS["refuses"]
    spoil(make)
    job = make_job(strategy, sizes=[3, 2], seed=seed)
    checked(job, tune(job), cause)


def test_a_mistake_of_the_tuner_is_logged_with_its_traceback(
    make_job: MakeJob, spoil: Spoil, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(FAULTS["a bug"][0])
    with caplog.at_level(logging.DEBUG, "tuner"):
        tune(make_job(max_trials=1))
    told = [record for record in caplog.records if record.exc_info and isinstance(record.exc_info[1], KeyError)]
    assert told
    assert {record.levelno for record in told} == {logging.DEBUG}


def test_a_session_that_goes_on_does_not_try_what_failed(make_job: MakeJob, spoil: Spoil) -> None:
    spoil(FAULTS["refuses"][0])
    job = make_job(relative=0.001, max_trials=1, sizes=[3, 2])
    first = tune(job)
    assert len(failed(first)) == 1
    second = tune(make_job(relative=0.001, sizes=[3, 2], resume=True))
    plans = [trial.proposal.plan for trial in failed(second)]
    assert len(second.trials) > 2
    assert len(plans) == len(set(plans))
    assert second.best is not None


BROKEN = {
    "eval_func raised SystemExit: 1": SystemExit(1),
    "eval_func returned nan; expected a finite number of at least 0": float("nan"),
    "eval_func returned None; expected a number": None,
}


@pytest.mark.parametrize("cause", BROKEN)
def test_a_broken_eval_func_is_named_at_once(make_job: MakeJob, cause: str) -> None:
    with pytest.raises(EvaluationError, match=f"^{re.escape(cause)}$"):
        tune(make_job(eval_func=Accuracy(BROKEN[cause], after=0)))


def test_an_eval_func_that_breaks_in_mid_run_fails_trials(make_job: MakeJob) -> None:
    result = tune(make_job(eval_func=Accuracy(*BROKEN.values(), accuracy)))
    assert [trial.cause for trial in failed(result)] == list(BROKEN)
    assert len(result.trials) == 4
    assert result.status is Status.ACCEPTED


def test_three_failures_of_one_cause_end_the_run_with_advice(make_job: MakeJob) -> None:
    job = make_job(eval_func=Accuracy(ValueError("no")))
    result = tune(job)
    assert result.status is Status.FAILED
    assert EXIT_CODES[result.status.value] == NOT_ACCEPTED
    assert len(result.trials) == 3
    assert result.reason.startswith("3 plans in a row failed alike: eval_func raised ValueError: no; call the function")
    assert (job.workspace / "result.json").is_file()

    # Mended meanwhile, it goes on; still broken, the next failure is one too many.
    broken = tune(replace(job, resume=True, eval_func=Accuracy(ValueError("no"), after=0)))
    assert (len(broken.trials), broken.reason) == (4, result.reason)
    mended = tune(replace(job, resume=True, eval_func=Accuracy()))
    assert mended.status is Status.ACCEPTED
    assert len(mended.trials) == 5


def test_the_best_so_far_is_written_when_failures_end_a_run(make_job: MakeJob) -> None:
    job = make_job(relative=0.001, eval_func=Accuracy(accuracy, ValueError("no")))
    result = tune(job)
    assert result.status is Status.BEST_EFFORT
    assert result.reason.startswith("3 plans in a row failed alike")
    assert result.best is not None
    assert int8_ops(GraphDef.FromString(job.output_model.read_bytes())) == OPS


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions that Ctrl-C ends leave the record as those that die: with a trial of which nothing more is said."""
    monkeypatch.setattr(Study, "abandon", lambda study, number: None)


def stopped(job: TuningJob) -> None:
    """A session that ends in its first trial."""
    with pytest.raises(KeyboardInterrupt, match=STOPPED):
        tune(replace(job, eval_func=Accuracy(KeyboardInterrupt(), after=0 if job.resume else 1)))


@pytest.mark.usefixtures("dying")
def test_a_plan_with_which_the_process_died_three_times_is_not_tried_again(make_job: MakeJob) -> None:
    job = make_job(sizes=[3, 2])
    stopped(job)
    for _ in range(2):
        stopped(replace(job, resume=True))
    again = Accuracy()

    result = tune(replace(job, resume=True, eval_func=again))
    (failure,) = failed(result)
    assert failure.cause == "the process died 3 times while this plan was tried"
    assert result.seconds.timing == 0  # for that, all of the graph would run in int8
    assert result.status is Status.ACCEPTED
    assert again.seen
    assert OPS not in again.seen


@pytest.mark.usefixtures("dying")
def test_twice_may_be_chance(make_job: MakeJob) -> None:
    job = make_job()
    stopped(job)
    stopped(replace(job, resume=True))
    result = tune(replace(job, resume=True))
    assert (len(result.trials), failed(result)) == (1, [])


def test_ctrl_c_is_no_death(make_job: MakeJob) -> None:
    job = make_job()
    stopped(job)
    for _ in range(2):
        stopped(replace(job, resume=True))
    result = tune(replace(job, resume=True))
    assert (len(result.trials), failed(result)) == (1, [])


CRASHING = """
import ctypes, sys
from pathlib import Path
import numpy as np
from tuner.config import parse_config
from tuner.job import TuningJob
from tuner.pipeline import tune
from tuner.quantization.lowering.kernels import KERNEL_OPS

def eval_func(graph_def):
    int8 = sum(node.op in KERNEL_OPS for node in graph_def.node)
    if int8 == 3:
        ctypes.string_at(0)
    return 1 - 0.01 * int8

folder = Path(sys.argv[1])
settings = {
    "model": {"name": "tiny", "inputs": "x", "outputs": "out"},
    "quantization": {"int8_only": True, "calibration": {"sampling_size": 1}},
    "tuning": {"accuracy_criterion": {"relative": 0.5}},
}
images = [np.random.default_rng(0).normal(0, 1, (8, 8, 3)).astype(np.float32)]
result = tune(TuningJob(
    parse_config(settings, "test"), folder / "float.pb", folder / "int8.pb", folder / "workspace",
    resume=True, eval_func=eval_func, q_dataloader=images,
))
print(result.status.value, *(trial.cause for trial in result.trials if hasattr(trial, "cause")), sep="; ")
"""


@pytest.mark.slow
def test_a_plan_that_crashes_the_interpreter_does_not_do_so_for_ever(make_job: MakeJob) -> None:
    folder = make_job().workspace.parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    def run() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", CRASHING, str(folder)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert [run().returncode for _ in range(3)] == [-signal.SIGSEGV] * 3
    fourth = run()
    assert fourth.returncode == 0, fourth.stderr
    assert fourth.stdout.splitlines()[-1] == "accepted; the process died 3 times while this plan was tried"


def test_a_float_model_that_computes_nan_is_told_before_the_search(make_job: MakeJob) -> None:
    images = [image.copy() for image in IMAGES]
    images[1][0, 0, 0] = np.nan
    with pytest.raises(QuantizationError, match=r"^x: holds NaN in calibration image 2 of 3, "):
        tune(make_job(q_dataloader=images))


@pytest.mark.parametrize("dead", ["weights", "outputs", "inputs", "activations", "images"])
def test_channels_that_are_always_zero_keep_their_values(float_graph: Any, run: Any, dead: str) -> None:
    """All weights, those of an output or an input channel, what an activation lets through, and the images."""
    network = float_graph(channels=3)
    weights, bias = network.weights(3, 3, 3, 12), network.weights(12)
    if dead == "weights":
        weights[:] = 0
    elif dead == "outputs":
        weights[..., 4] = bias[4] = 0
    elif dead == "inputs":
        weights[:, :, 1] = 0
    elif dead == "activations":
        bias[:] = -100
    data = network.convolve(network.x, "stem", weights=weights, bias=bias, activation="Relu")
    data = network.convolve(data, "depthwise", "DepthwiseConv2dNative", bias=True, activation="Relu6")
    network.named(network.convolve(data, "last", bias=True), "out")
    images = [image[np.newaxis] * (0 if dead == "images" else 1) for image in IMAGES]

    prepared = prepare(network.model())
    ops = find_quantizable_ops(prepared)
    assert set(ops.names) == {"stem", "depthwise", "last"}
    ranges = collect_ranges(prepared, ops.tensors, images)
    graph = quantize(prepared, PrecisionPlan(dict.fromkeys(ops.names, INT8)), ranges)
    assert int8_ops(graph.graph_def) == set(ops.names)
    for image in images:
        (expected,), (found,) = (run(one.graph, image) for one in (prepared, graph))
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found, expected, atol=0.02 * max(1, np.abs(expected).max()))
