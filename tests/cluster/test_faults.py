"""What happens to workers in mid-evaluation costs time, and not a bit of a result."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pytest

from tests.cluster.conftest import Nodes, Shapes, at_work, facts_of, hired, process_of, until
from tuner.cluster import scheduler as scheduling
from tuner.cluster.jobs import Job
from tuner.cluster.pool import Hired
from tuner.cluster.workforce import ClusterWorkforce
from tuner.evaluation import workers as evaluation_workers
from tuner.evaluation.coco_map import IouType
from tuner.evaluation.workers import EvaluationImages, ThisProcess

IMAGES = 120
IMAGE = np.zeros((1, 128, 128, 3), np.uint8)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation_workers, "LATENCY_BUDGET_S", 0.01)


@pytest.fixture(scope="module")
def workers(nodes: Nodes) -> Iterator[ClusterWorkforce]:
    """Those that all tests share; what one of them breaks is made up for by `two`."""
    with at_work(hang_s=8.0) as at:
        yield at


@pytest.fixture
def two(nodes: Nodes, workers: ClusterWorkforce) -> list[Hired]:
    """Two workers, each on a node of its own, which nothing happened to."""
    return at_least(2, nodes, workers)


def at_least(count: int, nodes: Nodes, workers: ClusterWorkforce) -> list[Hired]:
    while len(nodes.started) < count:
        nodes.add(f"node {time.monotonic()}")
    until(lambda: len(hired(workers)) == len(nodes.started) >= count)
    return hired(workers)


@pytest.fixture(scope="module")
def expected(shapes: Shapes) -> list[Any]:
    with ThisProcess().running(shapes.model, IMAGE, evaluated(shapes)) as graph:
        return [facts_of(one) for one in graph.find()]


def evaluated(shapes: Shapes) -> EvaluationImages:
    return EvaluationImages(shapes.images(IMAGES), (IouType.BBOX,))


class Once(dict[int, Any]):
    """Results of a job, of which none may be taken twice."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[int] = []

    def __setitem__(self, index: int, found: Any) -> None:
        self.taken.append(index)
        super().__setitem__(index, found)


@pytest.fixture(autouse=True)
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Job]]:
    """The jobs of a test; whatever happened, no result was taken twice."""
    jobs: list[Job] = []
    submit = scheduling.Scheduler.submit

    def submitted(self: scheduling.Scheduler, job: Job) -> Job:
        job.results = Once()
        jobs.append(job)
        return submit(self, job)

    monkeypatch.setattr(scheduling.Scheduler, "submit", submitted)
    yield jobs
    for job in jobs:
        taken = job.results.taken
        assert len(taken) == len(set(taken))


@contextmanager
def stopped(*workers: Hired) -> Iterator[list[int]]:
    """Processes that stand still, so that what they are handed is on its way until something is done about it."""
    pids = [process_of(worker) for worker in workers]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield pids
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def in_mid_evaluation(workers: ClusterWorkforce, shapes: Shapes, doomed: list[Hired], happens: Any) -> list[Any]:
    """What is found where something happens while workers have calls."""
    with workers.running(shapes.model, IMAGE, evaluated(shapes)) as graph:
        until(lambda: all(worker.given for worker in doomed))
        happens()
        return [facts_of(one) for one in graph.find()]


def test_a_worker_is_killed(
    workers: ClusterWorkforce, two: list[Hired], shapes: Shapes, expected: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    with stopped(two[0]) as pids:
        found = in_mid_evaluation(workers, shapes, two[:1], lambda: os.kill(pids[0], signal.SIGKILL))
    assert found == expected
    told = [record.getMessage() for record in caplog.records if record.name.startswith("tuner")]
    assert len(told) == 1
    assert told[0].startswith(f"a worker on {two[0].host} was lost: ")
    assert workers._pool.refused == {}


def test_all_workers_are_killed_at_once(
    workers: ClusterWorkforce, two: list[Hired], shapes: Shapes, expected: list[Any]
) -> None:
    with stopped(*two) as pids:
        found = in_mid_evaluation(workers, shapes, two, lambda: [os.kill(pid, signal.SIGKILL) for pid in pids])
    assert found == expected
