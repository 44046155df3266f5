"""Progress for machines: one JSON object for each event, as docs/progress.md lists them."""

import json
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import IO, Any

from tuner.cli.progress import Notes
from tuner.progress import Event, Item, Stage, TrialBegan, TrialEnded, TrialLooked
from tuner.report.result import finite

SCHEMA = 1
_SECONDS_BETWEEN_COUNTS = 1.0


class JsonLines:
    """One line for each event, written at once. Every object has `schema`, `time` (UTC, ISO 8601) and `kind`."""

    def __init__(self, out: IO[str]) -> None:
        self._out = out
        self._trial: int | None = None

    def tell(self, kind: str, **fields: Any) -> None:
        """Write an object; null stands for numbers that JSON does not have."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = {"schema": SCHEMA, "time": now, "kind": kind, **finite(fields)}
        self._out.write(json.dumps(line, allow_nan=False) + "\n")
        self._out.flush()

    @contextmanager
    def stage(self, title: str) -> Iterator[Stage]:
        """Begin a stage."""
        self.tell("stage_began", title=title)
        notes, start, finished = Notes(), time.monotonic(), False
        try:
            yield notes
            finished = True
        finally:
            seconds = time.monotonic() - start
            self.tell("stage_ended", title=title, seconds=seconds, notes=notes.texts, finished=finished)

    def track(self, items: Iterable[Item], total: int, title: str) -> Iterator[Item]:
        """Hand on `items`; told once a second, and at the end."""
        told = time.monotonic()
        for done, item in enumerate(items, 1):
            yield item
            if done == total or time.monotonic() - told >= _SECONDS_BETWEEN_COUNTS:
                told = time.monotonic()
                self.tell("counted", title=title, done=done, total=total, trial=self._trial)

    def event(self, event: Event) -> None:
        """Write an event under its name; what happens within a trial has the trial's number."""
        if isinstance(event, TrialBegan):
            self._trial = event.trial
        kind = re.sub(r"(?<!^)(?=[A-Z])", "_", type(event).__name__).lower()
        within = {"trial": self._trial} if isinstance(event, TrialLooked) else {}
        self.tell(kind, **within, **asdict(event))
        if isinstance(event, TrialEnded):
            self._trial = None
