"""Candidates on 1, 2 and 4 workers of this machine against one process, and what everything costs; print tables.

    python benchmarks/scale.py [--detector MODEL DATASET IMAGES]... [--large MODEL DATASET IMAGES]... [--costs FILE]

The shapes detector is always among those that are measured. A candidate is what `tuner tune` does with a plan: the
graph is made, all images are looked at, latency is taken, mAP is computed. Each has a graph of its own. The ways take
turns, in another order each round. `--large`: costs only, for detectors too slow to be run whole on one machine.

On two cores this shows what workers cost, not what sixty-four of them give: 2 workers of one thread do what one process
of two threads does, and 4 share the cores. For more see the tables that follow, of `scale_simulation.py`.
"""

import argparse
import json
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import ray
import scale_simulation
from ray._private.worker import global_worker
from scale_costs import Costs, Subject, measure, subject, took
from scale_simulation import Cluster, Driver

from tuner.cluster.address import parse_address
from tuner.cluster.connection import connected
from tuner.cluster.facts import read_facts
from tuner.cluster.pool import Pool, PoolSettings
from tuner.cluster.scheduler import Call, Job, Scheduler
from tuner.cluster.workforce import ClusterWorkforce
from tuner.evaluation.evaluator import CocoEvaluator
from tuner.evaluation.workers import Found, ThisProcess
from tuner.progress import Silent

ROOT = Path(__file__).parents[1]
SHAPES = (ROOT / "datasets/shapes/detector.pb", ROOT / "datasets/shapes/evaluation.record", 400)
ALONE_1, ALONE_2 = "one process, 1 thread", "one process, 2 threads"
# CPUs of the cluster, and those of each of its processes; none for this process.
WAYS: dict[str, tuple[int, int]] = {
    ALONE_1: (0, 0),
    ALONE_2: (0, 0),
    "1 worker": (1, 1),
    "2 workers": (2, 1),
    "2 workers in one process": (2, 2),
    "4 workers": (4, 1),
}
EMPTY_CALLS = 300
WAITED_FOR = 64
COSTS_TOLD = [field.name for field in fields(Costs) if field.name.endswith(("_s", "_bytes"))]


@dataclass(frozen=True)
class Candidate:
    """Seconds: until the last image was looked at, and of the whole. accuracy: its mAP, which has to be the same."""

    found_s: float
    whole_s: float
    accuracy: float


class Watch(Silent):
    """Tells when the last image was there."""

    def __init__(self) -> None:
        self.found_at = 0.0

    def track(self, items: Any, total: int, title: str) -> Iterator[Found]:
        """See `Progress`."""
        yield from items
        self.found_at = time.perf_counter()


# By detector and way.
Rounds = dict[tuple[str, str], list[Candidate]]


@dataclass(frozen=True)
class Employer:
    """The workers of a cluster that was started for this."""

    scheduler: Scheduler
    workforce: ClusterWorkforce

    def call(self, function: Callable[..., Any], *arguments: Any, times: int = 1) -> list[Any]:
        """What a function gives in a worker."""
        calls = [Call("call", (function, arguments), function.__name__) for _ in range(times)]
        return list(self.scheduler.results(self.scheduler.submit(Job(calls))))


@contextmanager
def employed(workers: int, in_process: int = 1) -> Iterator[Employer]:
    """A cluster of so many workers of one thread, ready."""
    with connected(parse_address(f"local:{workers}")):
        pool = Pool(PoolSettings(threads=1, cpus=in_process), read_facts())
        with closing(Scheduler(pool)) as scheduler:
            while scheduler.slots < workers:
                time.sleep(0.05)
            yield Employer(scheduler, ClusterWorkforce(scheduler, pool, (1, 0)))


def main() -> None:
    """Measure, write the costs, print all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    three = {"nargs": 3, "metavar": ("MODEL", "DATASET", "IMAGES"), "action": "append", "default": []}
    parser.add_argument("--detector", **three)
    parser.add_argument("--large", **three)
    parser.add_argument("--costs", type=Path, default=Path("output/scale/costs.json"))
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    subjects = [subject(*SHAPES), *(named(one) for one in asked.detector)]
    found = rounds(subjects, asked.rounds)
    driver, costs = everything(subjects, [named(one) for one in asked.large])
    asked.costs.parent.mkdir(parents=True, exist_ok=True)
    asked.costs.write_text(
        json.dumps({"driver": asdict(driver), "detectors": [asdict(one) for one in costs]}, indent=1)
    )
    print_rounds(subjects, found, driver, {one.name: one for one in costs})
    print_costs(driver, costs)
    for one in costs:
        scale_simulation.print_tables(one, driver)


def named(asked: list[str]) -> Subject:
    """A detector as the arguments have it."""
    model, dataset, images = asked
    return subject(Path(model), Path(dataset), int(images))


def rounds(subjects: list[Subject], count: int) -> Rounds:
    """Candidates by detector and way; the first of each start is for decoding the images, and does not count."""
    found: Rounds = defaultdict(list)
    random = np.random.default_rng(0)
    for _ in range(count):
        for way in random.permutation(list(WAYS)):
            if WAYS[way][0]:
                with employed(*WAYS[way]) as employer:
                    for one in subjects:
                        engine = employer.workforce.learn(one.engine)
                        found[one.name, way] += candidates(one, engine.quantize, employer.workforce)
            else:
                for one in subjects:
                    found[one.name, way] += candidates(one, one.engine.quantize, ThisProcess(1 + (way == ALONE_2)))
    return found


def candidates(of: Subject, quantize: Callable[..., Any], workers: Any) -> list[Candidate]:
    """One more than counts."""
    watch = Watch()
    evaluator = CocoEvaluator(of.dataset, watch, workers=workers)
    counted = []
    for _ in range(2):
        started = time.perf_counter()
        measured = evaluator.evaluate(quantize(next(of.plans)), lambda accuracies: False)
        counted.append(
            Candidate(watch.found_at - started, time.perf_counter() - started, getattr(measured, "accuracy", -1.0))
        )
    return counted[1:]


def everything(subjects: list[Subject], large: list[Subject]) -> tuple[Driver, list[Costs]]:
    """What calls cost on a cluster of one worker, and what candidates of each detector cost."""
    asked_at = time.perf_counter()
    with employed(1) as employer:
        driver = driver_costs(employer, time.perf_counter() - asked_at)
        (before_mb,) = employer.call(resident_mb)
        costs = [measure(one, sent_bytes, packed) for one in subjects + large]
    for one, cost in zip(subjects + large, costs, strict=True):
        with employed(1) as employer:
            engine = employer.workforce.learn(one.engine)
            candidates(one, engine.quantize, employer.workforce)
            (memory_mb,) = employer.call(resident_mb)
        plan_bytes = len(json.dumps(next(one.plans).to_json()))
        sent = f"a plan is {plan_bytes / 1e3:.1f} kB of JSON, a graph {cost.graph_bytes / 1e6:.1f} MB"
        print(f"- {cost.name}: {sent}; a worker has {memory_mb:.0f} MB with it, {before_mb:.0f} MB before.")
    return driver, costs


def driver_costs(employer: Employer, start_s: float) -> Driver:
    """Of calls that do nothing; and of waiting for many that do not end."""
    employer.call(nothing)
    trip_s = statistics.median(took(employer.call, nothing)[0] for _ in range(50))
    each_s = took(lambda: employer.call(nothing, times=EMPTY_CALLS))[0] / EMPTY_CALLS
    sleeper = ray.remote(num_cpus=0)(Sleeper).remote()
    references = [sleeper.sleep.remote(3.0 if i == 0 else 0.0) for i in range(WAITED_FOR)]
    scans = [took(lambda: ray.wait(references, num_returns=WAITED_FOR, timeout=0))[0] for _ in range(50)]
    scan_s = statistics.median(scans) / WAITED_FOR
    ray.kill(sleeper)
    print(f"- A cluster of one worker is there after {start_s:.1f} s.")
    print(f"- A call that does nothing takes {trip_s * 1e3:.1f} ms alone, {each_s * 1e3:.2f} ms where many follow.")
    print(f"- To look whether a call has ended takes {scan_s * 1e6:.1f} us.")
    return Driver(give_s=each_s / 2, take_s=each_s / 2, scan_s=scan_s, trip_s=max(trip_s - each_s, 0.0))


class Sleeper:
    """Lets calls wait."""

    def sleep(self, seconds: float) -> None:
        """Do nothing for so long."""
        time.sleep(seconds)


def nothing() -> None:
    """Do nothing."""


def resident_mb() -> float:
    """MB of memory that this process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def sent_bytes(value: object) -> int:
    """Of a value as Ray sends it."""
    return int(global_worker.get_serialization_context().serialize(value).total_bytes)


def packed(value: object) -> Callable[[], object]:
    """Puts a value into the object store; what it gives takes it out."""
    reference = ray.put(value)
    return lambda: ray.get(reference)


def print_rounds(subjects: list[Subject], found: Rounds, driver: Driver, costs: dict[str, Costs]) -> None:
    """What was measured, and what the simulation says of the same."""
    print(
        "\n| detector | images | way | until the last image s | candidate s | as one process, 1 thread | simulated s |"
    )
    print("|---|---|---|---|---|---|---|")
    for one in subjects:
        usual = statistics.median(each.found_s for each in found[one.name, ALONE_1])
        for way, (workers, in_process) in WAYS.items():
            seconds = statistics.median(each.found_s for each in found[one.name, way])
            whole = statistics.median(each.whole_s for each in found[one.name, way])
            simulated = ""
            if workers and workers <= len(os.sched_getaffinity(0)):
                cluster = Cluster(workers, in_process, 1, costs[one.name].image_s)
                played = scale_simulation.single(costs[one.name], driver, cluster, len(one.dataset), 0)
                simulated = f"{played.wall_s:.2f}"
            cells = [
                str(len(one.dataset)),
                way,
                f"{seconds:.2f}",
                f"{whole:.2f}",
                f"{usual / seconds:.2f} x",
                simulated,
            ]
            print(f"| {one.name} | {' | '.join(cells)} |")


def print_costs(driver: Driver, costs: list[Costs]) -> None:
    """One column for each detector."""
    print(f"\n| what | {' | '.join(one.name for one in costs)} |\n|---|{'---|' * len(costs)}")
    for name in COSTS_TOLD:
        scale, unit = (1.0, "bytes") if name.endswith("_bytes") else (1e3, "ms")
        told = [getattr(one, name) * (scale if unit == "ms" else 1.0) for one in costs]
        print(
            f"| {name.rpartition('_')[0].replace('_', ' ')}, {unit} | {' | '.join(f'{value:,.2f}' for value in told)} |"
        )


if __name__ == "__main__":
    main()
