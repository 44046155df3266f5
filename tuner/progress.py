"""What a long run tells while it goes on: stages with their times, and one bar for what is counted."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Protocol, TypeVar

from tuner.memory import give_back_memory

Item = TypeVar("Item")


class Stage(Protocol):
    """A stage that has begun."""

    def note(self, text: str) -> None:
        """Say what the stage found; shown with its time when it ends."""


class Progress(Protocol):
    """Where the pipeline tells its progress; the terminal's forms of it belong to the cli."""

    def stage(self, title: str) -> AbstractContextManager[Stage]:
        """Begin a stage; leaving the context ends it."""

    def track(self, items: Iterable[Item], total: int, title: str) -> Iterator[Item]:
        """Hand on `items`, counting them against `total`."""


class _SilentStage:
    def __enter__(self) -> "_SilentStage":
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def note(self, text: str) -> None:
        return None


class Silent:
    """Tells nothing: what a Python program gets unless it asks for more."""

    def stage(self, title: str) -> AbstractContextManager[Stage]:
        """Begin a stage."""
        return _SilentStage()

    def track(self, items: Iterable[Item], total: int, title: str) -> Iterator[Item]:
        """Hand on `items`."""
        return iter(items)


@dataclass
class Clock:
    """Progress that remembers how long each stage took. seconds: wall time by title, summed over repetitions."""

    progress: Progress
    started_at: float = field(default_factory=perf_counter)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def total_s(self) -> float:
        """Seconds since the clock was made."""
        return perf_counter() - self.started_at

    @contextmanager
    def stage(self, title: str) -> Iterator[Stage]:
        """Begin a stage of the progress and time it; a stage that raises is timed too. What it made and left goes."""
        started = perf_counter()
        try:
            with self.progress.stage(title) as stage:
                yield stage
        finally:
            give_back_memory()
            self.seconds[title] = self.seconds.get(title, 0.0) + perf_counter() - started
