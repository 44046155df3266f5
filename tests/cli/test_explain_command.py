"""`explain` on a workspace with a study of two trials."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tuner.cache import Cache
from tuner.cli import main
from tuner.precision import FP32, INT8, PrecisionPlan
from tuner.run_record import RunFacts, write_run
from tuner.study import open_study
from tuner.trial import CompletedTrial, Measurement, Proposal

ALL = PrecisionPlan({"a": INT8, "b": INT8})
WITHOUT_A = ALL.with_ops(["a"], FP32)
BASELINE = Measurement(0.5, 400, 8.0, 9.0, 4_000_000, 5.0)


@pytest.fixture
def workspace(tmp_path: Path) -> str:
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    keys = {"matches": ["detections"], "foresight": ["model", "images"]}
    settings = {"model": {"name": "m", "framework": "tensorflow"}}
    write_run(tmp_path, RunFacts("", "", "", "f.pb", "q.pb", storage, settings, {}, {"c": "a dilation"}, {}, keys))
    study = open_study(storage, {"criterion": "relative 0.01"}, resume=False)
    study.record_baseline(BASELINE)
    for plan, accuracy, idea in ((ALL, 0.4, "int8"), (WITHOUT_A, 0.499, "int8, 1 of 2 ops out of int8")):
        proposal = Proposal(plan, 100, idea=idea)
        measured = replace(BASELINE, accuracy=accuracy)
        study.record(CompletedTrial(study.start(proposal), proposal, plan, plan.sha256, measured, 0.1))
    Cache(tmp_path).write_json("damage", ["model", "images", ALL.sha256, "100"], {"a": 0.03, "b": 0.01})
    return str(tmp_path)


def test_a_person_reads_why(workspace: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", workspace]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "trial 2 (int8, 1 of 2 ops out of int8) meets the criterion: 1 ops in int8, 2 in another format" in told
    assert "cannot be int8: 1 ops 1: a dilation" in told
    assert "left out of int8 by the search: 1 ops" in told
    assert "75.0%" in told and "15.00%" in told
    assert "to try next: 1. let the run end: tuner tune --resume" in told


def test_a_program_reads_why(workspace: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", workspace, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["schema"], found["trial"], found["accepted"], found["criterion"]) == (1, 1, True, "relative")
    assert [(one["op"], one["kind"], one["rank"]) for one in found["ops"]] == [
        ("a", "search", 1),
        ("c", "cannot", None),
    ]
    assert [one["rule"] for one in found["advice"]] == ["unfinished"]


def test_a_folder_of_something_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(tmp_path)]) == 2
    assert "no workspace of a run" in capsys.readouterr().err
