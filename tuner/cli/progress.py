"""The terminal's forms of progress, all on stderr: live on a terminal, one line for each stage elsewhere."""

import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager

from rich.columns import Columns
from rich.console import Console, RenderableType
from rich.progress import Progress as Display
from rich.progress import ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn
from rich.progress_bar import ProgressBar
from rich.text import Text

from tuner.progress import Item, Progress, Silent, Stage

_SECONDS_BETWEEN_LINES = 30.0


def progress_on(console: Console, *, quiet: bool) -> Progress:
    """The form that suits the console."""
    if quiet:
        return Silent()
    return LiveProgress(console) if console.is_terminal else PlainProgress(console)


class _Notes:
    """A stage whose notes are kept until it ends."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


@contextmanager
def _timed(console: Console, title: str) -> Iterator[Stage]:
    """A stage that leaves its line when it ends well; an error has a line of its own."""
    notes, start = _Notes(), time.monotonic()
    yield notes
    line = f"{title:<16} {time.monotonic() - start:7.1f} s  {', '.join(notes.texts)}"
    console.print(Text(line.rstrip()), soft_wrap=True)


class PlainProgress:
    """One line for each stage when it ends, and now and then one for what is counted."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def stage(self, title: str) -> AbstractContextManager[Stage]:
        """Begin a stage."""
        return _timed(self._console, title)

    def track(self, items: Iterable[Item], total: int, title: str) -> Iterator[Item]:
        """Hand on `items`."""
        told = time.monotonic()
        for done, item in enumerate(items):
            if time.monotonic() - told >= _SECONDS_BETWEEN_LINES:
                told = time.monotonic()
                self._console.print(Text(f"{title:<16} {done}/{total}"), soft_wrap=True)
            yield item


class _Bar(ProgressColumn):
    """How much of a countable task is done; nothing for a stage, which has no number."""

    def render(self, task: Task) -> RenderableType:
        if task.total is None:
            return ""
        bar = ProgressBar(total=task.total, completed=task.completed, width=30)
        return Columns([bar, f"{task.completed:.0f}/{task.total:.0f}"])


class LiveProgress:
    """A spinner for each stage and a bar for what is counted, which go when they end."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._display = Display(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            _Bar(),
            console=console,
            transient=True,
        )

    @contextmanager
    def stage(self, title: str) -> Iterator[Stage]:
        """Begin a stage."""
        with _timed(self._console, title) as stage, self._shown(title, None):
            yield stage

    def track(self, items: Iterable[Item], total: int, title: str) -> Iterator[Item]:
        """Hand on `items`."""
        with self._shown(title, total) as task:
            for item in items:
                yield item
                self._display.advance(task)

    @contextmanager
    def _shown(self, title: str, total: int | None) -> Iterator[TaskID]:
        """One more line, in the place of those that it is a part of."""
        around = [task.id for task in self._display.tasks if task.visible]
        for outer in around:
            self._display.update(outer, visible=False)
        task = self._display.add_task(title, total=total)
        self._display.start()
        try:
            yield task
        finally:
            self._display.remove_task(task)
            for outer in around:
                self._display.update(outer, visible=True)
            if not self._display.tasks:
                self._display.stop()
