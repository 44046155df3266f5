"""A worker of the pool, as the driver sees it."""

import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from tuner.cluster.jobs import Handed, Job

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Hired:
    """A worker of the pool.

    slots: how many calls it works on at a time. given: what it was handed and has not answered, oldest first. had: what
    it kept. to_prepare: arguments of calls that make graphs ready; preparing: the one on its way.
    """

    actor: Any
    node_id: str
    host: str
    facts: Any
    slots: int = 1
    is_ready: bool = False
    has_worked: bool = False
    is_blamed: bool = False
    given: list[Handed] = field(default_factory=list)
    had: set[object] = field(default_factory=set)
    to_prepare: deque[Sequence[Any]] = field(default_factory=deque)
    preparing: Any = None
    prepares_since: float = 0.0
    died_preparing: bool = False

    def give(self, job: Job, index: int) -> None:
        """Hand it a call."""
        call = job.calls[index]
        since = time.monotonic() if len(self.given) < self.slots else None
        self.given.append(Handed(job, index, getattr(self.actor, call.method).remote(*call.arguments), since))
        if call.keeps is not None:
            self.had.add(call.keeps)

    def prepare(self, method: str, arguments: Sequence[Any]) -> None:
        """Let it make something ready beside its calls; one thing at a time."""
        self.preparing = getattr(self.actor, method).remote(*arguments)
        self.prepares_since = time.monotonic()

    def prepare_next(self) -> None:
        """Let it make the next graph ready, if there is one and it makes none."""
        if self.to_prepare and self.preparing_s() is None:
            self.prepare("prepare", self.to_prepare.popleft())

    @property
    def is_idle(self) -> bool:
        """Whether it does nothing at all."""
        return not self.given and self.preparing_s() is None

    def preparing_s(self) -> float | None:
        """For how long it has been making a graph ready; None where it does not."""
        if self.preparing is not None and ray.wait([self.preparing], timeout=0)[0]:
            try:
                ray.get(self.preparing)
            except RayTaskError:
                _log.debug("a graph was not made ready", exc_info=True)
            except RayError:
                self.died_preparing = True
            self.preparing = None
        return None if self.preparing is None else time.monotonic() - self.prepares_since


def answered(references: Sequence[Any], wait_s: float) -> set[Any]:
    """Which of these have a result; waits a little for the first."""
    if not references:
        return set()
    done, _ = ray.wait(references, num_returns=1, timeout=wait_s)
    if done:
        done, _ = ray.wait(references, num_returns=len(references), timeout=0)
    return set(done)
