"""The tables as text, 80 columns wide and without a terminal."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from tuner.criterion import Status
from tuner.report.result import CriterionFacts, TuningResult
from tuner.report.table import measurement_table, tuning_table
from tuner.trial import FailedTrial

Make = Callable[..., TuningResult]


def text_of(table: RenderableType) -> str:
    file = io.StringIO()
    Console(file=file, width=80, highlight=False).print(table, crop=False)
    text = file.getvalue()
    assert "\x1b" not in text
    return "\n".join(line.rstrip() for line in text.splitlines())


def rows_of(table: RenderableType) -> dict[str, list[str]]:
    """The cells of each row by its title; cells and titles hold single blanks at most."""
    cells = ([cell.strip() for cell in line.split("  ") if cell.strip()] for line in text_of(table).splitlines())
    return {row[0]: row[1:] for row in cells if row}


def test_tuning_table(result: Make) -> None:
    rows = rows_of(tuning_table(result(), Path("work")))
    assert {
        "relative loss": ["0.40%", "limit 1%"],
        "latency, median": ["8.0 ms", "4.0 ms", "2.00x faster"],
        "latency, p90": ["9.0 ms", "6.0 ms", "1.50x faster"],
        "file size": ["4.00 MB", "1.00 MB", "4.00x smaller"],
        "ops in int8": ["0", "1"],
        "ops in bf16": ["0", "0"],
        "ops in fp32": ["3", "2"],
        "images": ["400", "400"],
        "mAP": ["0.5000", "0.4980", "-0.0020"],
        "AR_large": ["0.6100", "0.6080", "-0.0020"],
        "graph": ["out/int8.pb"],
        "result": ["work/result.json"],
        "report": ["work/report.html"],
        "left in float:": ["2", "its weights are not a constant"],
        "failed:": ["1", "conv b: no kernel"],
        "rewritten": ["with that alone, the float model takes 6.0 ms"],
    }.items() <= rows.items()
    assert rows["1"] == ["grouped"]
    assert "rewritten     suppression batched" in text_of(tuning_table(result(), Path("work")))
    assert "accepted: the first plan that meets the criterion was found" in rows
    assert "3 trials, 1 of them rejected early, in 20 s (quantise 2 s, evaluate 4 s)" in rows


def test_nothing_is_wider_than_80_columns_but_paths(result: Make) -> None:
    long = "x/" * 60 + "int8.pb"
    run = result(
        output_model=Path(long),
        reason="why " * 40,
        refused={str(index): f"reason {index} " * 12 for index in range(9)},
        trials=(FailedTrial(number=0, proposal=result().best.proposal, cause="c/" * 70),),  # type: ignore[union-attr]
    )
    lines = text_of(tuning_table(run, Path(long))).splitlines()
    assert [line.split()[0] for line in lines if len(line) > 80] == ["graph", "result", "report"]
    assert any(line.endswith(f"  {long}") for line in lines)
    assert any("4  for 4 more reasons, see result.json" in line for line in lines)


def test_without_any_completed_trial(result: Make) -> None:
    failed = FailedTrial(number=0, proposal=result().best.proposal, cause="no memory")  # type: ignore[union-attr]
    rows = rows_of(
        tuning_table(result(status=Status.FAILED, best=None, relative_loss=None, trials=[failed] * 3), Path("w"))
    )
    assert rows["latency, median"] == ["8.0 ms"]
    assert rows["AP50"] == ["0.5100"]
    assert rows["failed:"] == ["3", "no memory"]
    assert "graph" not in rows and "relative loss" not in rows


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"relative_loss": -0.002}, {"relative loss": ["-0.20%", "limit 1%"]}),
        (
            {"criterion": CriterionFacts("absolute", 0.01, True)},
            {"relative loss": ["0.40%"], "absolute loss": ["0.0020", "limit 0.01"]},
        ),
        ({"criterion": CriterionFacts("relative", 0.00015, True)}, {"relative loss": ["0.40%", "limit 0.015%"]}),
        ({"criterion": CriterionFacts("absolute", 0.01, False)}, {"absolute loss": ["-0.0020", "limit 0.01"]}),
    ],
)
def test_the_loss_against_its_limit(result: Make, fields: dict[str, Any], expected: dict[str, list[str]]) -> None:
    assert expected.items() <= rows_of(tuning_table(result(**fields), Path("w"))).items()


def test_a_graph_that_is_slower_and_larger_is_told_so(result: Make) -> None:
    run = result()
    rows = rows_of(
        tuning_table(replace(run, baseline=replace(run.baseline, latency_ms=2.0, size_bytes=500_000)), Path())
    )
    assert rows["latency, median"][-1] == "2.00x slower"
    assert rows["file size"][-1] == "2.00x larger"


def test_an_accuracy_of_the_users_own(result: Make) -> None:
    run = result()
    rows = rows_of(tuning_table(replace(run, baseline=replace(run.baseline, metrics={})), Path()))
    assert rows["accuracy"] == ["0.5000", "0.4980", "-0.0020"]
    assert "COCO figures" not in rows
    assert rows_of(measurement_table(replace(run.baseline, metrics={}), Path("m.pb")))["accuracy"] == ["0.5000"]


def test_measurement_table(result: Make) -> None:
    rows = rows_of(measurement_table(result().baseline, Path("models/float.pb")))
    assert len(rows) == 12 + 4 + 2  # figures; speed, size and images; heading and rule
    assert rows["AP75"] == ["0.5200"]
    assert rows["latency, p90"] == ["9.0 ms"]
