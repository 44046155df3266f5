"""Progress for machines: every line an object with schema, time and kind."""

import io
import json
from datetime import datetime
from typing import Any

import pytest

from tuner.cli.json_lines import JsonLines
from tuner.progress import SearchBegan, SearchEnded, TrialBegan, TrialEnded, TrialLooked


def told(out: io.StringIO) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    for line in lines:
        assert line.pop("schema") == 1
        assert datetime.fromisoformat(line.pop("time")).tzinfo is not None
    return lines


def test_a_search() -> None:
    out = io.StringIO()
    lines = JsonLines(out)
    lines.event(SearchBegan(0.01, True, 4, 100, 0.0, 0, 0.0, 2.5))
    lines.event(TrialBegan(7, 1, "int8", ""))
    assert list(lines.track("abcd", 4, "evaluate")) == list("abcd")
    lines.event(TrialLooked(2, "bbox", 0.01, -0.02, 0.03, 0.95))
    lines.event(TrialEnded(7, 1, "int8", "accepted", 1.5, loss=float("inf"), ops={"int8": 3}))
    lines.event(SearchEnded())
    began, trial, counted, looked, ended, over = told(out)
    assert (began["kind"], began["limit"], began["evaluation_s"]) == ("search_began", 0.01, 2.5)
    assert trial == {"kind": "trial_began", "trial": 7, "count": 1, "idea": "int8", "changes": ""}
    assert counted == {"kind": "counted", "title": "evaluate", "done": 4, "total": 4, "trial": 7}
    assert looked["kind"] == "trial_looked" and looked["trial"] == 7 and looked["low"] == -0.02
    assert ended["kind"] == "trial_ended" and ended["loss"] is None and ended["ops"] == {"int8": 3}
    assert over == {"kind": "search_ended"}


def test_stages_well_and_badly_ended() -> None:
    out = io.StringIO()
    lines = JsonLines(out)
    with lines.stage("calibrate") as stage:
        stage.note("60 images\nin two lines")
    with pytest.raises(ValueError, match="no"), lines.stage("load"):
        raise ValueError("no")
    assert [(line["kind"], line["title"]) for line in told(out)] == [
        ("stage_began", "calibrate"),
        ("stage_ended", "calibrate"),
        ("stage_began", "load"),
        ("stage_ended", "load"),
    ]
    _, first, _, second = told(out)
    assert (first["notes"], first["finished"]) == (["60 images\nin two lines"], True)
    assert (second["notes"], second["finished"]) == ([], False)
    assert first["seconds"] >= 0
