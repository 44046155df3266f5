"""What is asked of workers: calls, and jobs of several of them."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)
class Call:
    """A method of a worker to be called. keeps: what the worker then has and need not fetch again. told: in words."""

    method: str
    arguments: Sequence[Any]
    told: str
    keeps: object = None
    deaths: int = 0
    unreadable_on: dict[str, str] = field(default_factory=dict)


@dataclass(eq=False)
class Job:
    """Calls whose results are wanted in their order.

    rank: of several jobs, the one of lower rank goes first. after: needs the pinned node for itself, from when that
    other job has nothing left to hand out.
    """

    calls: Sequence[Call]
    rank: int = 0
    after: "Job | None" = None
    is_alone: bool = False
    waiting: deque[int] = field(default_factory=deque)
    results: dict[int, Any] = field(default_factory=dict)
    answered: int = 0
    is_over: bool = False

    def __post_init__(self) -> None:
        self.waiting.extend(range(len(self.calls)))

    def answer(self, index: int, result: Any) -> None:
        """Keep the result of a call, or the error that it met, unless nobody wants it any more."""
        if not self.is_over:
            self.results[index] = result
            self.answered += 1


@dataclass(eq=False)
class Handed:
    """A call on its way. reference: of its result. since: when it was its turn, by the monotonic clock."""

    job: Job
    index: int
    reference: Any
    since: float

    @property
    def call(self) -> Call:
        return self.job.calls[self.index]
