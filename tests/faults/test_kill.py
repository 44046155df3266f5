"""Killed at any moment, a run that is resumed ends as it would have ended, and repeats nothing that was finished."""

import json
import re
import shutil
import sqlite3
import zipfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tensorflow.core.framework.graph_pb2 import GraphDef

from tests.faults.checkpoints import CHECKPOINTS, Checkpoint
from tests.faults.conftest import Kind, Run, Runs
from tuner.run_record import read_run
from tuner.trial import CompletedTrial, RejectedTrial

RANDOM_KILLS, MOST_KILLS, SEED = 50, 3, 2026
MOST_WORK = 1.5
# Enough to see at every change that nothing is lost; the others take minutes.
QUICK = {"ranges: half written", "trial, measurement recorded", "confirmed"}
_SCRATCH = re.compile(r"\..+\.[a-z0-9_]{8}")


@pytest.fixture(scope="module")
def uninterrupted(runs: Runs) -> dict[Kind, Run]:
    """A run of each kind that nobody killed, made when it is first asked for."""

    class Made(dict[Kind, Run]):
        def __missing__(self, kind: Kind) -> Run:
            run = self[kind] = runs.new(kind)
            assert run.session(resume=False)
            return run

    return Made()


@pytest.fixture(scope="module")
def table() -> Iterator[list[str]]:
    """What was killed, and the work of it all as a share of the uninterrupted run's; printed with -s."""
    rows: list[str] = []
    yield rows
    print("", *rows, sep="\n")


def test_the_uninterrupted_run_passes_by_every_checkpoint(uninterrupted: dict[Kind, Run]) -> None:
    run = uninterrupted["records"]
    passed = run.passed["passed"]
    missed = [one.name for one in CHECKPOINTS if one.run == run.kind and passed.get(one.name, 0) < one.nth]
    assert missed == []
    kinds = [type(trial) for trial in read_run(run.workspace).trials]
    assert len(kinds) >= 5
    assert kinds.count(CompletedTrial) >= 2
    assert kinds.count(RejectedTrial) >= 2
    assert run.result["status"] == "accepted"
    assert_nothing_is_repeated(run)


@pytest.mark.parametrize(
    "checkpoint",
    [pytest.param(one, id=one.name, marks=() if one.name in QUICK else pytest.mark.slow) for one in CHECKPOINTS],
)
def test_killed_at_a_checkpoint(
    checkpoint: Checkpoint, runs: Runs, uninterrupted: dict[Kind, Run], table: list[str]
) -> None:
    run, whole = runs.new(checkpoint.run), uninterrupted[checkpoint.run]
    assert not run.session(resume=False, checkpoint=checkpoint.name), "the run ended without coming by"
    assert_whole(run)
    assert run.session()
    assert_ended_alike(run, whole)
    table.append(f"{checkpoint.name} | {run.work / whole.work:.2f}")
    assert run.work <= MOST_WORK * whole.work


@pytest.mark.slow
@pytest.mark.parametrize("number", range(RANDOM_KILLS))
def test_killed_at_random(number: int, runs: Runs, uninterrupted: dict[Kind, Run], table: list[str]) -> None:
    """After so many events; each session is killed, the last one not. Every third run is killed up to three times."""
    run, whole = runs.new("records"), uninterrupted["records"]
    random = np.random.default_rng([SEED, number])
    chosen = random.integers(1, whole.passed["events"], size=1 + number % MOST_KILLS, endpoint=True).tolist()
    killed = []
    for event in chosen:
        if run.session(resume=bool(killed), event=event):
            break
        assert_whole(run)
        killed.append(event)
    else:
        assert run.session()
    assert_ended_alike(run, whole)
    table.append(f"random {number}, after {killed} of {whole.passed['events']} events | {run.work / whole.work:.2f}")
    if len(killed) == 1:
        assert run.work <= MOST_WORK * whole.work


def assert_ended_alike(run: Run, whole: Run) -> None:
    assert run.output_model.read_bytes() == whole.output_model.read_bytes()
    assert (run.workspace / "plan.yaml").read_bytes() == (whole.workspace / "plan.yaml").read_bytes()
    for key in ("accuracy", "plan_sha256", "graph_sha256"):
        assert run.result["best"][key] == whole.result["best"][key]
    for key in ("status", "reason", "trials", "full_evaluations", "rejected_early"):
        assert run.result[key] == whole.result[key]
    assert _trials(run) == _trials(whole)
    assert_nothing_is_repeated(run)
    assert_whole(run)
    files = [*run.workspace.rglob("*"), *run.output_model.parent.iterdir()]
    assert [path for path in files if path.name.startswith(".") or path.name.endswith("-journal")] == []


def _trials(run: Run) -> list[Any]:
    return [
        (trial.proposal, trial.measurement.metrics if isinstance(trial, CompletedTrial) else trial.rejection.loss)
        for trial in read_run(run.workspace).trials
        if isinstance(trial, CompletedTrial | RejectedTrial)
    ]


def assert_nothing_is_repeated(run: Run) -> None:
    """No evaluation and no calibration begins that is kept already; nothing else that is measured is kept twice."""
    kept: set[str] = set()
    for line in run.log:
        verb, _, what = line.partition(" ")
        assert what not in kept or line.startswith("kept evaluation"), f"{line} again"
        if verb == "kept":
            kept.add(what)
    assert kept == {line.removeprefix("began ") for line in run.log if line.startswith("began ")} | {
        what for what in kept if what.startswith(("latency", "damage"))
    }


def assert_whole(run: Run) -> None:
    """Every file under its final name can be read."""
    files = [path for folder in (run.workspace, run.output_model.parent) for path in folder.rglob("*")]
    for path in files:
        if path.is_file() and not any(_SCRATCH.fullmatch(part) for part in path.relative_to(run.folder).parts):
            _read(path)


def _read(path: Path) -> None:
    match path.suffix:
        case ".json" if path.name == "driver.json":
            assert not path.read_bytes() or json.loads(path.read_bytes())  # empty when nobody works there
        case ".json":
            json.loads(path.read_bytes())
        case ".yaml":
            assert yaml.safe_load(path.read_bytes())
        case ".npz":
            with zipfile.ZipFile(path) as archive:
                assert archive.testzip() is None
        case ".pb":
            assert GraphDef.FromString(path.read_bytes()).node
        case ".html":
            assert path.read_text().endswith("</html>\n")
        case ".db":
            _check_database(path)
        case suffix:
            assert suffix == ".db-journal"


def _check_database(path: Path) -> None:
    """A copy: to open a database whose writer was killed mends it."""
    place = path.parents[1] / "copy"
    place.mkdir(exist_ok=True)
    for file in path.parent.glob(f"{path.name}*"):
        shutil.copy(file, place)
    with closing(sqlite3.connect(place / path.name)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    shutil.rmtree(place)
