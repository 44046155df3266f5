"""How long every node of a graph takes: traced runs, of several graphs in turns."""

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tuner.model.detection_model import DetectionModel
from tuner.model.runner import ModelRunner

# Other work on the machine only ever adds to a time, so a low quantile is nearest to what the graph itself takes.
QUANTILE = 0.05
FEWEST_ROUNDS, MOST_ROUNDS = 10, 40


@dataclass(frozen=True)
class TracedGraph:
    """What a graph took on one image.

    latency_ms: of a run without tracing. node_us: by node name, of those that ran: TensorFlow's rewriting removes some
    and gives fused ones the name of the last node that they replace. values: the number of values in output 0, by node.
    """

    model: DetectionModel
    latency_ms: float
    node_us: Mapping[str, float]
    values: Mapping[str, int]


def trace_graphs(
    graphs: Sequence[DetectionModel],
    image: NDArray[Any],
    *,
    budget_s: float,
    intra_op_threads: int = 0,
    inter_op_threads: int = 0,
) -> list[TracedGraph]:
    """Run graphs in turns, with and without tracing; each time is the 5 % quantile over the rounds.

    image: [N, H, W, 3], as all graphs take it. budget_s: for the rounds, of which there are 10 to 40.
    Raises ModelError when TensorFlow fails.
    """
    with ExitStack() as stack:
        runs = [
            stack.enter_context(TracedSession(graph, image, intra_op_threads, inter_op_threads)) for graph in graphs
        ]
        start = time.perf_counter()
        rounds = 0
        while rounds < FEWEST_ROUNDS or (rounds < MOST_ROUNDS and time.perf_counter() - start < budget_s):
            for run in runs:
                run.measure()
            rounds += 1
        return [run.result() for run in runs]


class TracedSession:
    """A session over one graph and what its runs on an image took; a context manager that frees it.

    Raises ModelError when TensorFlow fails.
    """

    def __init__(
        self, model: DetectionModel, image: NDArray[Any], intra_op_threads: int = 0, inter_op_threads: int = 0
    ) -> None:
        self._model = model
        self._latencies_ms: list[float] = []
        self._node_us: dict[str, list[float]] = defaultdict(list)
        self._values: dict[str, int] = {}
        self._runner = ModelRunner(model, intra_op_threads, inter_op_threads)
        self._image = self._runner.as_fed(image)
        for _ in range(2):
            self._runner.run(self._image)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.close()

    def measure(self) -> None:
        """A plain run to warm the caches, one that is timed, and then one that is traced, which leaves them cold.

        Raises ModelError when TensorFlow fails.
        """
        self._runner.run(self._image)
        start = time.perf_counter()
        self._runner.run(self._image)
        self._latencies_ms.append((time.perf_counter() - start) * 1000)
        metadata = self._runner.trace(self._image)
        taken: dict[str, float] = defaultdict(float)  # a node inside a while loop runs more than once
        for device in metadata.step_stats.dev_stats:
            for node in device.node_stats:
                taken[node.node_name] += (node.op_end_rel_nanos - node.op_start_rel_nanos) / 1000
                if node.output and node.node_name not in self._values:
                    shape = node.output[0].tensor_description.shape
                    self._values[node.node_name] = int(np.prod([axis.size for axis in shape.dim], dtype=np.int64))
        for name, us in taken.items():
            self._node_us[name].append(us)

    def result(self) -> TracedGraph:
        """The low quantiles of all runs so far."""
        node_us = {name: float(np.quantile(times, QUANTILE)) for name, times in self._node_us.items()}
        return TracedGraph(self._model, float(np.quantile(self._latencies_ms, QUANTILE)), node_us, self._values)
