"""Which workers there are: started on every node that is like this machine, and anew where one is lost."""

import logging
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tuner.cluster.facts import NodeFacts, differences
from tuner.cluster.hired import Hired
from tuner.cluster.jobs import Job
from tuner.cluster.worker import PREPARING, SEARCHING, Worker
from tuner.errors import ClusterError

_log = logging.getLogger(__name__)

# How often the cluster is asked which nodes it has.
NODES_EVERY_S = 1.0
# A node on which so many workers died that had done nothing, and not by what others did later, gets no more.
MOST_IDLE_DEATHS = 3
# So long latency waits for a worker on the node where it was taken before.
PINNED_FOR_S = 120.0


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """What workers a run wants.

    threads: inside one operator, of each run of a graph; inter_threads: for independent ones. cpus: of the cluster's,
    for each worker, at most. cache_mb: MiB on each node for decoded images.
    """

    threads: int = 1
    inter_threads: int = 0
    cpus: int = 8
    cache_mb: int = 512


class Pool:
    """The workers of a run. expected: what their machines must be like."""

    def __init__(self, settings: PoolSettings, expected: NodeFacts) -> None:
        self._settings, self._expected = settings, expected
        self._hired: list[Hired] = []
        self._deaths: Counter[str] = Counter()
        self._looked_at = 0.0
        self._alive: set[str] = set()
        self.refused: dict[str, str] = {}
        # Workers that are no more, whose calls somebody has to take over.
        self.gone: list[Hired] = []
        self._pinned, self._pinned_at = "", 0.0

    def __iter__(self) -> Iterator[Hired]:
        return (worker for worker in self._hired if worker.is_ready)

    def __len__(self) -> int:
        return sum(worker.is_ready for worker in self._hired)

    @property
    def slots(self) -> int:
        """How many calls all workers work on at a time."""
        return sum(worker.slots for worker in self)

    @property
    def slots_elsewhere(self) -> int:
        """How many of them are not on the pinned node."""
        nodes = self.hosts
        # Not pinned by that: the driver's own may not be there yet.
        pinned = self._pinned if self._pinned in nodes else _fittest(nodes)
        return sum(worker.slots for worker in self if worker.node_id != pinned)

    @property
    def described(self) -> str:
        """What the cluster has to offer now, in words."""
        cpus = [count for node in ray.nodes() if (count := _cpus(node))]
        return f"{sum(cpus)} CPUs on {len(cpus)} node{'' if len(cpus) == 1 else 's'}"

    @property
    def hosts(self) -> dict[str, str]:
        """Of each node with workers, what it is called."""
        return {worker.node_id: worker.host for worker in self}

    @property
    def pinned(self) -> str:
        """The node on which latency is taken: the driver's own where that has workers, and one for the whole run."""
        nodes, now = self.hosts, time.monotonic()
        if self._pinned in nodes:
            self._pinned_at = now
        # A node that only lost its workers gets new ones, unless somebody else took its place.
        is_lost = self._pinned not in self._alive - self.refused.keys() or now - self._pinned_at > PINNED_FOR_S
        if is_lost and nodes:
            chosen = _fittest(nodes)
            if self._pinned:
                _log.warning("the node that latency was taken on is lost; from here on it is %s", nodes[chosen])
            self._pinned, self._pinned_at = chosen, now
        return self._pinned

    def give_alone(self, job: Job) -> str:
        """Hand over what must be alone as soon as the pinned node is idle; the node, which is kept free for it."""
        pinned = self.pinned
        there = [worker for worker in self if worker.node_id == pinned]
        if job.waiting and there:
            call = job.calls[job.waiting[0]]
            if all(worker.is_idle for worker in there):
                there[0].give(job, job.waiting.popleft())
            elif call.beforehand and there[0].preparing_s() is None:
                there[0].prepare(call.beforehand, call.arguments)
                # Once: what a worker dies of then is not the call's fault yet.
                call.beforehand = ""
        return pinned

    def ask_nodes(self) -> list[Any] | None:
        """What Ray says of the nodes, now and then; it never answers where the cluster's head is lost."""
        if time.monotonic() - self._looked_at < NODES_EVERY_S:
            return None
        self._looked_at = time.monotonic()
        found: list[Any] = ray.nodes()
        return found

    def refresh(self, nodes: list[Any] | None) -> None:
        """Hire on nodes that came or lost workers, and welcome those that are ready. nodes: of `ask_nodes`."""
        if nodes is not None:
            self._hire(nodes)
        starting = [worker for worker in self._hired if not worker.is_ready]
        if starting:
            begun, _ = ray.wait([worker.facts for worker in starting], num_returns=len(starting), timeout=0)
            for worker in starting:
                if worker.facts in begun:
                    self._welcome(worker)

    def lose(self, worker: Hired, why: str) -> None:
        """A worker is dead, or is to be: another one takes its place at the next refresh."""
        if worker not in self._hired:
            return
        self._dismiss(worker)
        _log.warning("a worker on %s %s", worker.host, why)

    def blame(self, worker: Hired, why: str) -> None:
        """A worker that had done nothing was lost, and not by what it was asked to do."""
        # Each of the calls that it had tells of it.
        self._deaths[worker.node_id] += not worker.is_blamed
        worker.is_blamed = True
        if self._deaths[worker.node_id] >= MOST_IDLE_DEATHS:
            self.refuse(worker.node_id, worker.host, f"{MOST_IDLE_DEATHS} workers were lost there; the last one {why}")

    def refuse(self, node_id: str, host: str, why: str) -> None:
        """No worker of this run is on a node any more."""
        if node_id in self.refused:
            return
        self.refused[node_id] = f"{host}: {why}"
        _log.warning("%s is not used: %s", host, why)
        for worker in [one for one in self._hired if one.node_id == node_id]:
            self._dismiss(worker)

    def _dismiss(self, worker: Hired) -> None:
        self._hired.remove(worker)
        self.gone.append(worker)
        _end(worker)

    def close(self) -> None:
        """End all workers."""
        for worker in self._hired:
            _end(worker)
        self._hired.clear()

    def _hire(self, nodes: list[Any]) -> None:
        self._alive = {node["NodeID"] for node in nodes if node["Alive"]}
        # Those that were given nothing would not tell that they are gone.
        for worker in [one for one in self._hired if one.is_ready and one.node_id not in self._alive]:
            self.lose(worker, "was lost with its node")
        for node in nodes:
            cpus, node_id = _cpus(node), node["NodeID"]
            if cpus < 1 or node_id in self.refused:
                continue
            wanted = math.ceil(cpus / self._settings.cpus)
            missing = wanted - sum(worker.node_id == node_id for worker in self._hired)
            self._hired += [
                self._start(node, cpus // wanted, self._settings.cache_mb // wanted) for _ in range(missing)
            ]

    def _start(self, node: Mapping[str, Any], cpus: int, cache_mb: int) -> Hired:
        slots = max(1, cpus // self._settings.threads)
        remote = ray.remote(
            num_cpus=cpus,
            max_restarts=0,
            max_task_retries=0,
            # In order, the call after one that was cancelled on its way there waits half a minute for that one.
            allow_out_of_order_execution=True,
            concurrency_groups={SEARCHING: slots, PREPARING: 1},
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        )(Worker)
        actor = remote.remote(self._settings.threads, self._settings.inter_threads, cache_mb)
        host = f"{node['NodeManagerHostname']} ({node['NodeName']}, {node['NodeID'][:6]})"
        return Hired(actor, node["NodeID"], host, actor.facts.remote(), slots)

    def _welcome(self, worker: Hired) -> None:
        try:
            found: NodeFacts = ray.get(worker.facts, timeout=1)
        except GetTimeoutError:
            return
        except RayError as error:
            why = f"did not start: {in_one_line(error)}"
            self.lose(worker, why)
            self.blame(worker, why)
            return
        unlike = differences(found, self._expected)
        if unlike:
            self.refuse(worker.node_id, worker.host, f"it is not like this machine ({unlike})")
        else:
            worker.is_ready = True

    @property
    def is_hopeless(self) -> bool:
        """Whether nodes were refused, and none is left."""
        return bool(self.refused) and not self._hired

    def none_left(self) -> ClusterError:
        """What to say when there is no worker."""
        why = f": {'; '.join(self.refused.values())}" if self.refused else "; see `ray status`"
        return ClusterError(f"the cluster has no worker for this run{why}")


def in_one_line(error: BaseException) -> str:
    """The last line of what Ray tells, where the cause is, without its advice."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].partition(" Some common causes include")[0] if lines else type(error).__name__


def _fittest(nodes: Mapping[str, str]) -> str:
    """To take latency on; "" where there are none."""
    own: str = ray.get_runtime_context().get_node_id()
    return own if own in nodes else next(iter(nodes), "")


def _cpus(node: Mapping[str, Any]) -> int:
    """How many a node has for work; none where it is lost."""
    return int(node["Resources"].get("CPU", 0)) if node["Alive"] else 0


def _end(worker: Hired) -> None:
    try:
        ray.kill(worker.actor, no_restart=True)
    except (RayError, ValueError):
        _log.debug("a worker was gone", exc_info=True)
