"""The table of a search, from its events."""

import io
import itertools

import pytest
from rich.console import Console

from tuner.cli.search_table import SearchTable
from tuner.progress import SearchBegan, TrialBegan, TrialEnded, TrialLooked

SEARCH = SearchBegan(0.01, True, 400, 100, 0.0, 0, 0.0, evaluation_s=6.0)
OPS = "3 of 49 ops out of int8"


def text_of(table: SearchTable, width: int = 140, most: int | None = None) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(table.render(width, most))
    return out.getvalue()


@pytest.fixture
def table() -> SearchTable:
    """Four trials that ended each in its way, and a fifth that has seen 150 of 400 images."""
    clock = itertools.count(0.0, 1.0)
    table = SearchTable(SEARCH, lambda: next(clock))
    endings = [
        TrialEnded(0, 1, "int8", "over_limit", 6.5, loss=0.0263, accuracy=0.5, latency_ms=5.21, images=400),
        TrialEnded(1, 2, "bf16", "failed", 0.1, cause="no kernel [for] MatMul"),
        TrialEnded(2, 3, OPS, "rejected", 2.0, loss=0.031, images=100),
        TrialEnded(4, 4, OPS, "accepted", 6.0, loss=0.0049, accuracy=0.54, latency_ms=5.6, images=400),
    ]
    for ended in endings:
        table.tell(TrialBegan(ended.trial, ended.count, ended.idea, "as trial 1, but 3 ops int8 -> bf16"))
        if ended.verdict == "rejected":
            table.tell(TrialLooked(100, "bbox", 0.031, 0.0204, 0.0412, 0.95))
        table.tell(ended)
    table.tell(TrialBegan(5, 5, "sample", ""))
    table.count(1)
    table.count(150)
    table.tell(TrialLooked(100, "segm", 0.012, -0.001, 0.025, 0.95))
    table.tell(TrialLooked(100, "bbox", 0.002, -0.003, 0.004, 0.95))
    return table


def test_every_verdict(table: SearchTable) -> None:
    rows = [line.split() for line in text_of(table, most=9).splitlines()]
    told = {row[0]: " ".join(row[1:]) for row in rows if row and row[0].isdigit()}
    assert told["1"].endswith("400/400 2.63% 5.2 loses too much")
    assert told["2"].endswith("failed: no kernel [for] MatMul")
    assert told["3"].endswith("100/400 3.10% (2.04% to 4.12%) rejected early at 100")
    assert told["4"].startswith(OPS) and told["4"].endswith("400/400 0.49% 5.6 accepted")
    # Of two looks at the same images, the one that loses more.
    assert told["5"] == "sample 150/400 1.20% (-0.10% to 2.50%) running"


def test_the_changes_are_told_in_full_when_the_search_is_over(table: SearchTable) -> None:
    text = " ".join(text_of(table, 200).split())
    assert text.count("as trial 1, but 3 ops int8 -> bf16") == 4
    assert text.endswith("limit 1.00%")
    assert "left" not in text


def test_the_latest_rows_and_the_time_left(table: SearchTable) -> None:
    lines = text_of(table, most=2).splitlines()
    assert [line.split()[0] for line in lines if line.split() and line.split()[0].isdigit()] == ["4", "5"]
    assert "limit 1.00%; 3 earlier trials not shown" in lines
    assert lines[-2].startswith("this trial: about ") and "by its images so far" in lines[-2]
    assert lines[-1].startswith("search: unknown") and "95 more trials, by the trials so far" in lines[-1]


def test_an_absolute_limit_and_no_images() -> None:
    table = SearchTable(SearchBegan(0.005, False, 0, 10, 0.0, 0, 0.0, 1.0))
    table.tell(TrialBegan(0, 1, "int8", ""))
    table.tell(TrialEnded(0, 1, "int8", "accepted", 1.0, loss=0.00123, accuracy=0.9, latency_ms=1.0, images=0))
    text = text_of(table)
    assert "0.0012" in text and "limit 0.0050" in text and "/" not in text


@pytest.mark.parametrize("most", [None, 1, 3])
@pytest.mark.parametrize("width", [1, 2, 7, 20, 39, 40, 69, 70, 99, 100, 400])
def test_any_width(table: SearchTable, width: int, most: int | None) -> None:
    lines = text_of(table, width, most).splitlines()
    assert all(len(line) <= width for line in lines)
    if width >= 20:
        assert "running" in "".join(lines).replace(" ", "")


@pytest.mark.parametrize("width", [40, 80, 120])
def test_each_trial_is_one_line_while_it_runs(table: SearchTable, width: int) -> None:
    # A frame of three lines, five trials, the limit and two lines of time left.
    assert len(text_of(table, width, most=9).splitlines()) <= 12
