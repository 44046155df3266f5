import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tuner.report.html.page import render, write_report
from tuner.report.html.style import SCRIPT
from tuner.run_record import RunRecord, write_run

Make = Callable[..., RunRecord]


class _Tags(HTMLParser):
    """The elements of a page with their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def sections(page: str) -> dict[str, str]:
    return dict(re.findall(r"<section class=.*?><h2>(.*?)</h2>(.*?)</section>", page, re.DOTALL))


def test_two_hundred_trials_fit_in_five_megabytes_and_fetch_nothing(made_run: Make) -> None:
    page = render(made_run(200))
    assert len(page.encode()) < 5_000_000
    for tag, attributes in _Tags(page).found:
        for name in ("src", "href", "xlink:href", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, name, value)
    assert "url(http" not in page
    assert "@import" not in page
    assert all("<svg" in sections(page)[title] for title in list(sections(page))[:4])


def test_names_from_outside_are_escaped_and_ids_are_unique(made_run: Make) -> None:
    page = render(made_run(12))
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert scripts == [SCRIPT]
    assert not {name for _, attributes in _Tags(page).found for name in attributes if name.startswith("on")}
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    found = sections(page)
    for title in (
        *("Sensitivity of each operator", "Average precision by category", "Time by operator type"),
        *("Values and chosen ranges", "Images whose detections changed most", "Trials", "The command"),
    ):
        assert "&lt;script&gt;" in found[title], title
        assert "<script" not in found[title], title
    ids = [str(attributes["id"]) for _, attributes in _Tags(page).found if "id" in attributes]
    assert len(ids) == len(set(ids))
    referred = set(re.findall(r'(?:url\(#|href="#)([^")]+)', page))
    assert referred <= set(ids)


def test_the_first_screen_tells_verdict_loss_speed_size_and_file(made_run: Make) -> None:
    run = made_run(12)
    best: dict[str, Any] = {
        **(run.best.measurement.to_json() if run.best else {}),
        "latency_ms": 15.0,
        "size_bytes": 1_000_000,
        "loss_interval_95": [-0.01, 0.02],
        "output_model": "out/int8.pb",
    }
    baseline = {"latency_ms": 60.0, "size_bytes": 4_000_000}
    result = {"status": "accepted", "reason": "found", "best": best, "baseline": baseline, "seconds": {"total": 9.0}}
    header = render(replace(run, result={**result, "best": {**best, "graph_sha256": f"{0:064x}"}})).partition("<main>")[
        0
    ]
    assert "The search ended: found." in header
    for text in ("meets the criterion", "4.00x faster", "4.00x smaller", "-1.00% to 2.00%", "out/int8.pb", "1.00%"):
        assert text in header


@pytest.mark.parametrize(("accuracy", "said"), [(0.41, "-2.50% (a gain)"), (0.39, "<b>2.50%</b>")])
def test_more_than_the_float_model_has_is_called_a_gain(made_run: Make, accuracy: float, said: str) -> None:
    run = made_run(1)
    assert run.study is not None and run.best is not None
    trial = replace(run.best, measurement=replace(run.best.measurement, accuracy=accuracy))
    assert said in render(replace(run, study=replace(run.study, trials=[trial])))


def test_settings_that_were_not_made_are_not_told(made_run: Make) -> None:
    run = made_run(0)
    configs = {**run.facts.environment, "accuracy configs": '{"a":null,"b":4}', "performance configs": '{"a":null}'}
    part = sections(render(replace(run, facts=replace(run.facts, environment=configs))))["Environment"]
    assert re.findall(r"<th>(\w+ configs)</th><td>(.*?)</td>", part) == [
        ("accuracy configs", "b 4"),
        ("performance configs", "as TensorFlow chooses"),
    ]


def test_an_unfinished_run_says_what_is_not_there(made_run: Make) -> None:
    run = made_run(0)
    found = sections(render(run))
    assert len(found) == 12
    for title in list(found)[:8]:
        assert "<svg" not in found[title]
        assert 'class="note"' in found[title]
    assert "has not ended" in render(run)
    # Before the float model was measured, too.
    assert "not measured yet" in render(replace(run, study=None))


def test_a_run_with_an_eval_func_has_the_pictures_of_its_search(made_run: Make) -> None:
    found = sections(render(made_run(12, metrics=False)))
    assert "<svg" in found["Loss against latency"]
    assert "<svg" in found["The search over time"]
    for title in ("Average precision by category", "Average precision by object size"):
        assert "eval_func" in found[title]
    assert "<svg" not in found["Images whose detections changed most"]


def test_accuracy_by_size_is_drawn_worst_first(made_run: Make) -> None:
    part = sections(render(made_run(12)))["Average precision by object size"]
    names = re.findall(r"<text[^>]*>(small|medium|large)</text>", part)
    # The last at the bottom, where matplotlib begins; medium was not measured.
    run = made_run(12)
    assert run.best is not None and run.baseline is not None
    change = {
        size: run.best.measurement.metrics[f"AP_{size}"] - run.baseline.metrics[f"AP_{size}"]
        for size in ("small", "large")
    }
    assert names == sorted(change, key=change.__getitem__, reverse=True)
    assert all(f'data-hint="{size}: ' in part for size in names)
    assert re.findall(r'<td class="text">(.*?)</td>', part) == ["mAP"]


def test_a_report_is_written_into_its_workspace(made_run: Make, tmp_path: Path) -> None:
    write_run(tmp_path, made_run(0).facts)
    path = write_report(tmp_path)
    assert path == tmp_path / "report.html"
    assert path.read_text().startswith("<!doctype html>")


def test_a_browser_shows_it_without_complaint(made_run: Make, tmp_path: Path, browse: Callable[..., list[Any]]) -> None:
    path = tmp_path / "report.html"
    path.write_text(render(made_run(40)))
    for width, seen in zip((390, 1280), browse(path, 390, 1280), strict=True):
        assert (seen.window, seen.console, seen.requests, seen.overflowing) == (width, [], [], [])
        assert seen.width <= width
