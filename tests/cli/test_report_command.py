from pathlib import Path

import pytest

from tuner.cli import main
from tuner.report.html.page import render
from tuner.run_record import RunFacts, read_run, write_run


def test_a_folder_that_is_no_workspace_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [f"error: {tmp_path}: no workspace of a run: it has no run.json, which tune writes"]


def test_the_path_of_the_report_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = RunFacts(
        *("2026-01-02T03:04:05+00:00", "tuner tune", "/a", "/a/f.pb", "/a/q.pb", f"sqlite:///{tmp_path}/study.db"),
        settings={"model": {"name": "m", "framework": "tensorflow"}},
        environment={"model": "f" * 64},
        float_ops={},
        category_names={},
        keys={"matches": ["detections"], "foresight": []},
    )
    write_run(tmp_path, facts)
    assert main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'report.html'}\n"
    assert (tmp_path / "report.html").read_text() == render(read_run(tmp_path))
