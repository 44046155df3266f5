"""What measures graphs in this run: accuracy as the settings want it, and two latencies side by side."""

import os
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from tuner.config import ComputeConfig, TuningConfig
from tuner.evaluation.evaluator import CocoEvaluator, Evaluator, FunctionEvaluator
from tuner.evaluation.latency import LatencyFigures, iterations_within, measure_models
from tuner.inputs import Inputs
from tuner.model.detection_model import DetectionModel
from tuner.progress import Progress

# Graphs are timed side by side for about so long, from at least and at most so many runs each.
COMPARISON_S = 10.0
FEWEST_COMPARED, MOST_COMPARED = 5, 100


def make_evaluator(config: TuningConfig, inputs: Inputs, image: NDArray[Any], progress: Progress) -> Evaluator:
    """What measures graphs: the user's eval_func, or COCO mAP on the evaluation set. image: to take latency on."""
    threads = apply_compute(config.evaluation.accuracy.configs)
    if inputs.eval_func is not None:
        return FunctionEvaluator(inputs.eval_func, image, *threads)
    if inputs.evaluation is None:
        raise ValueError("inputs have neither an evaluation set nor an eval_func")
    return CocoEvaluator(inputs.evaluation, progress, *threads)


def timed_in_turns(
    config: TuningConfig, graphs: Sequence[DetectionModel], image: NDArray[Any], round_ms: float
) -> list[LatencyFigures]:
    """The latencies of graphs that take turns, so that a busy machine meets all alike.

    image: [1, H, W, 3]. round_ms: about how long one run of each takes in all.
    """
    performance = config.evaluation.performance
    threads, inter_threads = apply_compute(performance.configs)
    fitting = iterations_within(COMPARISON_S, round_ms, fewest=FEWEST_COMPARED, most=MOST_COMPARED)
    return measure_models(
        graphs,
        image,
        threads=threads,
        inter_threads=inter_threads,
        warmup=performance.warmup,
        iterations=performance.iteration if performance.iteration > 0 else fitting,
    )


def apply_compute(compute: ComputeConfig) -> tuple[int, int]:
    """Threads inside one operator and for independent ones, 0 for TensorFlow's own choice.

    kmp_blocktime goes to the process environment, where an OpenMP build of oneDNN reads it.
    """
    if compute.kmp_blocktime is not None:
        os.environ["KMP_BLOCKTIME"] = str(compute.kmp_blocktime)
    return compute.intra_num_of_threads or compute.cores_per_instance or 0, compute.inter_num_of_threads or 0
