"""Where the time of a model's runs goes: by node, by op type and by the part of the detector."""

import statistics
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.core.framework.graph_pb2 import GraphDef
from tensorflow.core.framework.step_stats_pb2 import StepStats

from tuner.errors import ModelError
from tuner.graph.profile_stages import Stage, find_stages
from tuner.graph.profile_trace import Event, Kind, chrome_trace, read_events
from tuner.model.detection_model import DetectionModel
from tuner.model.runner import ModelRunner

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class NodeTime:
    """What one node of the graph that ran takes in a run, in all its calls; a node in a loop has several.

    time_us: the median over the runs. Of a node on a GPU the time of its kernels, where the record has them.
    """

    name: str
    op: str
    stage: Stage
    calls: int
    time_us: float


@dataclass(frozen=True, slots=True)
class CopyTime:
    """Copies of one direction between the memories of CPU and GPU in a run: MemcpyH2D is to the GPU. Medians."""

    direction: str
    copies: int
    copied_bytes: int
    time_us: float


@dataclass(frozen=True)
class Profile:
    """Where the time of a run goes.

    latency_ms: median of runs without tracing, taken in turns with the traced ones.
    nodes: the slowest first. copies: empty without a GPU. trace: an object of the Trace Event Format.
    """

    latency_ms: float
    runs: int
    nodes: tuple[NodeTime, ...]
    copies: tuple[CopyTime, ...]
    trace: Mapping[str, Any] = field(repr=False)

    @property
    def total_us(self) -> float:
        """The times of all nodes together: more than a run takes where nodes run side by side."""
        return sum(node.time_us for node in self.nodes)

    @property
    def stages_us(self) -> dict[Stage, float]:
        """The time of each part of the detector."""
        return {stage: sum(node.time_us for node in self.nodes if node.stage is stage) for stage in Stage}

    @property
    def ops(self) -> list[tuple[str, int, float]]:
        """Of each op type its name, the number of calls in a run and their time in us; the slowest first."""
        found: dict[str, tuple[int, float]] = {}
        for node in self.nodes:
            calls, time_us = found.get(node.op, (0, 0.0))
            found[node.op] = calls + node.calls, time_us + node.time_us
        return sorted(((op, *sums) for op, sums in found.items()), key=lambda row: -row[2])

    def to_json(self) -> dict[str, Any]:
        """The figures as a JSON object, without the trace; times in us for one run, shares of `total_us`."""
        whole = self.total_us or 1.0
        return {
            "schema": SCHEMA,
            "runs": self.runs,
            "latency_ms": self.latency_ms,
            "total_us": self.total_us,
            "stages": {stage.value: {"time_us": us, "share": us / whole} for stage, us in self.stages_us.items()},
            "ops": [{"op": op, "calls": calls, "time_us": us, "share": us / whole} for op, calls, us in self.ops],
            "nodes": [
                {
                    "name": node.name,
                    "op": node.op,
                    "stage": node.stage.value,
                    "calls": node.calls,
                    "time_us": node.time_us,
                    "share": node.time_us / whole,
                }
                for node in self.nodes
            ],
            "copies": [
                {"direction": one.direction, "copies": one.copies, "bytes": one.copied_bytes, "time_us": one.time_us}
                for one in self.copies
            ],
        }


def profile(model: DetectionModel, images: NDArray[Any], *, runs: int = 10, warmup: int = 3) -> Profile:
    """Run a model on a batch of images, [N, H, W, 3], and tell where the time goes.

    runs: traced ones, each after a plain one whose time is taken. warmup: runs before these.
    Raises ModelError for less than one run, or when TensorFlow fails.
    """
    with ModelRunner(model, keeps_graphs=True) as runner:
        return profile_running(runner, images, runs=runs, warmup=warmup)


def profile_running(runner: ModelRunner, images: NDArray[Any], *, runs: int, warmup: int) -> Profile:
    """The same of a model that runs already, with `keeps_graphs`."""
    if runs < 1 or warmup < 0:
        raise ModelError(f"runs, warmup: got {runs} and {warmup}; expected at least 1 and 0")
    gpu = bool(tf.config.list_physical_devices("GPU"))
    latencies_ms, records = [], []
    fed = runner.as_fed(images)
    for _ in range(warmup):
        runner.run(fed)
    graphs = runner.trace(fed, graphs=True).partition_graphs
    for _ in range(runs):
        start = time.perf_counter()
        runner.run(fed)
        latencies_ms.append((time.perf_counter() - start) * 1000)
        records.append(runner.trace(fed, gpu=gpu).step_stats)
    return read_profile(records, graphs, statistics.median(latencies_ms))


def read_profile(records: Sequence[StepStats], graphs: Iterable[GraphDef], latency_ms: float) -> Profile:
    """What traced runs tell. graphs: the ones that ran, one for each device, whose node names the records hold."""
    graphs = list(graphs)
    ops = {node.name: node.op for graph in graphs for node in graph.node}
    stages = find_stages(graphs)
    runs = [read_events(record, ops) for record in records]
    return Profile(
        latency_ms,
        len(runs),
        tuple(sorted(_node_times(runs, stages), key=lambda node: -node.time_us)),
        tuple(_copy_times(runs)),
        chrome_trace(runs, stages),
    )


def _node_times(runs: Sequence[Sequence[Event]], stages: Mapping[str, Stage]) -> list[NodeTime]:
    # A launch is over long before what it started: it counts only where the record has no kernels.
    with_kernels = any(event.kind is Kind.KERNEL for run in runs for event in run)
    counted = {Kind.NODE, Kind.KERNEL} if with_kernels else {Kind.NODE, Kind.LAUNCH}
    per_run = [_by_name(event for event in run if event.kind in counted) for run in runs]
    ops = {event.name: event.op for run in runs for event in run if event.kind in counted}
    return [
        NodeTime(
            name,
            op or "unknown",
            stages.get(name, Stage.REST),
            round(statistics.median(len(times.get(name, ())) for times in per_run)),
            statistics.median(sum(event.duration_us for event in times.get(name, ())) for times in per_run),
        )
        for name, op in ops.items()
    ]


def _copy_times(runs: Sequence[Sequence[Event]]) -> list[CopyTime]:
    directions = sorted({event.op for run in runs for event in run if event.kind is Kind.COPY})
    found = []
    for direction in directions:
        per_run = [[event for event in run if event.kind is Kind.COPY and event.op == direction] for run in runs]
        found.append(
            CopyTime(
                direction,
                round(statistics.median(len(copies) for copies in per_run)),
                round(statistics.median(sum(copy.copied_bytes for copy in copies) for copies in per_run)),
                statistics.median(sum(copy.duration_us for copy in copies) for copies in per_run),
            )
        )
    return found


def _by_name(events: Iterable[Event]) -> dict[str, list[Event]]:
    found: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        found[event.name].append(event)
    return found
