"""What a long run tells while it goes on: stages with their times, what is counted, and the events of a search."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Literal, Protocol, TypeVar

Item = TypeVar("Item")
Ending = Literal["accepted", "over_limit", "rejected", "failed"]


@dataclass(frozen=True, slots=True)
class SearchBegan:
    """A search begins.

    limit: the most that may be lost: a share of the float model's accuracy where `relative`, else in the metric's
    unit. images: of the evaluation set; 0 where an eval_func keeps its own. most_trials, timeout_s: what ends the
    search; 0 s: it ends when a plan passes. earlier_trials, earlier_s: of earlier sessions, which count towards both.
    evaluation_s: what evaluating the float model took.
    """

    limit: float
    relative: bool
    images: int
    most_trials: int
    timeout_s: float
    earlier_trials: int
    earlier_s: float
    evaluation_s: float


@dataclass(frozen=True, slots=True)
class TrialBegan:
    """A plan is tried.

    trial: its number in the record, as in `result.json`. count: the how manieth it is, from 1, as it is printed.
    idea: of the search. changes: against the best plan so far, in words; "" for the first one.
    """

    trial: int
    count: int
    idea: str
    changes: str


@dataclass(frozen=True, slots=True)
class TrialLooked:
    """What a plan loses by the images seen so far, at one of the looks that may drop it.

    compared: bbox or segm. loss: the estimate for all images, in the limit's unit, and between which bounds it lies
    with the probability `confidence`.
    """

    images: int
    compared: str
    loss: float
    low: float
    high: float
    confidence: float


@dataclass(frozen=True, slots=True)
class TrialEnded:
    """How a trial went.

    verdict: accepted, over_limit (evaluated in full, loses too much), rejected (dropped before all images were seen) or
    failed. cause: of a failure, in one line. loss: in the limit's unit; an estimate where rejected. images: that it
    rests on. ops: how many operators the graph has of each dtype. seconds: wall time of the trial.
    What is not known is None, or empty.
    """

    trial: int
    count: int
    idea: str
    verdict: Ending
    seconds: float
    cause: str = ""
    loss: float | None = None
    accuracy: float | None = None
    latency_ms: float | None = None
    images: int | None = None
    ops: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SearchEnded:
    """The search is over, whatever ended it."""


Event = SearchBegan | TrialBegan | TrialLooked | TrialEnded | SearchEnded


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

    def event(self, event: Event) -> None:
        """Tell what happened in a search."""


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

    def event(self, event: Event) -> None:
        """Tell nothing."""


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
        """Begin a stage of the progress and time it; a stage that raises is timed too."""
        started = perf_counter()
        try:
            with self.progress.stage(title) as stage:
                yield stage
        finally:
            self.seconds[title] = self.seconds.get(title, 0.0) + perf_counter() - started
