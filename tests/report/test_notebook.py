"""A result as a notebook shows it: whole, escaped, and in need of nothing else."""

from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tuner.criterion import Status
from tuner.report.result import CriterionFacts, TuningResult


class Shown(HTMLParser):
    """The texts of a page; fails for a tag that is not closed, or that loads or runs anything."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in {"div", "b", "code", "table", "thead", "tbody", "tr", "th", "td"}
        assert {name for name, _ in attrs} <= {"style"}
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_a_result(result: Callable[..., TuningResult]) -> None:
    page = result()._repr_html_()
    texts = Shown(page).texts
    assert texts[:2] == ["accepted", ": the first plan that meets the criterion was found"]
    told = " | ".join(texts)
    for row in (
        "mAP | 0.5000 | 0.4980 | -0.0020",
        "relative loss | 0.40% | limit 1%",
        "on other images | -1.00% to 2.00% | 95 of 100",
        "latency, median | 8.0 ms | 4.0 ms | 2.00x faster",
        "file size | 4.00 MB | 1.00 MB | 4.00x smaller",
        "ops in int8 | 1",
        "images | 400 | 400",
    ):
        assert row in told
    assert texts[-4:] == ["graph: ", "out/int8.pb", "3 trials in 20 s; model: ", "models/float.pb"]
    assert len(page) < 5000


def test_nothing_of_the_user_is_markup(result: Callable[..., TuningResult]) -> None:
    nasty = "<script>alert('x')</script> & \"co\""
    page = result(reason=nasty, output_model=Path(nasty))._repr_html_()
    texts = Shown(page).texts
    assert f": {nasty}" in texts and nasty in texts


@pytest.mark.parametrize("status", list(Status))
def test_without_a_graph(result: Callable[..., TuningResult], status: Status) -> None:
    texts = Shown(result(status=status, best=None, relative_loss=None, loss_interval=None)._repr_html_()).texts
    assert texts[0] == status.value.replace("_", " ")
    assert "graph: " not in texts and "0.5000" in texts


@pytest.mark.parametrize(("higher_is_better", "loss"), [(True, "0.0020"), (False, "-0.0020")])
def test_an_absolute_limit(result: Callable[..., TuningResult], higher_is_better: bool, loss: str) -> None:
    criterion = CriterionFacts("absolute", 0.005, higher_is_better)
    told = " | ".join(Shown(result(criterion=criterion)._repr_html_()).texts)
    assert f"absolute loss | {loss} | limit 0.005" in told
    assert "on other images | -0.0100 to 0.0200" in told
