"""What a graph is worth: its accuracy on every image of the evaluation set, its latency and its size."""

import math
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tuner.data.dataset import DetectionDataset
from tuner.errors import EvaluationError
from tuner.evaluation.coco_map import CocoBackend, ImageTruth, coco_metrics
from tuner.evaluation.latency import LatencyFigures, iterations_within, measure_latency
from tuner.model.detection_model import DetectionModel
from tuner.model.runner import ModelRunner
from tuner.progress import Progress
from tuner.trial import Measurement

# A trial's latency is taken in about this time, from at least and at most so many runs.
LATENCY_BUDGET_S = 3.0
FEWEST_RUNS, MOST_RUNS = 5, 50


class EvalFunction(Protocol):
    """A user's own accuracy: a number from the graph, for instance on data that only the user can read."""

    def __call__(self, graph_def: Any) -> float:
        """The accuracy of a frozen `tensorflow.compat.v1.GraphDef`."""
        ...


class Evaluator(Protocol):
    """Measures graphs of one detector, all on the same data."""

    def evaluate(self, model: DetectionModel, certify: Callable[[float], bool]) -> Measurement:
        """Measure in full. certify: given an accuracy, whether it must come from the authority on the metric.

        Raises EvaluationError or ModelError when the graph cannot be measured.
        """
        ...


class CocoEvaluator:
    """COCO mAP of boxes: faster-coco-eval in the loop, pycocotools wherever a figure is certified."""

    def __init__(self, dataset: DetectionDataset, progress: Progress, intra_threads: int = 0, inter_threads: int = 0):
        self._dataset = dataset
        self._progress = progress
        self._threads = (intra_threads, inter_threads)
        self._truths = [
            ImageTruth(entry.image_id, entry.height, entry.width, entry.ground_truth) for entry in dataset.entries
        ]

    def evaluate(self, model: DetectionModel, certify: Callable[[float], bool]) -> Measurement:
        """Run the detector on every image; see `Evaluator`."""
        started = time.perf_counter()
        with ModelRunner(model, *self._threads) as runner:
            samples = self._progress.track(self._dataset, len(self._dataset), "evaluate")
            detections = [runner.detect(sample.image) for sample in samples]
            latency = _trial_latency(runner, self._dataset.first_image[np.newaxis])
        metrics = coco_metrics(self._truths, detections)
        if certify(metrics.figures["mAP"]):
            metrics = coco_metrics(self._truths, detections, CocoBackend.PYCOCOTOOLS)
        return Measurement(
            accuracy=metrics.figures["mAP"],
            images=len(self._dataset),
            latency_ms=latency.median_ms,
            latency_p90_ms=latency.p90_ms,
            size_bytes=model.size_bytes,
            elapsed_s=time.perf_counter() - started,
            metrics=metrics.figures,
        )


class FunctionEvaluator:
    """A user's eval_func as the accuracy. image: [1, H, W, 3], what latency is measured on."""

    def __init__(self, eval_func: EvalFunction, image: NDArray[Any], intra_threads: int = 0, inter_threads: int = 0):
        self._eval_func = eval_func
        self._image = image
        self._threads = (intra_threads, inter_threads)

    def evaluate(self, model: DetectionModel, certify: Callable[[float], bool]) -> Measurement:
        """Call the function once; it is its own authority. See `Evaluator`."""
        started = time.perf_counter()
        try:
            accuracy = self._eval_func(model.graph_def)
        except Exception as error:
            # Whatever a user's function raises is a failed evaluation of this graph, told with its cause.
            raise EvaluationError(f"eval_func raised {type(error).__name__}: {' '.join(str(error).split())}") from error
        if isinstance(accuracy, bool) or not isinstance(accuracy, int | float | np.number):
            raise EvaluationError(f"eval_func returned {accuracy!r}; expected a number")
        if not math.isfinite(float(accuracy)) or float(accuracy) < 0:
            raise EvaluationError(f"eval_func returned {accuracy}; expected a finite number of at least 0")
        with ModelRunner(model, *self._threads) as runner:
            latency = _trial_latency(runner, self._image)
        return Measurement(
            accuracy=float(accuracy),
            images=0,
            latency_ms=latency.median_ms,
            latency_p90_ms=latency.p90_ms,
            size_bytes=model.size_bytes,
            elapsed_s=time.perf_counter() - started,
        )


def _trial_latency(runner: ModelRunner, image: NDArray[Any]) -> LatencyFigures:
    def run() -> object:
        return runner.run(image)

    (first,) = measure_latency([run], warmup=1, iterations=1)
    runs = iterations_within(LATENCY_BUDGET_S, first.median_ms, fewest=FEWEST_RUNS, most=MOST_RUNS)
    (figures,) = measure_latency([run], warmup=1, iterations=runs)
    return figures
