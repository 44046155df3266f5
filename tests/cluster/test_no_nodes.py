"""A cluster of which nothing is left: what runs there waits for a while, and then says so."""

import os
import signal
from contextlib import ExitStack

import pytest

from tests.cluster.conftest import Shapes, at_work, facts_of, hired, started_cluster, until
from tests.cluster.test_faults import IMAGE, evaluated, stopped
from tuner.errors import ClusterError
from tuner.evaluation.workers import ThisProcess


@pytest.mark.slow
def test_a_node_that_comes_back_in_time_and_one_that_does_not(shapes: Shapes) -> None:
    with ThisProcess().running(shapes.model, IMAGE, evaluated(shapes)) as graph:
        expected = [facts_of(one) for one in graph.find()]
    with ExitStack() as held:
        nodes = held.enter_context(started_cluster())
        nodes.add("first")
        workers = held.enter_context(at_work(patience_s=90.0))
        until(lambda: hired(workers))
        (only,) = hired(workers)
        with stopped(only) as pids, workers.running(shapes.model, IMAGE, evaluated(shapes)) as graph:
            until(lambda: only.given)
            nodes.kill("first")
            os.kill(pids[0], signal.SIGKILL)
            until(lambda: not hired(workers))
            nodes.add("second")
            assert [facts_of(one) for one in graph.find()] == expected
        workers._scheduler._patience_s = 3.0
        nodes.remove("second")
        none_left = pytest.raises(ClusterError, match=r"^the cluster has no worker for this run; see `ray status`$")
        with none_left, workers.running(shapes.model, IMAGE, evaluated(shapes)) as graph:
            list(graph.find())
