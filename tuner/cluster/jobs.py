"""What is asked of workers: calls, and jobs of several of them."""

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)
class Call:
    """A method of a worker to be called. keeps: what the worker then has and need not fetch again. told: in words.

    beforehand: a method that takes the same arguments and may be called first, beside other calls, to save time.
    deaths: how many workers were lost with it. lost_on: by node, the last of them there, and why. unreadable_on: by
    node, why it cannot read the images.
    """

    method: str
    arguments: Sequence[Any]
    told: str
    keeps: object = None
    beforehand: str = ""
    deaths: int = 0
    lost_on: dict[str, tuple[Any, str]] = field(default_factory=dict)
    unreadable_on: dict[str, str] = field(default_factory=dict)


@dataclass(eq=False)
class Job:
    """Calls whose results are wanted in their order.

    rank: of several jobs, the one of lower rank goes first. is_alone: it needs the pinned node for itself; `after`:
    from when at most `left` calls of that other job wait to be handed out.
    """

    calls: Sequence[Call]
    rank: int = 0
    after: "Job | None" = None
    left: int = 0
    is_alone: bool = False
    waiting: deque[int] = field(default_factory=deque)
    results: dict[int, Any] = field(default_factory=dict)
    answered: int = 0
    longest_s: float = 0.0
    is_over: bool = False

    def __post_init__(self) -> None:
        self.waiting.extend(range(len(self.calls)))

    def answer(self, index: int, result: Any, took_s: float = 0.0) -> None:
        """Keep the result of a call, or the error that it met, unless nobody wants it any more."""
        if not self.is_over:
            self.results[index] = result
            self.answered += 1
            self.longest_s = max(self.longest_s, took_s)

    def wait_again(self, index: int) -> None:
        """A call that was handed out goes to somebody else, in its place: the first one is waited for first."""
        if not self.is_over:
            self.waiting.insert(bisect_left(self.waiting, index), index)

    @property
    def is_due(self) -> bool:
        """Of what is to be alone: whether it is its turn, and was not done."""
        return self.answered < len(self.calls) and (self.after is None or len(self.after.waiting) <= self.left)


@dataclass(eq=False)
class Handed:
    """A call on its way.

    reference: of its result. since: when it was its turn, by the monotonic clock; None while it waits for that.
    """

    job: Job
    index: int
    reference: Any
    since: float | None

    @property
    def call(self) -> Call:
        """What was handed out."""
        return self.job.calls[self.index]
