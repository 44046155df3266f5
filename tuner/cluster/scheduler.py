"""Who does what: calls of workers, handed out in a thread of its own, their results in the order asked for."""

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError, TaskCancelledError

from tuner.cluster.hired import Hired, answered
from tuner.cluster.jobs import Call, Handed, Job
from tuner.cluster.pool import Pool, in_one_line
from tuner.cluster.recipe import Failure
from tuner.errors import ClusterError, DatasetError, EvaluationError

# Of a call that ends so many workers, the next one would die, too.
MOST_DEATHS = 3
# A call on whose node images cannot be read is tried on so many nodes.
MOST_UNREADABLE = 2
# So many calls a worker has beyond those that it works on, so that it need not wait for the next one.
QUEUED = 1
# A call that takes so many times as long as any before it hangs, but not before HANG_S.
HANG_FACTOR, HANG_S = 20, 600.0
# So long a run waits for a node when it has none, and where all that there are were refused.
PATIENCE_S, IMPATIENCE_S = 300.0, 10.0
# How long is waited for Ray's last answer at the end, and for one in each turn.
END_S, _WAIT_S = 10.0, 0.02


class Scheduler:
    """Hands calls to the workers of a pool until it is closed. hang_s: see HANG_S. patience_s: see PATIENCE_S."""

    def __init__(self, pool: Pool, *, hang_s: float = HANG_S, patience_s: float = PATIENCE_S) -> None:
        self._pool, self._hang_s, self._patience_s = pool, hang_s, patience_s
        self._jobs: list[Job] = []
        self._changed = threading.Condition()
        self._longest_s = 0.0
        self._had_workers_at = time.monotonic()
        self._waiting = 0
        self._is_closed = False
        self._broken: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> Job:
        """Begin a job."""
        with self._changed:
            self._jobs.append(job)
            self._changed.notify_all()
        return job

    def results(self, job: Job) -> Generator[Any, None, None]:
        """The results of a job in the order of its calls. Closing it cancels the rest.

        Raises the TunerError that a call met in its turn, EvaluationError for one that ended MOST_DEATHS workers, and
        ClusterError when the workers are lost.
        """
        try:
            for index in range(len(job.calls)):
                with self._changed:
                    self._wait_for(lambda: index in job.results)  # noqa: B023 - called here only
                    found = job.results.pop(index)
                if isinstance(found, BaseException):
                    raise found
                if isinstance(found, Failure):
                    if found.before is not None:
                        yield found.before
                    raise found.error
                yield found
        finally:
            self.cancel(job)

    def cancel(self, job: Job) -> None:
        """Drop what of a job has not begun, and let what has begun end soon."""
        with self._changed:
            job.is_over = True
            job.waiting.clear()
            job.results.clear()
            if job in self._jobs:
                self._jobs.remove(job)
            for handed in [one for worker in self._pool for one in worker.given if one.job is job]:
                with suppress(RayError, ValueError):
                    ray.cancel(handed.reference, force=False)
            self._changed.notify_all()

    @property
    def slots(self) -> int:
        """How many calls are worked on at a time now; see `workers`."""
        return self.workers and self._pool.slots

    @property
    def slots_elsewhere(self) -> int:
        """How many of them are not where latency is taken."""
        with self._changed:
            return self._pool.slots_elsewhere

    @property
    def workers(self) -> int:
        """How many processes there are now; waits for the first. Raises ClusterError where none comes."""
        with self._changed:
            self._wait_for(lambda: bool(len(self._pool)))
            return len(self._pool)

    def promote(self, job: Job, rank: int) -> bool:
        """Let a job go before others, or after them. Returns whether it was not dropped meanwhile."""
        with self._changed:
            job.rank = rank
            return not job.is_over

    def prepare(self, calls: Sequence[Sequence[Any]]) -> None:
        """Let each worker make graphs ready meanwhile, in the place of those that it was told before."""
        with self._changed:
            for worker in self._pool:
                worker.to_prepare = deque(calls)
            self._changed.notify_all()

    def close(self) -> None:
        """End all work and all workers."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join(END_S)
        self._pool.close()

    def _wait_for(self, is_so: Callable[[], bool]) -> None:
        """Until something is so, for as long as there is hope. To be called with `_changed` held."""
        self._waiting += 1
        try:
            while not is_so():
                if self._broken is not None:
                    raise self._broken
                without_s = time.monotonic() - self._had_workers_at
                if without_s > (IMPATIENCE_S if self._pool.is_hopeless else self._patience_s):
                    raise self._pool.none_left()
                self._changed.wait(1.0)
        finally:
            self._waiting -= 1

    def _run(self) -> None:
        try:
            while not self._is_closed:
                nodes = self._pool.ask_nodes()
                with self._changed:
                    self._pool.refresh(nodes)
                    self._take_over()
                    if len(self._pool) or not self._waiting:
                        self._had_workers_at = time.monotonic()
                    self._hand_out()
                    references = [one.reference for worker in self._pool for one in worker.given]
                    self._changed.notify_all()
                    if not references:
                        self._changed.wait(_WAIT_S if self._jobs else 0.2)
                done = answered(references, _WAIT_S)
                with self._changed:
                    self._collect(done)
        except BaseException as error:
            with self._changed:
                self._broken = ClusterError(f"the cluster is lost: {in_one_line(error)}")
                self._broken.__cause__ = error
                self._changed.notify_all()

    def _take_over(self) -> None:
        """The calls of workers that are no more wait again, before all others."""
        for worker in self._pool.gone:
            for handed in reversed(worker.given):
                handed.job.wait_again(handed.index)
            worker.given.clear()
        self._pool.gone.clear()

    def _hand_out(self) -> None:
        self._jobs.sort(key=lambda job: job.rank)
        reserved = self._alone()
        free = [worker for worker in self._pool if worker.node_id != reserved]
        window = self._pool.slots
        for most in range(1, max((worker.slots for worker in free), default=0) + QUEUED + 1):
            for worker in free:
                if len(worker.given) < min(most, worker.slots + QUEUED):
                    self._give_next(worker, window, is_queued=len(worker.given) >= worker.slots)
        for worker in free:
            worker.prepare_next()

    def _alone(self) -> str:
        """Run what must be alone where the pinned node is idle; the node that is kept free for it, or ""."""
        job = next((one for one in self._jobs if one.is_alone and one.is_due), None)
        return "" if job is None else self._pool.give_alone(job)

    def _give_next(self, worker: Hired, window: int, *, is_queued: bool) -> None:
        """Hand a worker a call, one of the next `window` of a job: what it has kept the images of, if there is one."""
        for job in self._jobs:
            # What nobody has asked for yet waits in the driver, not in front of what will be asked for.
            if job.is_alone or (is_queued and job.rank > 0):
                continue
            soon = islice(job.waiting, window)
            near = [index for index in soon if self._may_have(worker, job.calls[index])]
            if near:
                index = next((one for one in near if job.calls[one].keeps in worker.had), near[0])
                job.waiting.remove(index)
                worker.give(job, index)
                return

    def _may_have(self, worker: Hired, call: Call) -> bool:
        failed_on = call.unreadable_on.keys() | call.lost_on.keys()
        return worker.node_id not in failed_on or self._pool.hosts.keys() <= failed_on

    def _collect(self, done: Collection[Any]) -> None:
        now = time.monotonic()
        limit_s = max(self._hang_s, HANG_FACTOR * self._longest_s)
        for worker in list(self._pool):
            for handed in [one for one in worker.given if one.reference in done]:
                if worker not in self._pool.gone:  # lost since, with all its calls
                    worker.given.remove(handed)
                    self._take(worker, handed, now)
            for handed in worker.given[: worker.slots]:
                handed.since = handed.since or now
                if now - handed.since > limit_s:
                    worker.given.remove(handed)
                    self._lost(worker, handed, f"did not answer for {limit_s:.0f} s")
                    break
            if (worker.preparing_s() or 0.0) > limit_s:
                self._pool.lose(worker, f"did not make a graph ready for {limit_s:.0f} s")
                self._drop_what_is_ahead()
            elif worker.died_preparing and worker not in self._pool.gone:
                self._pool.lose(worker, "was lost while it made a graph ready")
                self._drop_what_is_ahead()
        self._changed.notify_all()

    def _take(self, worker: Hired, handed: Handed, now: float) -> None:
        """Keep the result of a call."""
        try:
            found = ray.get(handed.reference)
        except TaskCancelledError:
            return
        except RayTaskError as error:
            # Not the user's to mend: a mistake of ours, or an operator's. It is told where the result is wanted.
            handed.job.answer(handed.index, error.cause if isinstance(error.cause, Exception) else error)
            return
        except RayError as error:
            self._lost(worker, handed, f"was lost: {in_one_line(error)}")
            return
        worker.has_worked = True
        took_s = now - (handed.since or now)
        self._longest_s = max(self._longest_s, took_s)
        if isinstance(found, Failure):
            self._failed(worker, handed, found)
        else:
            handed.job.answer(handed.index, found, took_s)
            for lost, why in handed.call.lost_on.values():
                if not lost.has_worked:
                    self._pool.blame(lost, why)
            for node_id, message in handed.call.unreadable_on.items():
                self._pool.refuse(node_id, self._pool.hosts.get(node_id, node_id), f"it cannot read images: {message}")

    def _failed(self, worker: Hired, handed: Handed, failure: Failure) -> None:
        """A node may not have the files that others have; then one of those reads them."""
        call = handed.call
        if failure.kind == DatasetError.__name__:
            call.unreadable_on[worker.node_id] = failure.message
            others = self._pool.hosts.keys() - call.unreadable_on.keys()
            if others and len(call.unreadable_on) < MOST_UNREADABLE:
                handed.job.wait_again(handed.index)
                return
        handed.job.answer(handed.index, failure)

    def _lost(self, worker: Hired, handed: Handed, why: str) -> None:
        """A worker died or hangs: what it had goes to others, a limited number of times."""
        with_it = [handed, *worker.given]
        worker.given = with_it
        self._pool.lose(worker, why)
        ahead = [one for one in with_it if one.job.rank]
        if worker.preparing is not None or worker.died_preparing or 0 < len(ahead) < len(with_it):
            # Nobody knows which of several graphs it was.
            self._drop_what_is_ahead()
        else:
            for one in with_it[: worker.slots]:
                one.call.deaths += 1
                one.call.lost_on[worker.node_id] = worker, why
        for one in [one for one in with_it if one.call.deaths >= MOST_DEATHS]:
            worker.given.remove(one)
            told = f"{one.call.told}: {MOST_DEATHS} workers were lost with it; the last one, on {worker.host}, {why}"
            one.job.answer(one.index, EvaluationError(told))

    def _drop_what_is_ahead(self) -> None:
        """What was not asked for yet may be what ends workers."""
        for job in [one for one in self._jobs if one.rank]:
            self.cancel(job)
        for worker in self._pool:
            worker.to_prepare.clear()
