"""Optuna's dashboard, really started, on a study that a search wrote."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tuner.cli import main
from tuner.dashboard import find_storage, serve
from tuner.errors import ConfigError, TunerError
from tuner.precision import BF16, INT8, PrecisionPlan
from tuner.run_record import RunFacts, write_run
from tuner.study import open_study
from tuner.trial import CompletedTrial, Measurement, Proposal

MEASUREMENT = Measurement(0.25, 4, 1.5, 2.5, 1000, 0.5)


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """Two trials of a search."""
    study = open_study(f"sqlite:///{tmp_path / 'study.db'}", {"criterion": "relative 0.01"}, resume=False)
    study.record_baseline(MEASUREMENT)
    for latency_ms, precision in ((1.0, INT8), (1.2, BF16)):
        proposal = Proposal(PrecisionPlan({"a": precision, "b": INT8}), 50, idea="a plan")
        measured = replace(MEASUREMENT, latency_ms=latency_ms)
        study.record(CompletedTrial(study.start(proposal), proposal, proposal.plan, "ab", measured, 0.1))
    return tmp_path


@pytest.fixture
def started(workspace: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command on a free port, and its address."""
    command = [sys.executable, "-m", "tuner", "dashboard", str(workspace), "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ}
    ) as run:
        assert run.stdout is not None
        try:
            yield run, run.stdout.readline()
        finally:
            run.kill()


def fetched(address: str) -> Any:
    with urllib.request.urlopen(address, timeout=30) as answer:
        return json.load(answer)


def test_it_listens_on_loopback_alone(started: tuple[subprocess.Popen[str], str]) -> None:
    port = urllib.parse.urlsplit(started[1].split()[0]).port
    tables = [Path(f"/proc/net/{table}") for table in ("tcp", "tcp6")]
    sockets = [line.split() for table in tables if table.is_file() for line in table.read_text().splitlines()[1:]]
    listening = [local for _, local, _, state, *_ in sockets if state == "0A" and local.endswith(f":{port:04X}")]
    assert listening == [f"0100007F:{port:04X}"]


def test_the_dashboard_shows_a_run_until_ctrl_c(started: tuple[subprocess.Popen[str], str]) -> None:
    run, line = started
    address, _, note = line.strip().partition(" ")
    assert address.startswith("http://127.0.0.1:") and note == "(Ctrl-C ends it)"
    api = address.replace("/dashboard/", "/api/studies")
    (study,) = fetched(api)["study_summaries"]
    assert study["study_name"] == "tuner-1"
    shown = fetched(f"{api}/{study['study_id']}")
    assert shown["directions"] == ["minimize", "maximize"]
    assert [trial["values"] for trial in shown["trials"]] == [[1.0, 0.25], [1.2, 0.25]]
    parameters = {one["name"]: one["param_external_value"] for one in shown["trials"][1]["params"]}
    assert parameters["int8_share"] == "0.5" and parameters["range_algorithm"] == "minmax"
    told = {one["key"]: one["value"] for one in shown["trials"][0]["user_attrs"]}
    assert told["verdict"] == "meets the criterion"
    assert {"loss", "ops_int8", "latency_ms"} <= {one["key"] for one in shown["union_user_attrs"]}

    # There is no run.json, of which a report could be made.
    assert shown["artifacts"] == []

    # It is a record: nothing in it is changed from here.
    with pytest.raises(urllib.error.HTTPError, match="405"):
        urllib.request.urlopen(urllib.request.Request(f"{api}/{study['study_id']}", method="DELETE"), timeout=30)
    assert len(fetched(api)["study_summaries"]) == 1

    run.send_signal(signal.SIGINT)
    assert (run.wait(30), run.communicate()[1]) == (0, "")


@pytest.fixture
def with_report(workspace: Path) -> Path:
    """The same run, with all that its workspace tells of it."""
    facts = RunFacts(
        started="2026-01-02T03:04:05+00:00",
        command="tuner tune",
        folder="/a",
        input_model="/a/b.pb",
        output_model="/a/c.pb",
        storage=f"sqlite:///{workspace}/study.db",
        settings={"model": {"name": "m"}},
        environment={"model": "abc"},
        float_ops={},
        category_names={},
        keys={"matches": ["detections"], "foresight": ["a", "b"]},
    )
    write_run(workspace, facts)
    return workspace


def test_the_report_and_its_pictures_are_artifacts_of_its_study(
    with_report: Path, started: tuple[subprocess.Popen[str], str]
) -> None:
    _, line = started
    root = line.partition("/dashboard/")[0]
    # A later run is not the one that the report tells of.
    open_study(find_storage(with_report), {"criterion": "relative 0.02"}, resume=False)
    before = (with_report / "study.db").read_bytes()
    assert fetched(f"{root}/api/meta")["artifact_is_available"] is True
    artifacts, later = (fetched(f"{root}/api/studies/{number}")["artifacts"] for number in (1, 2))
    assert later == []
    kinds = {one["filename"]: one["mimetype"] for one in artifacts}
    assert kinds["report.html"] == "text/html"
    assert kinds["Loss against latency.svg"] == kinds["The search over time.svg"] == "image/svg+xml"
    for one in artifacts:
        with urllib.request.urlopen(f"{root}/artifacts/1/{one['artifact_id']}", timeout=30) as answer:
            content = answer.read()
            assert answer.headers["Content-Type"] == one["mimetype"]
        if one["filename"].endswith(".svg"):
            drawn = ElementTree.fromstring(content)
            assert drawn.tag == "{http://www.w3.org/2000/svg}svg"
            # Colours are names of the page's, which a file of its own has to define.
            used = set(re.findall(r"var\((--\w+)\)", content.decode()))
            assert used and used <= set(re.findall(r"(--\w+):", content.decode()))
        else:
            assert content.startswith(b"<!doctype html>") and b"Tuning of m" in content

    address = f"{root}/api/artifacts/1/{artifacts[0]['artifact_id']}"
    with pytest.raises(urllib.error.HTTPError, match="405"):
        urllib.request.urlopen(urllib.request.Request(address, method="DELETE"), timeout=30)
    assert (with_report / "study.db").read_bytes() == before


def test_where_the_study_lies(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert find_storage(workspace) == f"sqlite:///{workspace / 'study.db'}"
    assert find_storage(workspace, "mysql://somewhere/study") == "mysql://somewhere/study"
    with pytest.raises(ConfigError, match="no workspace of a run"):
        find_storage(tmp_path_factory.mktemp("empty"))
    with pytest.raises(ConfigError, match=r"gone\.db: no such file"):
        find_storage(workspace, f"sqlite:///{workspace}/gone.db")


def test_a_port_that_is_taken(workspace: Path) -> None:
    storage = find_storage(workspace)

    def meet_again(address: str) -> None:
        taken = int(address.split(":")[2].partition("/")[0])
        with pytest.raises(TunerError, match=f"--port: {taken} on 127.0.0.1 cannot be used: Address already in use"):
            serve(storage, taken, lambda address: None, {})
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        serve(storage, 0, meet_again, {})


def test_without_the_extra(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    assert main(["dashboard", str(workspace)]) == 2
    error = capsys.readouterr().err
    assert error == (
        "error: dashboard: optuna-dashboard is not installed; install it with: pip install 'tuner[dashboard]'\n"
    )
