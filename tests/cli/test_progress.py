"""Progress as text: on a terminal, and where there is none."""

import io
import itertools

import pytest
from rich.console import Console

from tuner.cli import progress as module
from tuner.cli.progress import LiveProgress, PlainProgress, progress_on
from tuner.progress import Silent


def console(*, terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=80, highlight=False, _environ={"TERM": "xterm"})


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("terminal", "quiet", "kind"),
    [(True, False, LiveProgress), (False, False, PlainProgress), (True, True, Silent), (False, True, Silent)],
)
def test_the_form_that_suits(terminal: bool, quiet: bool, kind: type) -> None:
    assert isinstance(progress_on(console(terminal=terminal), quiet=quiet), kind)


def test_a_stage_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(0.0, 2.25)
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    target = console(terminal=False)
    with PlainProgress(target).stage("calibrate") as stage:
        assert text_of(target) == ""
        stage.note("60 images")
        stage.note("44 [tensors] " + "x" * 80)
    assert text_of(target) == f"calibrate            2.2 s  60 images, 44 [tensors] {'x' * 80}\n"


def test_counting_is_told_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(0.0, 20.0)
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    target = console(terminal=False)
    assert list(PlainProgress(target).track("abcdefgh", 8, "evaluate")) == list("abcdefgh")
    lines = [line.split() for line in text_of(target).splitlines()]
    assert lines and all(line[0] == "evaluate" and line[1].endswith("/8") for line in lines)
    assert len(lines) < 8


def test_counting_that_is_fast_is_not_told() -> None:
    target = console(terminal=False)
    assert list(PlainProgress(target).track(range(1000), 1000, "evaluate")) == list(range(1000))
    assert text_of(target) == ""


def test_a_terminal_keeps_the_line_and_shows_the_bar() -> None:
    target = console(terminal=True)
    progress = LiveProgress(target)
    with progress.stage("evaluate") as stage:
        assert list(progress.track("abc", 3, "images")) == ["a", "b", "c"]
        stage.note("mAP 0.5")
    text = text_of(target)
    assert "evaluate" in text and "images" in text and "/3" in text
    assert text.rstrip().splitlines()[-1].endswith("s  mAP 0.5")


@pytest.mark.parametrize("terminal", [True, False])
def test_a_stage_that_fails_leaves_no_line_and_no_spinner(terminal: bool) -> None:
    target = console(terminal=terminal)
    progress = progress_on(target, quiet=False)
    with pytest.raises(ValueError, match="no"), progress.stage("load"):
        raise ValueError("no")
    assert " s  " not in text_of(target)
    with progress.stage("again"):
        pass
    assert "again" in text_of(target).splitlines()[-1]


@pytest.mark.parametrize("terminal", [True, False])
def test_items_that_are_not_all_taken(terminal: bool) -> None:
    target = console(terminal=terminal)
    progress = progress_on(target, quiet=False)
    with progress.stage("evaluate"):
        items = progress.track("abc", 3, "images")
        assert next(items) == "a"
        del items
    assert text_of(target).count("evaluate") >= 1
