"""Latencies and profiles as a person reads them."""

from dataclasses import replace
from typing import Any

from rich.console import Console, RenderableType

from tuner.report.speed import TimedRun, latency_markdown, latency_table, profile_tables

FLOAT = TimedRun("f.pb", False, 1, 8.0, 9.0, 10.0, 7.0, 8.5, 125.0)
INT8 = replace(FLOAT, model="q.pb", median_ms=4.0, p90_ms=18.0, images_per_s=250.0)


def printed(what: RenderableType, width: int = 120) -> list[list[str]]:
    """The lines that are printed, as cells that lie at least two spaces apart."""
    console = Console(width=width)
    with console.capture() as capture:
        console.print(what)
    lines = (line.strip() for line in capture.get().splitlines())
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines if line]


def test_one_model() -> None:
    rows = {row[0]: row[1:] for row in printed(latency_table([FLOAT]))}
    assert rows["batch of 1"] == ["f.pb"]
    assert rows["latency, p99"] == ["10.00 ms"]
    assert rows["images per second"] == ["125.0"]
    assert "median" not in rows and "XLA clusters" not in rows


def test_two_models_and_sizes() -> None:
    runs = [FLOAT, INT8, replace(FLOAT, batch_size=4), replace(INT8, batch_size=4, median_ms=16.0)]
    rows = printed(latency_table(runs))
    assert [row for row in rows if row[0].startswith("batch of")] == [
        ["batch of 1", "f.pb", "q.pb"],
        ["batch of 4", "f.pb", "q.pb"],
    ]
    assert [row[1:] for row in rows if row[0] == "median"] == [["2.00x faster"], ["2.00x slower"]]


def test_xla_says_what_it_compiled() -> None:
    compiled, nothing = replace(FLOAT, xla=True, xla_clusters=3), replace(INT8, xla=True)
    rows = printed(latency_table([FLOAT, compiled, INT8, nothing]))
    assert rows[0] == ["batch of 1", "f.pb", "f.pb, XLA", "q.pb", "q.pb, XLA"]
    assert ["XLA clusters", "0", "3", "0", "0"] in rows
    assert rows[-1] == ["q.pb, XLA, batch of 1: XLA compiled nothing of it"]


def test_markdown() -> None:
    lines = latency_markdown([FLOAT, replace(FLOAT, model="q|.pb", xla=True, median_ms=4.0)]).splitlines()
    cells = [[cell.strip() for cell in line.replace("\\|", "/").strip("|").split("|")] for line in lines[:4]]
    assert {len(row) for row in cells} == {10}
    assert cells[2][:3] == ["1", "f.pb", "8.00 ms"] and cells[2][-2:] == ["0", ""]
    assert cells[3][:3] == ["1", "q/.pb, XLA", "4.00 ms"] and cells[3][-2:] == ["0", "2.00x faster"]
    assert lines[4:] == ["", "q|.pb, XLA, batch of 1: XLA compiled nothing of it"]


def figures(**changed: Any) -> dict[str, Any]:
    of_op = {"op": "Conv2D", "calls": 3, "time_us": 750.0, "share": 0.75}
    node = {"name": "net/" + "deep/" * 20 + "conv", "op": "Conv2D", "stage": "convolutions", "time_us": 500.0}
    return {
        "runs": 2,
        "latency_ms": 1.5,
        "total_us": 1000.0,
        "stages": {"convolutions": {"time_us": 750.0, "share": 0.75}, "rest": {"time_us": 250.0, "share": 0.25}},
        "ops": [of_op, {"op": "Exp", "calls": 1, "time_us": 250.0, "share": 0.25}],
        "nodes": [{**node, "share": 0.5}, {**node, "name": "other", "share": 0.25}],
        "copies": [],
        **changed,
    }


def test_a_profile() -> None:
    rows = printed(profile_tables(figures(), top=1))
    assert rows[0] == ["a run takes 1.50 ms without tracing (median of 2)"]
    assert ["convolutions", "0.750 ms", "75.0%"] in rows and ["all nodes", "1.00 ms"] in rows
    assert ["Conv2D", "3", "0.750 ms", "75.0%"] in rows
    names = {row[0] for row in rows}
    assert "Exp" not in names and "other" not in names and "copies between CPU and GPU" not in names
    # However long, a name is told whole.
    told = "".join(row[0] for row in printed(profile_tables(figures(), top=1), width=60))
    assert figures()["nodes"][0]["name"] in told


def test_copies_are_told_where_there_are_any() -> None:
    copy = {"direction": "MemcpyH2D", "copies": 2, "bytes": 3500, "time_us": 10.0}
    assert ["MemcpyH2D", "2", "0.004 MB", "0.010 ms"] in printed(profile_tables(figures(copies=[copy]), top=1))
