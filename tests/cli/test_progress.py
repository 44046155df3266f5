"""Progress as text: on a terminal, and where there is none."""

import io
import itertools
import re

import pytest
from rich.console import Console, ConsoleDimensions

from tuner.cli import progress as module
from tuner.cli.progress import LiveProgress, PlainProgress, progress_on
from tuner.progress import Progress, SearchBegan, SearchEnded, Silent, TrialBegan, TrialEnded, TrialLooked


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


def search(progress: Progress) -> None:
    """A search of one trial that loses too much, and what follows it."""
    progress.event(SearchBegan(0.01, True, 3, 100, 0.0, 0, 0.0, 1.0))
    with progress.stage("timing") as stage:
        stage.note("predicted")
    with progress.stage("trial 1") as stage:
        progress.event(TrialBegan(0, 1, "int8", ""))
        assert list(progress.track("abc", 3, "evaluate")) == ["a", "b", "c"]
        progress.event(TrialLooked(2, "bbox", 0.02, 0.01, 0.03, 0.95))
        progress.event(TrialEnded(0, 1, "int8", "over_limit", 1.0, loss=0.02, accuracy=0.5, latency_ms=2.0, images=3))
        stage.note("int8: loses too much")
    progress.event(SearchEnded())
    with progress.stage("compare") as stage:
        progress.event(TrialBegan(1, 2, "bf16", ""))
        progress.event(TrialEnded(1, 2, "bf16", "accepted", 1.0))
        stage.note("bf16 is handed over")


def test_elsewhere_a_search_is_the_lines_of_its_stages() -> None:
    target = console(terminal=False)
    search(PlainProgress(target))
    lines = text_of(target).splitlines()
    assert [line.split()[0] for line in lines] == ["timing", "trial", "compare"]
    assert lines[1].endswith("s  int8: loses too much")


def test_on_a_terminal_a_trial_is_a_row_and_no_line() -> None:
    target = console(terminal=True)
    search(LiveProgress(target))
    lines = text_of(target).splitlines()
    assert not any("int8: loses too much" in line for line in lines)
    words = [" ".join(re.sub(r"\x1b\[\d+m", "", line).split()) for line in lines]
    assert words[-1].endswith("s bf16 is handed over")
    table = words.index("limit 1.00%", max(n for n, line in enumerate(words) if line.startswith("search: ")))
    assert any(line.endswith("1 int8 3/3 2.00% 2.0 loses too much") for line in words[table - 4 : table])
    assert any("timing" in line and line.endswith("predicted") for line in lines)


def test_a_search_that_is_broken_off_leaves_the_terminal_as_it_was() -> None:
    target = console(terminal=True)
    progress = LiveProgress(target)
    with pytest.raises(KeyboardInterrupt), progress.stage("outer"):
        progress.event(SearchBegan(0.01, True, 3, 100, 0.0, 0, 0.0, 1.0))
        try:
            with progress.stage("trial 1"):
                progress.event(TrialBegan(0, 1, "int8", ""))
                raise KeyboardInterrupt
        finally:
            progress.event(SearchEnded())
    text = text_of(target)
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is back
    assert "running" in text


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (30, 10), (300, 100)])
def test_any_size_of_terminal(size: tuple[int, int]) -> None:
    target = console(terminal=True)
    target.size = ConsoleDimensions(*size)
    search(LiveProgress(target))
    assert "compare" in "".join(text_of(target).split())
