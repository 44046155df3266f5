"""The command: on a cluster it ends as it does on one machine, however it is begun, stopped and resumed."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest
import tensorflow as tf
import yaml
from tensorflow.core.framework.graph_pb2 import GraphDef

from tests.cluster.conftest import SHAPES, until
from tuner.cli import main
from tuner.precision import Dtype
from tuner.run_record import read_run
from tuner.trial import CompletedTrial, FailedTrial, RejectedTrial

ROOT = Path(__file__).parents[2]
MODEL = SHAPES / "detector.pb"
IMAGES = 24
TWO = "--cluster=local:2"
# In the environment of each process of a run, also of those that it starts.
MARK = "RUN_OF_A_TEST"
# Processes of a cluster are gone after so many seconds.
GONE_S = 20.0
TUNE = ("-m", "tuner", "tune")
# The command, and at the end what of a cluster it imported.
TELLING = """
import sys
from tuner.cli import main
code = main(["tune", *sys.argv[1:]])
found = [one for one in sys.modules if one.split(".")[0] == "ray" or one.startswith("tuner.cluster")]
print("imported:", found, file=sys.stderr)
sys.exit(code)
"""
WITHOUT_RAY = """
import sys
sys.modules["ray"] = None
from tuner.cli import main
sys.exit(main(["tune", *sys.argv[1:]]))
"""
# What clocks decide, and where a run lies.
_TIMED = {"latency_ms", "latency_p90_ms", "seconds", "pareto_front", "sha256"}


@dataclass
class Run:
    """A run of the command over all its sessions, each in a process of its own. folder: the one it is started in."""

    folder: Path

    def __post_init__(self) -> None:
        self.folder.mkdir()
        self.mark = uuid4().hex

    @contextmanager
    def started(self, *options: str, program: Sequence[str] = TUNE) -> Iterator[subprocess.Popen[bytes]]:
        """A session, of which nothing is left in the end. It leads a group, as those that a terminal starts."""
        # What `options` name again counts.
        named = (f"--input_model={MODEL}", "--config=../settings.yaml", "--output_model=int8.pb", "--workspace=work")
        environment = {**os.environ, "PYTHONPATH": str(ROOT), MARK: self.mark, "COLUMNS": "120"}
        with (self.folder / "stdout").open("wb") as out, (self.folder / "stderr").open("wb") as told:
            process = subprocess.Popen(
                [sys.executable, *program, *named, *options],
                cwd=self.folder,
                env=environment,
                stdout=out,
                stderr=told,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            for one in self.processes():
                with suppress(psutil.NoSuchProcess):
                    one.kill()
            process.wait()

    def ended(self, *options: str, program: Sequence[str] = TUNE) -> int:
        """The exit code of a whole session."""
        with self.started(*options, program=program) as process:
            return process.wait(timeout=150)

    def processes(self) -> list[psutil.Process]:
        """All that live, whoever is their parent."""
        found = []
        for one in psutil.process_iter():
            with suppress(psutil.Error):
                if one.environ().get(MARK) == self.mark and one.status() != psutil.STATUS_ZOMBIE:
                    found.append(one)
        return found

    def names(self) -> set[str]:
        found = set()
        for one in self.processes():
            with suppress(psutil.Error):
                found.add(one.name())
        return found

    def is_gone(self) -> None:
        until(lambda: not self.processes(), GONE_S)

    @property
    def stdout(self) -> str:
        return (self.folder / "stdout").read_text()

    @property
    def stderr(self) -> str:
        return (self.folder / "stderr").read_text()

    @property
    def events(self) -> list[dict[str, Any]]:
        """What --json-lines tells; the last line may be on its way."""
        return [json.loads(line) for line in self.stdout.splitlines(keepends=True) if line.endswith("\n")]

    def count(self, kind: str) -> int:
        return sum(one["kind"] == kind for one in self.events)

    @property
    def result(self) -> Any:
        """result.json without what clocks decide."""
        return _without_times(json.loads((self.folder / "work" / "result.json").read_text()))

    @property
    def files(self) -> list[bytes]:
        return [(self.folder / name).read_bytes() for name in ("int8.pb", "work/plan.yaml")]

    @property
    def trials(self) -> list[Any]:
        told = []
        for trial in read_run(self.folder / "work").trials:
            if isinstance(trial, CompletedTrial):
                found: Any = trial.graph_sha256, trial.measurement.metrics
            else:
                found = trial.rejection if isinstance(trial, RejectedTrial) else trial.cause
            told.append((trial.proposal, trial.proposal.idea, found))
        return told


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(one) for key, one in value.items() if key not in _TIMED}
    return value


def settings(folder: Path, **tuning: Any) -> dict[str, Any]:
    dataloader = {"dataset": {"COCORecord": {"root": str(folder / "few.record")}}}
    return {
        "model": {"name": "shapes", "framework": "tensorflow"},
        "quantization": {"calibration": {"sampling_size": 10, "dataloader": dataloader}},
        "tuning": {
            "accuracy_criterion": {"relative": 0.05},
            # As many trials as are allowed, whatever comes of them.
            "strategy": {"name": "tpe"},
            "exit_policy": {"max_trials": 4, "timeout": 3600},
            # No clock decides.
            "objective": "modelsize",
            **tuning,
        },
        "evaluation": {
            "accuracy": {"metric": {"COCOmAP": {}}, "dataloader": dataloader},
            "performance": {"warmup": 1, "iteration": 3},
        },
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Settings, and the few images that they name."""
    made = tmp_path_factory.mktemp("tune")
    with tf.io.TFRecordWriter(str(made / "few.record")) as writer:
        for record in tf.data.TFRecordDataset(str(SHAPES / "calibration.record")).take(IMAGES):
            writer.write(record.numpy())
    (made / "settings.yaml").write_text(yaml.safe_dump(settings(made)))
    return made


@pytest.fixture
def run(folder: Path) -> Run:
    return Run(folder / uuid4().hex)


@pytest.fixture(scope="module")
def whole(folder: Path) -> Run:
    """A run on the single machine that nobody stopped."""
    made = Run(folder / "whole")
    assert made.ended() == 0, made.stderr
    return made


def test_as_on_one_machine(folder: Path) -> None:
    """Started side by side, since most of their time goes into starting."""
    here, there = Run(folder / "here"), Run(folder / "there")
    with (
        here.started("--max_trials=2", program=("-c", TELLING)) as first,
        there.started("--max_trials=2", TWO) as second,
    ):
        assert [first.wait(timeout=150), second.wait(timeout=150)] == [0, 0], there.stderr
        there.is_gone()
    # Without a cluster, nothing of Ray is imported.
    assert here.stderr.splitlines()[-1] == "imported: []"
    assert there.result == here.result
    assert len(there.trials) == 2
    assert there.trials == here.trials
    assert there.files == here.files
    assert _shown(there.stdout) == _shown(here.stdout)
    # Ray's own line about it is not for those who use a cluster for one run.
    assert "Token" not in there.stderr


def _shown(stdout: str) -> list[str]:
    """Lines without figures of time."""
    return [re.sub(r"^( latency, \w+|\d+ trials in) .*", r"\1", line) for line in stdout.splitlines()]


def arguments(folder: Path) -> list[str]:
    return [f"--input_model={MODEL}", f"--config={folder / 'settings.yaml'}", f"--output_model={folder / 'int8.pb'}"]


@pytest.mark.parametrize("where", ["local", "local:0", "local:two", "10.0.0.7:6379", "", "ray://user:secret@host:1"])
def test_what_is_no_cluster_is_told_in_one_line(
    where: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["tune", *arguments(folder), "--cluster", where]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    (line,) = [one for one in told.err.splitlines() if one.startswith("error: ")]
    assert line.startswith("error: --cluster: got ")
    for allowed in ("local:N", "auto", "ray://HOST:PORT"):
        assert allowed in line.partition("expected")[2]


def test_without_ray_the_extra_is_named(folder: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_RAY, *arguments(folder), TWO],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: --cluster: ")
    assert "pip install 'tuner[cluster]'" in line


def in_mid_search(run: Run) -> None:
    """Wait until a trial ended and another one began."""
    until(lambda: run.count("trial_began") == 2, 120)


def of_a_cluster(run: Run) -> bool:
    names = run.names()
    return {"raylet", "gcs_server"} <= names and any(name.startswith("ray::") for name in names)


@pytest.mark.slow
@pytest.mark.parametrize(
    "number",
    [
        signal.SIGINT,
        signal.SIGTERM,
        signal.SIGHUP,
    ],
)
def test_a_signal_ends_the_run_and_its_cluster(number: signal.Signals, run: Run) -> None:
    """Ctrl-C, and a terminal that closes, tell all processes of its foreground; `kill` tells one."""
    with run.started("--max_trials=500", "--json-lines", TWO) as process:
        in_mid_search(run)
        assert of_a_cluster(run)
        if number is signal.SIGTERM:
            process.send_signal(number)
        else:
            os.killpg(process.pid, number)
        assert process.wait(timeout=40) == 130, run.stderr
        run.is_gone()
    assert run.stdout.endswith("\n")
    assert all(isinstance(event, dict) for event in run.events)
    ended = run.events[-1]
    assert (ended["kind"], ended["exit_code"], ended["error"]) == ("ended", 130, None)
    assert ended["go_on"].endswith("--resume")
    assert "Traceback" not in run.stderr


@pytest.mark.slow
def test_ctrl_c_tells_how_to_go_on(run: Run) -> None:
    with run.started("--max_trials=500", TWO) as process:
        until(lambda: "\ntrial 1 " in run.stderr, 120)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=60) == 130, run.stderr
        run.is_gone()
    head, _, command = run.stderr.rstrip().rpartition("\nto go on:\n")
    assert command.endswith("--resume")
    assert "Traceback" not in head


@pytest.mark.slow
@pytest.mark.parametrize(
    "number",
    [
        signal.SIGINT,
        signal.SIGTERM,
    ],
)
def test_a_signal_while_the_cluster_starts(number: signal.Signals, run: Run) -> None:
    with run.started("--json-lines", TWO) as process:
        until(lambda: "gcs_server" in run.names(), 60)
        process.send_signal(number)
        assert process.wait(timeout=60) == 130, run.stderr
        run.is_gone()
    assert run.events[-1]["exit_code"] == 130
    # There is nothing yet to go on with.
    assert run.events[-1]["go_on"].endswith(TWO)
    assert "Traceback" not in run.stderr


@pytest.mark.slow
@pytest.mark.parametrize("begun, resumed", [((TWO,), ()), ((), (TWO,))], ids=["begun there", "resumed there"])
def test_killed_and_resumed(begun: tuple[str, ...], resumed: tuple[str, ...], run: Run, whole: Run) -> None:
    with run.started("--json-lines", *begun) as process:
        in_mid_search(run)
        assert of_a_cluster(run) == bool(begun)
        process.kill()
        process.wait()
        run.is_gone()
    assert run.ended("--resume", *resumed) == 0, run.stderr
    assert run.trials == whole.trials
    assert run.files == whole.files
    # What was calibrated before is kept.
    assert run.result == {**whole.result, "calibrations": 0}


STEM, TRAPPED = "FeatureExtractor/MobilenetV2/Conv/Conv2D", "BoxPredictor_0/BoxEncodingPredictor/Conv2D"


def with_a_trap() -> GraphDef:
    """The detector, which aborts the process where what one convolution gives is not what float computes."""
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(GraphDef.FromString(MODEL.read_bytes()), name="")
        convolution = graph.get_operation_by_name(TRAPPED)
        (added,) = convolution.outputs[0].consumers()
        data, weights, bias = (tf.cast(one, tf.float64) for one in (*convolution.inputs, added.inputs[1]))
        exact = tf.nn.conv2d(data, weights, 1, "SAME") + bias
        difference = tf.reduce_max(tf.abs(tf.cast(added.outputs[0], tf.float64) - exact))
        is_far = difference > 1e-4 * tf.reduce_max(tf.abs(exact))
        near, far = tf.raw_ops.Switch(data=is_far, pred=is_far)
        with tf.control_dependencies([tf.identity(far)]):
            abort = tf.raw_ops.Abort(error_msg="not what float computes")
        with tf.control_dependencies([abort]):
            either = tf.raw_ops.Merge(inputs=[near, tf.identity(far)])
        graph_def = graph.as_graph_def()
    (counting,) = (node for node in graph_def.node if node.name == "num_detections")
    counting.input.append(f"^{either.output.op.name}")
    return graph_def


@pytest.mark.slow
def test_a_graph_that_ends_three_workers_fails_and_the_search_goes_on(run: Run, folder: Path) -> None:
    """Two plans are possible: one convolution in int8, and the one with the trap, too."""
    asked = settings(folder, strategy={"name": "exhaustive"})
    weight = {"granularity": "per_channel", "algorithm": "minmax"}
    activation = {"dtype": "int8", "scheme": "sym", "algorithm": "minmax", "output": "int8"}
    int8 = {"activation": activation, "weight": weight}
    either = {"activation": {**activation, "dtype": ["int8", "fp32"]}, "weight": weight}
    asked["quantization"]["op_wise"] = {".*": {"activation": {"dtype": "fp32"}}, STEM: int8, TRAPPED: either}
    (run.folder / "settings.yaml").write_text(yaml.safe_dump(asked))
    (run.folder / "trap.pb").write_bytes(with_a_trap().SerializeToString())
    with run.started("--config=settings.yaml", "--input_model=trap.pb", "--allow-ops", "--cluster=local:1") as process:
        code = process.wait(timeout=150)
        run.is_gone()
    assert code == 0, run.stderr
    failed, completed = sorted(read_run(run.folder / "work").trials, key=lambda trial: type(trial) is CompletedTrial)
    assert isinstance(failed, FailedTrial)
    assert failed.proposal.plan[TRAPPED].dtype is Dtype.INT8
    assert re.match(r"images 1 to \d+: 3 workers were lost with it; the last one, on ", failed.cause)
    assert "\n" not in failed.cause
    # The third one's place may have been taken, and the next images handed out, before the plan was given up.
    assert run.stderr.count("warning: a worker on ") in (3, 4)
    assert isinstance(completed, CompletedTrial)
    assert completed.proposal.plan[TRAPPED].dtype is Dtype.FP32
    assert run.result["best"]["graph_sha256"] == completed.graph_sha256
