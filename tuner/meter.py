"""What measures graphs in this run: accuracy as the settings want it, and two latencies side by side."""

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from tuner.config import ComputeConfig, TuningConfig
from tuner.evaluation.evaluator import CocoEvaluator, Evaluator, FunctionEvaluator
from tuner.evaluation.latency import iterations_within, measure_models
from tuner.inputs import Inputs
from tuner.model.detection_model import DetectionModel
from tuner.progress import Progress
from tuner.trial import CompletedTrial, Measurement

# The float and the best graph are timed side by side for about so long, from at least and at most so many runs each.
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
    config: TuningConfig,
    graphs: Sequence[DetectionModel],
    image: NDArray[Any],
    baseline: Measurement,
    best: CompletedTrial,
) -> tuple[Measurement, CompletedTrial, Sequence[float]]:
    """Baseline and best with latencies measured in turns, so that a busy machine meets both alike.

    graphs: the float and the best one, and others whose median latencies, in ms, come back third. image: [1, H, W, 3].
    """
    performance = config.evaluation.performance
    threads, inter_threads = apply_compute(performance.configs)
    round_ms = baseline.latency_ms + best.measurement.latency_ms
    fitting = iterations_within(COMPARISON_S, round_ms, fewest=FEWEST_COMPARED, most=MOST_COMPARED)
    before, after, *others = measure_models(
        graphs,
        image,
        threads=threads,
        inter_threads=inter_threads,
        warmup=performance.warmup,
        iterations=performance.iteration if performance.iteration > 0 else fitting,
    )
    measurement = replace(best.measurement, latency_ms=after.median_ms, latency_p90_ms=after.p90_ms)
    return (
        replace(baseline, latency_ms=before.median_ms, latency_p90_ms=before.p90_ms),
        replace(best, measurement=measurement),
        [figures.median_ms for figures in others],
    )


def apply_compute(compute: ComputeConfig) -> tuple[int, int]:
    """Threads inside one operator and for independent ones, 0 for TensorFlow's own choice.

    kmp_blocktime goes to the process environment, where an OpenMP build of oneDNN reads it.
    """
    if compute.kmp_blocktime is not None:
        os.environ["KMP_BLOCKTIME"] = str(compute.kmp_blocktime)
    return compute.intra_num_of_threads or compute.cores_per_instance or 0, compute.inter_num_of_threads or 0
