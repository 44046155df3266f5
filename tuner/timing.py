"""How this run times graphs: with which threads, for how long, and several of them in turns."""

import os
from collections.abc import Sequence
from functools import partial
from typing import Any

from numpy.typing import NDArray

from tuner.config import ComputeConfig, TuningConfig
from tuner.evaluation.latency import LatencyFigures, iterations_within, measure_in_pairs, measure_models
from tuner.model.detection_model import DetectionModel

# Graphs are timed side by side for about so long, from at least and at most so many runs each.
COMPARISON_S = 10.0
FEWEST_COMPARED, MOST_COMPARED = 5, 100
# Above so many bytes in all, they are timed two at a time: a session takes six times the size of its graph, and more
# while it starts.
MOST_BYTES_AT_ONCE = 200_000_000


def timed_in_turns(
    config: TuningConfig, graphs: Sequence[DetectionModel], image: NDArray[Any], round_ms: float
) -> list[LatencyFigures]:
    """The latencies of graphs that take turns, so that a busy machine meets all alike.

    image: [1, H, W, 3]. round_ms: about how long one run of each takes in all.
    """
    performance = config.evaluation.performance
    threads, inter_threads = latency_threads(config)
    fitting = iterations_within(COMPARISON_S, round_ms, fewest=FEWEST_COMPARED, most=MOST_COMPARED)
    measure = partial(
        measure_models,
        images=image,
        threads=threads,
        inter_threads=inter_threads,
        warmup=performance.warmup,
        iterations=performance.iteration if performance.iteration > 0 else fitting,
    )
    at_once = sum(graph.size_bytes for graph in graphs) <= MOST_BYTES_AT_ONCE
    return measure(graphs) if at_once else measure_in_pairs(graphs, measure)


def latency_threads(config: TuningConfig) -> tuple[int, int]:
    """Threads inside one operator and for independent ones, where speed is measured; 0 for TensorFlow's own choice."""
    return apply_compute(config.evaluation.performance.configs)


def apply_compute(compute: ComputeConfig) -> tuple[int, int]:
    """Threads inside one operator and for independent ones, 0 for TensorFlow's own choice.

    kmp_blocktime goes to the process environment, where an OpenMP build of oneDNN reads it.
    """
    if compute.kmp_blocktime is not None:
        os.environ["KMP_BLOCKTIME"] = str(compute.kmp_blocktime)
    return compute.intra_num_of_threads or compute.cores_per_instance or 0, compute.inter_num_of_threads or 0
