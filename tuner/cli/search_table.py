"""The table of a search: one line for each trial, the running one last. Events in, a table out."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tuner.cli.estimate import Standing, time_left
from tuner.progress import Event, SearchBegan, TrialBegan, TrialEnded, TrialLooked

_STYLES = {"accepted": "bold green", "over_limit": "yellow", "rejected": "yellow", "failed": "bold red"}
# From so many columns of the terminal on.
_WITH_INTERVAL, _ALL_COLUMNS, _MORE_THAN_VERDICTS = 100, 70, 40


@dataclass(frozen=True, slots=True)
class _Row:
    """A trial. seen: images. look: the latest one; of boxes and masks the one that loses more."""

    began: TrialBegan
    seen: int = 0
    look: TrialLooked | None = None
    ended: TrialEnded | None = None


@dataclass
class SearchTable:
    """What is known of a search from its events.

    clock: seconds from any start. Rows are replaced, never changed: whoever draws may do so from another thread.
    """

    search: SearchBegan
    clock: Callable[[], float] = time.monotonic
    _rows: tuple[_Row, ...] = ()
    _counted_from: float | None = None
    _trial_from: float = 0.0
    _search_from: float = field(init=False)

    def __post_init__(self) -> None:
        self._search_from = self.clock()

    @property
    def running(self) -> bool:
        """Whether a trial is under way."""
        return bool(self._rows) and self._rows[-1].ended is None

    def tell(self, event: Event) -> None:
        """Take up what happened."""
        if isinstance(event, TrialBegan):
            self._rows += (_Row(event),)
            self._trial_from, self._counted_from = self.clock(), None
        elif isinstance(event, TrialLooked):
            before = self._rows[-1].look if self.running else None
            if before is None or event.images > before.images or event.loss > before.loss:
                self._change(look=event)
        elif isinstance(event, TrialEnded):
            self._change(ended=event)

    def count(self, seen: int) -> None:
        """The running trial has seen so many images."""
        if self._counted_from is None:
            self._counted_from = self.clock()
        self._change(seen=seen)

    def render(self, width: int, most: int | None = None) -> RenderableType:
        """The table, and the limit.

        width: of the terminal; a narrow one is shown less. most: while the search runs, the latest rows only, each on
        one line, and the time left below.
        """
        live, names = most is not None, _columns(width)
        rows = self._rows[-most:] if most else self._rows
        table = Table(box=box.SIMPLE, pad_edge=False)
        for name in names:
            folded = name in ("plan", "verdict")
            table.add_column(name, justify="left" if folded else "right", no_wrap=not folded, overflow="fold")
        for row in rows:
            cells = self._cells(row, with_interval=width >= _WITH_INTERVAL)
            table.add_row(*(_on_one_line(cells[name]) if live else cells[name] for name in names))
        limit = f"limit {self._loss(self.search.limit)}"
        if len(rows) < len(self._rows):
            limit += f"; {len(self._rows) - len(rows)} earlier trials not shown"
        below = [limit, *(time_left(self.search, self._standing()) if live else [])]
        return Group(table, *(_on_one_line(Text(line)) for line in below))

    def _cells(self, row: _Row, *, with_interval: bool) -> dict[str, Text]:
        ended, look, images = row.ended, row.look, self.search.images
        plan = Text(row.began.idea)
        if row.began.changes:
            plan.append(f": {row.began.changes}", "dim")
        seen = row.seen if ended is None or not ended.images else ended.images
        loss, milliseconds, verdict = "", "", Text("running")
        if ended is not None:
            loss = "" if ended.loss is None else self._loss(ended.loss)
            milliseconds = "" if ended.latency_ms is None else f"{ended.latency_ms:.1f}"
            verdict = Text(_verdict(ended), _STYLES[ended.verdict])
        elif look is not None:
            loss = self._loss(look.loss)
        if with_interval and look is not None and (ended is None or ended.verdict == "rejected"):
            loss += f" ({self._loss(look.low)} to {self._loss(look.high)})"
        counted = f"{seen}/{images}" if images and seen else ""
        return {
            "trial": Text(str(row.began.count)),
            "plan": plan,
            "images": Text(counted),
            "loss": Text(loss),
            "ms": Text(milliseconds),
            "verdict": verdict,
        }

    def _loss(self, loss: float) -> str:
        return f"{loss:.2%}" if self.search.relative else f"{loss:.4f}"

    def _standing(self) -> Standing:
        rows, now, counted_from = self._rows, self.clock(), self._counted_from
        ended = [row.ended for row in rows if row.ended is not None]
        running = bool(rows) and rows[-1].ended is None
        return Standing(
            full_s=[one.seconds for one in ended if one.verdict in ("accepted", "over_limit")],
            ended=self.search.earlier_trials + len(ended),
            trial_s=now - self._trial_from if running else None,
            seen=rows[-1].seen if running else 0,
            seen_s=0.0 if counted_from is None else now - counted_from,
            search_s=now - self._search_from,
        )

    def _change(self, **changes: object) -> None:
        if self.running:
            self._rows = (*self._rows[:-1], replace(self._rows[-1], **changes))  # type: ignore[arg-type]


def _columns(width: int) -> list[str]:
    if width >= _ALL_COLUMNS:
        return ["trial", "plan", "images", "loss", "ms", "verdict"]
    return ["trial", "images", "loss", "verdict"] if width >= _MORE_THAN_VERDICTS else ["trial", "verdict"]


def _on_one_line(text: Text) -> Text:
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


def _verdict(ended: TrialEnded) -> str:
    return {
        "accepted": "accepted",
        "over_limit": "loses too much",
        "rejected": f"rejected early at {ended.images}",
        "failed": f"failed: {ended.cause}",
    }[ended.verdict]
