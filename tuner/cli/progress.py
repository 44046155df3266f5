"""The terminal's forms of progress, all on stderr: live on a terminal, one line for each stage elsewhere."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.text import Text

from tuner.cli.search_table import SearchTable
from tuner.progress import Event, Item, Progress, SearchBegan, SearchEnded, Silent, Stage, TrialBegan

_SECONDS_BETWEEN_LINES = 30.0
# Drawing takes a core for some milliseconds, which the detector has to wait for.
_DRAWN_PER_SECOND = 1
_MOST_ROWS = 15
# Lines of a live search that are not rows: the table's head and frame, what follows it, and a line of the shell.
_OTHER_LINES = 10


def progress_on(console: Console, *, quiet: bool) -> Progress:
    """The form that suits the console."""
    if quiet:
        return Silent()
    return LiveProgress(console) if console.is_terminal else PlainProgress(console)


@dataclass
class Notes:
    """A stage whose notes are kept until it ends."""

    texts: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Keep a note."""
        self.texts.append(text)


def _line(title: str, seconds: float, notes: Notes) -> Text:
    return Text(f"{title:<16} {seconds:7.1f} s  {', '.join(notes.texts)}".rstrip())


class PlainProgress:
    """One line for each stage when it ends, and now and then one for what is counted."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def stage(self, title: str) -> Iterator[Stage]:
        """Begin a stage, which leaves its line when it ends well; an error has a line of its own."""
        notes, start = Notes(), time.monotonic()
        yield notes
        self._console.print(_line(title, time.monotonic() - start, notes), soft_wrap=True)

    def track(self, items: Iterable[Item], total: int, title: str) -> Iterator[Item]:
        """Hand on `items`."""
        told = time.monotonic()
        for done, item in enumerate(items):
            if time.monotonic() - told >= _SECONDS_BETWEEN_LINES:
                told = time.monotonic()
                self._console.print(Text(f"{title:<16} {done}/{total}"), soft_wrap=True)
            yield item

    def event(self, event: Event) -> None:
        """The stages of the trials tell it all."""


@dataclass(frozen=True, slots=True)
class _Going:
    """Something that goes on: a stage, or with a total what is counted. number: makes it unlike any other."""

    number: int
    title: str
    since: float
    total: int | None = None
    done: int = 0


class LiveProgress:
    """Stages that ended as lines; below, what goes on: a search as a table, anything else with a spinner or a bar.

    What goes on is kept in tuples that are replaced, never changed: another thread draws them.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._spinner = Spinner("dots")
        self._going: tuple[_Going, ...] = ()
        self._begun = 0
        self._search: SearchTable | None = None
        self._trials = 0
        self._live = Live(
            console=console, transient=True, refresh_per_second=_DRAWN_PER_SECOND, get_renderable=self._drawn
        )

    @contextmanager
    def stage(self, title: str) -> Iterator[Stage]:
        """Begin a stage. A search's trial leaves a row of its table, any other stage a line."""
        notes, start, trials = Notes(), time.monotonic(), self._trials
        with self._shown(title, None):
            yield notes
        if self._search is None or self._trials == trials:
            self._console.print(_line(title, time.monotonic() - start, notes), soft_wrap=True)

    def track(self, items: Iterable[Item], total: int, title: str) -> Iterator[Item]:
        """Hand on `items`."""
        with self._shown(title, total) as number:
            for done, item in enumerate(items):
                yield item
                self._going = tuple(replace(one, done=done + 1) if one.number == number else one for one in self._going)
                if self._search is not None:
                    self._search.count(done + 1)

    def event(self, event: Event) -> None:
        """Show a search in its table, which stays when the search is over."""
        if isinstance(event, SearchBegan):
            self._search = SearchTable(event)
            self._live.start()
        elif isinstance(event, SearchEnded) and self._search is not None:
            table, self._search = self._search, None
            self._stop_when_done()
            self._console.print(table.render(self._console.width))
        elif self._search is not None:
            self._trials += isinstance(event, TrialBegan)
            self._search.tell(event)

    def _drawn(self) -> RenderableType:
        search, going = self._search, self._going
        parts: list[RenderableType] = []
        if search is not None:
            rows = max(1, min(_MOST_ROWS, self._console.height - _OTHER_LINES))
            parts.append(search.render(self._console.width, rows))
        if going:
            last = going[-1]
            told = Text(f"{last.title}  {time.monotonic() - last.since:.0f} s", no_wrap=True, overflow="ellipsis")
            if last.total is None:
                self._spinner.update(text=told)
                parts.append(self._spinner)
            else:
                bar = ProgressBar(total=max(1, last.total), completed=last.done, width=30)
                parts.append(Columns([told, bar, f"{last.done}/{last.total}"]))
        return Group(*parts)

    @contextmanager
    def _shown(self, title: str, total: int | None) -> Iterator[int]:
        """One more thing that goes on, shown in the place of those that it is a part of."""
        self._begun += 1
        one = _Going(self._begun, title, time.monotonic(), total)
        self._going += (one,)
        self._live.start()
        self._live.refresh()
        try:
            yield one.number
        finally:
            self._going = tuple(other for other in self._going if other.number != one.number)
            self._stop_when_done()

    def _stop_when_done(self) -> None:
        if not self._going and self._search is None:
            self._live.stop()
