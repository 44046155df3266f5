"""Real clusters of this machine's own: a head without workers, and nodes that tests add, remove and kill."""

import dataclasses
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.cluster_utils import Cluster

from tuner.cluster.hired import Hired
from tuner.cluster.workforce import ClusterSettings, ClusterWorkforce, cluster_workforce
from tuner.data.dataset import DetectionDataset, open_dataset
from tuner.engine import Engine, LoweringSource
from tuner.model.detection_model import DetectionModel
from tuner.model.loading import load_model
from tuner.precision import INT8, PrecisionPlan
from tuner.quantization.quantize import QuantizableOps, find_quantizable_ops, prepare
from tuner.quantization.ranges import collect_ranges
from tuner.trial import Proposal

SHAPES = Path(__file__).parents[2] / "datasets" / "shapes"
PATIENCE_S = 120.0
# What waits for workers would wait for ever if one got lost.
LIMIT_S = 170
MEMORY_BYTES = 150 * 2**20


@pytest.fixture(autouse=True)
def limited(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that hangs fails."""

    def end(number: int, frame: object) -> None:
        raise TimeoutError(f"{request.node.name}: hangs")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(LIMIT_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def until(is_so: Callable[[], Any], within_s: float = 90.0) -> None:
    """Wait until something is so."""
    end = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.05)


@dataclass
class Nodes:
    """A cluster. started: its nodes by name."""

    cluster: Cluster
    started: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, cpus: int = 1, **variables: str) -> None:
        node = self.cluster.add_node(
            num_cpus=cpus, object_store_memory=MEMORY_BYTES, env_vars=variables or None, wait=False
        )
        self.started[name] = node

    def remove(self, name: str) -> None:
        self.cluster.remove_node(self.started.pop(name), allow_graceful=True)

    def kill(self, name: str) -> None:
        """End a node as a machine ends that loses its power."""
        for process in self.started.pop(name).all_processes["raylet"]:
            os.kill(process.process.pid, signal.SIGKILL)

    def node_id(self, name: str) -> str:
        return str(self.started[name].node_id)


@contextmanager
def started_cluster() -> Iterator[Nodes]:
    """A cluster whose head has no CPU for work; `auto` means it."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # A raylet that was killed is noticed in seconds instead of half a minute.
        for name, value in (
            ("initial_delay_ms", 0),
            ("period_ms", 500),
            ("timeout_ms", 1000),
            ("failure_threshold", 4),
        ):
            environment.setenv(f"RAY_health_check_{name}", str(value))
        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": MEMORY_BYTES}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        environment.setenv("RAY_ADDRESS", cluster.address)
        try:
            yield Nodes(cluster)
        finally:
            cluster.shutdown()


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with started_cluster() as started:
        yield started


@contextmanager
def at_work(**settings: Any) -> Iterator[ClusterWorkforce]:
    with cluster_workforce("auto", ClusterSettings(**{"patience_s": PATIENCE_S, **settings})) as workers:
        yield workers


def hired(workers: ClusterWorkforce) -> list[Hired]:
    """Those that are ready."""
    return list(workers._pool)


def process_of(worker: Hired) -> int:
    pid: int = ray.get(worker.actor.call.remote(os.getpid, []), timeout=60)
    return pid


@dataclass(frozen=True)
class Shapes:
    """The embedded detector. engine: makes its graphs, as nobody knows; all_int8: the plan of all."""

    model: DetectionModel
    prepared: DetectionModel
    ops: QuantizableOps
    engine: Engine
    calibration: Sequence[Any]
    all_int8: Proposal
    dataset: DetectionDataset

    def images(self, count: int) -> DetectionDataset:
        """So many, each one again under another id where there are not enough."""
        entries = self.dataset.entries
        repeated = [replace(entries[n % len(entries)], image_id=10_000 + n) for n in range(count)]
        return replace(self.dataset, entries=tuple(repeated))


@pytest.fixture(scope="session")
def shapes() -> Shapes:
    model = load_model(SHAPES / "detector.pb")
    prepared = prepare(model)
    ops = find_quantizable_ops(prepared)
    calibration = [sample.image[np.newaxis] for sample in open_dataset(SHAPES / "calibration.record", limit=4)]
    source = LoweringSource(prepared, collect_ranges(prepared, ops.tensors, calibration), matmul_kernel=True)
    engine = Engine(source.lower, lambda graph: PrecisionPlan({}), source)
    plan = Proposal(PrecisionPlan(dict.fromkeys(ops.names, INT8)), len(calibration))
    dataset = open_dataset(SHAPES / "evaluation.record", limit=40)
    return Shapes(model, prepared, ops, engine, calibration, plan, dataset)


def facts_of(value: Any) -> Any:
    """A value as plain ones that are equal where every bit is."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {one.name: facts_of(getattr(value, one.name)) for one in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return [(facts_of(key), facts_of(one)) for key, one in value.items()]
    if isinstance(value, list | tuple):
        return [facts_of(one) for one in value]
    return value.hex() if isinstance(value, float) else value
