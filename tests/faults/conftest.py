"""A small detector with its records, and processes in which it is tuned and that can be killed."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.test_pipeline import files  # noqa: F401
from tuner.data.conversion import convert_coco
from tuner.progress import Silent

ROOT = Path(__file__).parents[2]
Kind = Literal["records", "eval_func"]
# What each kind of run asks for: plans of which the first few lose too much, and a size that decides among the others.
TUNING: dict[Kind, dict[str, Any]] = {
    "records": {
        "accuracy_criterion": {"relative": 0.012},
        "early_rejection_alpha": 0.4,
        "confirm": 0.25,
        "exit_policy": {"max_trials": 20},
    },
    "eval_func": {"accuracy_criterion": {"relative": 0.035}, "exit_policy": {"max_trials": 20}},
}


@dataclass
class Run:
    """A run of the tuner, over all its sessions. folder: of its workspace, its output and its logbook."""

    folder: Path
    kind: Kind
    _server: subprocess.Popen[str]

    def session(self, *, resume: bool = True, checkpoint: str | None = None, event: int | None = None) -> bool:
        """Tune, and go on with the run where asked to; whether that came to its end. It may be killed, not fail."""
        order = {"folder": str(self.folder), "kind": self.kind, "resume": resume}
        assert self._server.stdin is not None and self._server.stdout is not None
        print(json.dumps({**order, "checkpoint": checkpoint, "event": event}), file=self._server.stdin, flush=True)
        status = int(self._server.stdout.readline())
        assert status in (0, -9), (self.folder / "output.txt").read_text()
        return status == 0

    @property
    def workspace(self) -> Path:
        return self.folder / "workspace"

    @property
    def output_model(self) -> Path:
        return self.folder / "out" / "int8.pb"

    @property
    def result(self) -> Any:
        return json.loads((self.workspace / "result.json").read_text())

    @property
    def passed(self) -> Any:
        """Of the session that ended: its `events`, and how often it `passed` each checkpoint."""
        return json.loads((self.folder / "passed.json").read_text())

    @property
    def log(self) -> list[str]:
        return (self.folder / "logbook").read_text().splitlines()

    @property
    def work(self) -> int:
        """Images that were evaluated or calibrated on."""
        return self.log.count("image")


class Runs:
    """Makes runs on one detector and its records."""

    def __init__(self, folder: Path, server: subprocess.Popen[str]) -> None:
        self._folder, self._server = folder, server
        self._count = 0

    def new(self, kind: Kind) -> Run:
        self._count += 1
        folder = self._folder / f"run {self._count}"
        folder.mkdir()
        dataloader = {"dataset": {"COCORecord": {"root": str(self._folder / "instances.record")}}}
        settings = {
            "model": {"name": "tiny", "framework": "tensorflow"},
            "quantization": {"int8_only": True, "calibration": {"sampling_size": [8, 4], "dataloader": dataloader}},
            "evaluation": {
                "accuracy": {"metric": {"COCOmAP": {}}, "dataloader": dataloader},
                "performance": {"warmup": 1, "iteration": 3},
            },
            # Speed counts, so that nodes are timed, and so little that no measured latency decides.
            "tuning": {
                "multi_objectives": {"objective": ["modelsize", "performance"], "weight": [0.9999, 0.0001]},
                **TUNING[kind],
            },
        }
        (folder / "settings.json").write_text(json.dumps(settings))
        return Run(folder, kind, self._server)


@pytest.fixture(scope="session")
def server() -> Iterator[subprocess.Popen[str]]:
    """The program `tests/faults/tuning_runs.py`, which has imported all that a run needs."""
    program = "from tests.faults.tuning_runs import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"},
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture(scope="module")
def runs(files: Path, tmp_path_factory: pytest.TempPathFactory, server: subprocess.Popen[str]) -> Runs:  # noqa: F811
    folder = tmp_path_factory.mktemp("runs")
    convert_coco(files / "images", files / "instances.json", folder, Silent())
    shutil.copy(files / "float.pb", folder / "float.pb")
    return Runs(folder, server)
