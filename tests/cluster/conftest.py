"""Real clusters of this machine's own: a head without workers, and nodes that tests add, remove and kill."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from tuner.cluster.workforce import ClusterSettings, ClusterWorkforce, cluster_workforce

PATIENCE_S = 120.0


@dataclass
class Nodes:
    """A cluster. started: its nodes by name."""

    cluster: Cluster
    started: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, cpus: int = 1, **variables: str) -> None:
        node = self.cluster.add_node(
            num_cpus=cpus, object_store_memory=150 * 2**20, env_vars=variables or None, wait=False
        )
        self.started[name] = node

    def remove(self, name: str) -> None:
        self.cluster.remove_node(self.started.pop(name), allow_graceful=True)

    def kill(self, name: str) -> None:
        """End a node as a machine ends that loses its power."""
        node = self.started[name]
        for process in node.all_processes["raylet"]:
            os.kill(process.process.pid, signal.SIGKILL)

    def node_id(self, name: str) -> str:
        return str(self.started[name].node_id)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    """A cluster whose head has no CPU for work."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": 150 * 2**20},
    )
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    yield Nodes(cluster)
    cluster.shutdown()


@contextmanager
def at_work(**settings: Any) -> Iterator[ClusterWorkforce]:
    with cluster_workforce("auto", ClusterSettings(**{"patience_s": PATIENCE_S, **settings})) as workers:
        yield workers
