"""What a cluster that is not here would do: every call of a candidate's evaluation, played out with measured costs.

    python benchmarks/scale_simulation.py COSTS.json [--detector NAME]

COSTS.json is what `benchmarks/scale.py` writes. Ranges are cut by `tuner.cluster.shards.cut`, and handed out with the
limits of `tuner.cluster`. Nothing here is measured.

What it takes for granted: the thread that hands out also keeps the results, one thing at a time, as Python's lock has
it; images differ by up to 20 %, nodes by up to 5 %, and one node of a hundred takes half as long again; nothing is
lost, the network has no limits, and all workers are there and have the images' records from the start.
"""

import argparse
import heapq
import json
import math
import random
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import count
from pathlib import Path

from scale_costs import SET, Costs

from tuner.cluster.image_calls import CHUNK
from tuner.cluster.scheduler import QUEUED
from tuner.cluster.shards import LONGEST_S, cut
from tuner.cluster.worker import GRAPHS_KEPT
from tuner.cluster.workforce import MANY_IMAGES, MOST_CPUS, MOST_PARTS

# One node of 8 and more of them: MOST_CPUS of a node share a process.
WORKERS = (8, 16, 32, 64, 128, 256, 512)
IMAGES = (5_000, 50_000, 500_000, 5_000_000)
# Sets of these sizes differ by ranges in the middle, which are all alike: so do larger ones, which take long to play.
PLAYED = (50_000, 100_000)
IMAGE_SPREAD, NODE_SPREAD, SLOW_SHARE, SLOWER = 0.2, 0.05, 0.01, 1.5
# Candidates of a stream, the first of which does not count; and how often the plan that was begun first is the next.
STREAM, FIRST_IS_RIGHT = 9, 0.6
# So long the driver plays a search ahead.
AHEAD_S = 0.2
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Driver:
    """What the scheduler takes. give_s, take_s: of a call. scan_s: of a busy worker, each time it looks. trip_s: there
    and back.
    """

    give_s: float
    take_s: float
    scan_s: float
    trip_s: float


@dataclass(frozen=True)
class Cluster:
    """workers: calls that are worked on at a time, in processes of `slots` each, on `nodes` machines.

    image_s: what the driver thinks an image takes when it cuts.
    """

    workers: int
    slots: int
    nodes: int
    image_s: float

    @property
    def processes(self) -> int:
        """How many there are."""
        return self.workers // self.slots


@dataclass(frozen=True)
class Outcome:
    """wall_s: of a candidate. parts: seconds of it in which the workers, on average, did something else than images."""

    wall_s: float
    ideal_s: float
    parts: Mapping[str, float]

    @property
    def efficiency(self) -> float:
        """The share of all workers' time that went into images."""
        return self.ideal_s / self.wall_s

    @property
    def overhead(self) -> float:
        """What is not."""
        return 1 - self.efficiency

    @property
    def largest(self) -> str:
        """The part that costs most."""
        return max(self.parts, key=lambda name: self.parts[name])


@dataclass(eq=False)
class _Job:
    """Calls. graph: tells graphs apart. waiting: the images of each that nobody has yet. rank: 0 for what is asked for.

    left: how many have not ended. done_s: when the last one did.
    """

    graph: int
    waiting: deque[int]
    rank: int
    left: int
    done_s: float = math.inf
    is_over: bool = False


@dataclass(eq=False)
class _Process:
    """running: calls worked on. queued: those behind them. ready: of the graphs that it keeps, from when they can run.

    owed: seconds that what was done beside its calls takes from the next ones.
    """

    node: int
    slowness: float
    running: int = 0
    queued: deque[tuple[_Job, int]] = field(default_factory=deque)
    ready: dict[int, float] = field(default_factory=dict)
    owed: list[float] = field(default_factory=list)


@dataclass(order=True)
class _Call:
    """until_s: when it ends. images: none of what goes beside others. image_s: of one of its images there."""

    until_s: float
    number: int
    process: _Process = field(compare=False)
    job: _Job = field(compare=False)
    images: int = field(compare=False)
    image_s: float = field(compare=False)


class Play:
    """The workers, and the driver's thread that hands out, whose clock is `now_s`.

    spent_s: what workers spent on images and on making graphs, by graph.
    """

    def __init__(self, costs: Costs, driver: Driver, cluster: Cluster, images: int, seed: int) -> None:
        self._costs, self._driver, self._cluster, self._random = costs, driver, cluster, random.Random(seed)
        slowness = [self._random.uniform(1 - NODE_SPREAD, 1 + NODE_SPREAD) for _ in range(cluster.nodes)]
        for slow in self._random.sample(range(cluster.nodes), round(SLOW_SHARE * cluster.nodes)):
            slowness[slow] *= SLOWER
        nodes = [i * cluster.nodes // cluster.processes for i in range(cluster.processes)]
        self._processes = [_Process(node, slowness[node]) for node in nodes]
        # What they can do: that some are slow is no overhead.
        self.capacity = sum(cluster.slots / process.slowness for process in self._processes)
        self._sizes = list(sizes(images, cluster))
        self._jobs: list[_Job] = []
        self._ending: list[_Call] = []
        self._numbers = count()
        # Those that can be given more, in order.
        self._spare = dict.fromkeys(self._processes)
        self._reserved = False
        self.now_s = 0.0
        self.spent_s: Counter[int] = Counter()

    def submit(self, graph: int, rank: int) -> _Job:
        """Begin with the images of a candidate."""
        return self._add(_Job(graph, deque(self._sizes), rank, left=len(self._sizes)))

    def spread(self, calls: int, call_s: float) -> _Job:
        """Begin with calls that do something else, at most one for each process, in a thread that is theirs."""
        processes = self._processes[:calls]
        job = _Job(-1, deque(), 0, left=len(processes))
        for process in processes:
            self.now_s += self._driver.give_s
            spent_s = call_s * process.slowness
            self.spent_s[job.graph] += spent_s
            if process.running:
                self._owe(process, spent_s)
                spent_s *= 1 + 1 / self._cluster.slots
            until_s = self.now_s + spent_s + self._driver.trip_s
            heapq.heappush(self._ending, _Call(until_s, next(self._numbers), process, job, 0, 0.0))
        return self._add(job)

    def _add(self, job: _Job) -> _Job:
        self._jobs.append(job)
        return job

    def prepare(self, graph: int) -> None:
        """Make a graph beside the calls, in all processes that have not got it."""
        for process in self._processes:
            if graph not in process.ready:
                self._owe(process, self._keep(process, graph, self.now_s))

    def prepare_latency(self) -> float:
        """Make the session that latency is taken in, beside the calls of the first process; until when."""
        first = self._processes[0]
        made_s = (self._costs.session_s + self._costs.image_s) * first.slowness
        self._owe(first, made_s)
        return self.now_s + made_s

    def _owe(self, process: _Process, spent_s: float) -> None:
        slots = self._cluster.slots
        process.owed += [spent_s / slots] * slots

    def cancel(self, job: _Job) -> None:
        """What runs ends after its image."""
        job.is_over = True
        job.waiting.clear()
        self._jobs = [one for one in self._jobs if one is not job]
        for process in self._processes:
            process.queued = deque(one for one in process.queued if one[0] is not job)
            self._spare[process] = None
        for call in [one for one in self._ending if one.job is job]:
            ends_s = max(self.now_s, call.until_s - call.images * call.image_s) + call.image_s / 2
            self.spent_s[job.graph] -= max(call.until_s - ends_s, 0.0)
            call.until_s = min(ends_s, call.until_s)
        heapq.heapify(self._ending)

    def until(self, is_so: Callable[[], bool], latest_s: float = math.inf) -> None:
        """Hand out and collect until something is so, or a moment comes."""
        self._hand_out()
        while not is_so() and self.now_s < latest_s:
            if not self._ending or self._ending[0].until_s > latest_s:
                self.now_s = latest_s
                return
            self._collect()
            self._hand_out()

    def wait(self, seconds: float) -> None:
        """Hand out and collect for so long."""
        self.until(lambda: False, self.now_s + seconds)

    def reserve(self, *, is_reserved: bool) -> None:
        """Keep the first node free, for latency."""
        self._reserved = is_reserved

    @property
    def is_free(self) -> bool:
        """Whether nothing runs on the first node."""
        return not any(process.running for process in self._processes if process.node == 0)

    def _hand_out(self) -> None:
        self._jobs.sort(key=lambda job: job.rank)
        if not any(job.waiting for job in self._jobs):
            return
        free = [process for process in self._spare if not (self._reserved and process.node == 0)]
        for most in range(1, self._cluster.slots + QUEUED + 1):
            for process in free:
                given = process.running + len(process.queued)
                is_queued = given >= self._cluster.slots
                if given < most:
                    job = next((one for one in self._jobs if one.waiting and not (is_queued and one.rank)), None)
                    if job is None:
                        break
                    self.now_s += self._driver.give_s
                    process.queued.append((job, job.waiting.popleft()))
                    if not is_queued:
                        self._start(process, self.now_s + self._driver.trip_s / 2)
        full = self._cluster.slots + QUEUED
        self._spare = {process: None for process in self._spare if process.running + len(process.queued) < full}

    def _start(self, process: _Process, at_s: float) -> None:
        job, images = process.queued.popleft()
        made_s = self._keep(process, job.graph, at_s)
        at_s = max(at_s, process.ready[job.graph])
        # The mean of so many that are spread evenly.
        chance = self._random.gauss(1, IMAGE_SPREAD / math.sqrt(3 * images))
        image_s = self._costs.image_s * process.slowness * chance
        spent_s = images * image_s
        if not made_s and process.owed:
            spent_s += process.owed.pop()
        self.spent_s[job.graph] += spent_s
        process.running += 1
        until_s = at_s + spent_s + self._driver.trip_s / 2
        heapq.heappush(self._ending, _Call(until_s, next(self._numbers), process, job, images, image_s))

    def _keep(self, process: _Process, graph: int, at_s: float) -> float:
        """What making a graph takes there; nothing where it is kept."""
        made_s = 0.0
        if graph not in process.ready:
            made_s = (self._costs.lower_s + self._costs.session_s + self._costs.image_s) * process.slowness
            process.ready[graph] = at_s + made_s
            while len(process.ready) > GRAPHS_KEPT:
                del process.ready[next(iter(process.ready))]
        else:
            process.ready[graph] = process.ready.pop(graph)
        return made_s

    def _collect(self) -> None:
        """All that ended by now, or the next; results are kept at once, as if the main thread had no other time."""
        self.now_s = max(self.now_s, self._ending[0].until_s)
        self.now_s += self._driver.scan_s * len(self._ending)
        while self._ending and self._ending[0].until_s <= self.now_s:
            call = heapq.heappop(self._ending)
            self.now_s += self._driver.take_s
            if call.images:
                call.process.running -= 1
                self._spare[call.process] = None
            if not call.job.is_over:
                call.job.left -= 1
                self.now_s += call.images * self._costs.merge_s
                if not call.job.left:
                    call.job.done_s = self.now_s
                    self._jobs.remove(call.job)
            if call.images and call.process.queued:
                self._start(call.process, call.until_s)


def sizes(images: int, cluster: Cluster) -> Iterator[int]:
    """Of the calls of one candidate, in their order: ranges, cut where chunks end."""
    for part in cut(images, cluster.workers, 2.0 ** round(math.log2(cluster.image_s))):
        start = part.start
        while start < part.stop:
            stop = min(part.stop, (start // CHUNK + 1) * CHUNK)
            yield stop - start
            start = stop


@cache
def single(costs: Costs, driver: Driver, cluster: Cluster, images: int, seed: int) -> Outcome:
    """One candidate, from plan to figures, on workers that wait for it."""
    play = Play(costs, driver, cluster, images, seed)
    job = play.submit(0, 0)
    # The driver makes the graph, too.
    play.wait(costs.lower_s)
    found_s = _find(play, job, costs, cluster)
    latency_s = play.now_s
    _own(play, costs, images)
    _figures(play, costs, cluster, images, certify=False)
    ideal_s = images * costs.image_s / play.capacity
    made_s = costs.lower_s + costs.session_s + costs.image_s
    parts = {
        "making the graph": made_s,
        "the last images": found_s - made_s - ideal_s,
        "latency": latency_s - found_s,
        "mAP": play.now_s - latency_s,
    }
    return Outcome(play.now_s, ideal_s, parts)


@cache
def stream(costs: Costs, driver: Driver, cluster: Cluster, images: int, seed: int) -> Outcome:
    """A candidate of a search, when two plans are always begun ahead, one of which is asked for next.

    Which one is known as soon as our own mAP is.
    """
    play, chance = Play(costs, driver, cluster, images, seed), random.Random(seed)
    begun: dict[int, _Job] = {}
    ended: list[tuple[float, Counter[int]]] = []
    for number in range(STREAM):
        # What is asked for has an even number, the other one an odd number.
        right = begun.pop(2 * number, None) or play.submit(2 * number, 1)
        right.rank = 1
        following = [2 * number + 2, 2 * number + 1]
        if chance.random() > FIRST_IS_RIGHT:
            following.reverse()
        begun = {graph: play.submit(graph, rank) for rank, graph in enumerate(following, start=2)}
        play.wait(AHEAD_S)
        for graph in following:
            play.prepare(graph)
        play.wait(costs.lower_s)
        right.rank = 0
        _find(play, right, costs, cluster)
        _own(play, costs, images)
        play.wait(AHEAD_S)
        play.cancel(begun.pop(2 * number + 1))
        # As if every second one passed.
        _figures(play, costs, cluster, images, certify=number % 2 == 1)
        ended.append((play.now_s, play.spent_s.copy()))
    (first_s, before), (last_s, after) = ended[0], ended[-1]
    counted = STREAM - 1
    wall_s, ideal_s = (last_s - first_s) / counted, images * costs.image_s / play.capacity
    wasted = sum(after[graph] - before[graph] for graph in after if graph > 0 and graph % 2)
    # One process makes what all of its slots use.
    made_s = (costs.lower_s + costs.session_s + costs.image_s) / cluster.slots
    parts = {
        "making the graph": made_s,
        "plans begun in vain": wasted / counted / cluster.workers,
        "latency": costs.latency_s / cluster.nodes,
        "mAP": (after[-1] - before[-1]) / counted / cluster.workers,
    }
    parts["waiting"] = wall_s - ideal_s - sum(parts.values())
    return Outcome(wall_s, ideal_s, parts)


def _find(play: Play, job: _Job, costs: Costs, cluster: Cluster) -> float:
    """When all images are found; when the clock stops, latency is known, too."""
    # As `ClusterWorkforce` has it: what the other nodes do while one takes latency, for as long as it took last time.
    meanwhile_s = costs.latency_s + max(LONGEST_S, cluster.image_s)
    meanwhile = meanwhile_s * cluster.workers * (1 - 1 / cluster.nodes) / cluster.image_s
    play.until(lambda: sum(job.waiting) <= meanwhile)
    play.reserve(is_reserved=True)
    prepared_s = play.prepare_latency()
    play.until(lambda: play.is_free)
    play.wait(max(prepared_s - play.now_s, 0.0) + costs.latency_s)
    play.reserve(is_reserved=False)
    play.until(lambda: not job.left)
    return job.done_s


def _own(play: Play, costs: Costs, images: int) -> None:
    """mAP of our own."""
    play.wait(costs.own_s * images / SET)


def _figures(play: Play, costs: Costs, cluster: Cluster, images: int, *, certify: bool) -> None:
    """COCO's figures, spread as `ClusterWorkforce.metrics` does it. certify: by pycocotools, as those that pass."""
    whole_s, part_s = (costs.certify_s, costs.certify_part_s) if certify else (costs.faster_s, costs.faster_part_s)
    share = images / SET
    if cluster.processes == 1 or images < MANY_IMAGES:
        play.wait(whole_s * share)
        return
    play.wait(costs.tables_s * share)
    parts = min(cluster.processes, costs.parts, MOST_PARTS)
    job = play.spread(parts, max(part_s, (whole_s - costs.tables_s) / parts) * share)
    play.until(lambda: not job.left)


def outcome(play: Callable[[int], Outcome], images: int) -> Outcome:
    """What comes of so many images: played, or continued from the largest two that are."""
    if images <= PLAYED[-1]:
        return play(images)
    less, more = map(play, PLAYED)
    further = (images - PLAYED[1]) / (PLAYED[1] - PLAYED[0])

    def continued(before: float, after: float) -> float:
        return after + further * (after - before)

    return Outcome(
        continued(less.wall_s, more.wall_s),
        continued(less.ideal_s, more.ideal_s),
        {name: continued(less.parts[name], after) for name, after in more.parts.items()},
    )


def print_tables(costs: Costs, driver: Driver) -> None:
    """Efficiency by workers and images, of single candidates and of those of a stream, and what costs most."""
    for play, told in ((single, "a candidate alone"), (stream, "candidates of a search")):
        print(
            f"\n{costs.name}, {told}: share of the workers' time that goes into images; what costs most of the rest\n"
        )
        print(f"| images | {' | '.join(f'{workers} workers' for workers in WORKERS)} |\n|---|{'---|' * len(WORKERS)}")
        for images in IMAGES:
            cells = []
            for workers in WORKERS:
                cluster = Cluster(workers, MOST_CPUS, workers // MOST_CPUS, costs.image_s)
                played = [outcome(partial(play, costs, driver, cluster, seed=seed), images) for seed in SEEDS]
                mean = sum(one.efficiency for one in played) / len(played)
                cells.append(f"{mean:.1%}, {played[0].largest}")
            print(f"| {images:,} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Read costs, print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("costs", type=Path)
    parser.add_argument("--detector", help="all of the file unless given")
    asked = parser.parse_args()
    told = json.loads(asked.costs.read_text())
    for costs in (Costs(**one) for one in told["detectors"]):
        if asked.detector in {None, costs.name}:
            print_tables(costs, Driver(**told["driver"]))


if __name__ == "__main__":
    main()
