"""What happens to workers in mid-evaluation costs time, and not a bit of a result."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.cluster.conftest import Nodes, Shapes, at_work, facts_of, hired, process_of, until
from tuner.cluster import scheduler as scheduling
from tuner.cluster.hired import Hired
from tuner.cluster.jobs import Job
from tuner.cluster.workforce import ClusterWorkforce
from tuner.errors import EvaluationError
from tuner.evaluation import workers as evaluation_workers
from tuner.evaluation.coco_map import IouType
from tuner.evaluation.workers import EvaluationImages, ThisProcess
from tuner.model.detection_model import DetectionModel

IMAGES = 120
IMAGE = np.zeros((1, 128, 128, 3), np.uint8)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation_workers, "LATENCY_BUDGET_S", 0.01)


@pytest.fixture(scope="module")
def workers(nodes: Nodes) -> Iterator[ClusterWorkforce]:
    """Those that all tests share; what one of them breaks is made up for by `two`."""
    with pytest.MonkeyPatch.context() as patch, at_work(hang_s=8.0) as at:
        # On a busy machine a call may take seconds, and twenty times as long is more than a test waits.
        patch.setattr(scheduling, "HANG_FACTOR", 2)
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


def test_a_call_hangs(
    workers: ClusterWorkforce, two: list[Hired], shapes: Shapes, expected: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    with stopped(two[0]) as pids:
        assert in_mid_evaluation(workers, shapes, two[:1], lambda: None) == expected
        until(lambda: not alive(pids[0]))
    assert "did not answer for" in caplog.text


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def node_of(worker: Hired, nodes: Nodes) -> str:
    return next(name for name in nodes.started if nodes.node_id(name) == worker.node_id)


@pytest.mark.parametrize("how", ["killed", "removed"])
def test_a_node_is_lost(
    workers: ClusterWorkforce, two: list[Hired], nodes: Nodes, shapes: Shapes, *, expected: list[Any], how: str
) -> None:
    """The one on which latency is taken: that goes on on the other one."""
    pinned = workers._pool.pinned
    doomed = next(worker for worker in two if worker.node_id == pinned)
    lose = nodes.kill if how == "killed" else nodes.remove
    with stopped(doomed) as pids:
        with workers.running(shapes.model, IMAGE, evaluated(shapes)) as graph:
            until(lambda: doomed.given)
            lose(node_of(doomed, nodes))
            assert [facts_of(one) for one in graph.find()] == expected
            assert graph.latency().median_ms > 0
        until(lambda: workers._pool.pinned != pinned)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_the_pinned_node_is_lost_while_latency_is_measured(
    workers: ClusterWorkforce, two: list[Hired], nodes: Nodes, shapes: Shapes
) -> None:
    pinned = workers._pool.pinned
    doomed = next(worker for worker in two if worker.node_id == pinned)
    with stopped(doomed), workers.running(shapes.model, IMAGE) as graph:
        until(lambda: doomed.given)
        nodes.kill(node_of(doomed, nodes))
        assert graph.latency().median_ms > 0
    assert workers._pool.pinned != pinned


def test_a_node_is_added(
    workers: ClusterWorkforce, two: list[Hired], nodes: Nodes, shapes: Shapes, expected: list[Any]
) -> None:
    """It does what those that stand still do not come to."""
    known = set(two)
    with stopped(*two), workers.running(shapes.model, IMAGE, evaluated(shapes)) as graph:
        nodes.add("new")
        until(lambda: [worker for worker in hired(workers) if worker.has_worked and worker not in known])
        assert [facts_of(one) for one in graph.find()] == expected


def aborting(model: DetectionModel) -> DetectionModel:
    """The same graph, which ends its process when it is run."""
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(model.graph_def, name="")
        with tf.control_dependencies([tf.raw_ops.Abort(error_msg="for the test", name="abort")]):
            tf.identity(graph.get_tensor_by_name("num_detections:0"), name="number")
    graph_def = graph.as_graph_def()
    for node in graph_def.node:
        if node.name == "detection_scores":
            node.input.append("^abort")
    return model.with_graph(graph_def)


@pytest.mark.slow
def test_a_graph_that_ends_its_workers_is_told_and_the_next_one_goes_on(
    workers: ClusterWorkforce, two: list[Hired], shapes: Shapes, expected: list[Any]
) -> None:
    deadly = aborting(shapes.model)
    for _ in range(2):
        with (
            pytest.raises(EvaluationError, match=r"^images 1 to \d+: 3 workers were lost with it; the last one, on "),
            workers.running(deadly, IMAGE, evaluated(shapes)) as graph,
        ):
            next(graph.find())
    assert workers._pool.refused == {}
    with workers.running(shapes.model, IMAGE, evaluated(shapes)) as graph:
        assert [facts_of(one) for one in graph.find()] == expected


def test_what_is_dropped_is_not_handed_out_any_more(
    workers: ClusterWorkforce, two: list[Hired], shapes: Shapes, counted: list[Job], expected: list[Any]
) -> None:
    images = EvaluationImages(shapes.images(10 * IMAGES), (IouType.BBOX,))
    with workers.running(shapes.model, IMAGE, images) as graph:
        found = graph.find()
        next(found)
        found.close()
        dropped = counted[0]
        assert dropped.is_over
        assert not dropped.waiting
        began = time.monotonic()
        with workers.running(shapes.model, IMAGE, evaluated(shapes)) as next_graph:
            next(next_graph.find())
        dropped_after_s = time.monotonic() - began
    assert not dropped.results
    assert len(dropped.results.taken) < len(dropped.calls)
    assert dropped_after_s < scheduling.HANG_S


def test_nodes_of_another_kind_are_refused_and_named(
    workers: ClusterWorkforce, two: list[Hired], nodes: Nodes, caplog: pytest.LogCaptureFixture
) -> None:
    nodes.add("strange", TF_ENABLE_ONEDNN_OPTS="0")
    # Another one may be out of use since its workers were killed one after another.
    node_id = nodes.node_id("strange")
    until(lambda: node_id in workers._pool.refused)
    assert workers._pool.refused[node_id].endswith(
        "it is not like this machine (TF_ENABLE_ONEDNN_OPTS: 0, here not set)"
    )
    assert caplog.text.count("is not used: it is not like this machine") == 1
    nodes.remove("strange")
    assert all(worker.node_id != node_id for worker in hired(workers))
