"""What a graph is worth: its accuracy on every image of the evaluation set, its latency and its size."""

import math
import os
import reprlib
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tuner.data.dataset import DetectionDataset
from tuner.detections import Detections
from tuner.errors import EvaluationError
from tuner.evaluation.coco_map import CocoBackend, ImageMatches, ImageTruth, IouType, coco_metrics, match_image
from tuner.evaluation.early_rejection import EarlyRejection, LossInterval
from tuner.evaluation.inference import choose_instances, detect_images
from tuner.evaluation.latency import LatencyFigures, iterations_within, measure_latency
from tuner.evaluation.match_records import MatchRecords, match_records, mean_average_precision
from tuner.model.detection_model import DetectionModel
from tuner.model.frozen_graph import copy_graph
from tuner.model.runner import ModelRunner
from tuner.progress import Progress, TrialLooked
from tuner.trial import Measurement, Rejection

# A trial's latency is taken in about this time, from at least and at most so many runs.
LATENCY_BUDGET_S = 3.0
FEWEST_RUNS, MOST_RUNS = 5, 50
# From so many images on, finding out how they go through fastest pays; by so many of them.
MANY_IMAGES, IMAGES_TO_CHOOSE_BY = 1000, 8
# Another order would be as good; a baseline's records are of use with the same one only.
ORDER_SEED = 0


class EvalFunction(Protocol):
    """A user's own accuracy: a number from the graph, for instance on data that only the user can read."""

    def __call__(self, graph_def: Any) -> float:
        """The accuracy of a frozen `tensorflow.compat.v1.GraphDef`."""
        ...


Keep = Callable[[Mapping[IouType, MatchRecords]], None]
Certify = Callable[[Mapping[IouType, float]], bool]
Rejections = Mapping[IouType, EarlyRejection]
NO_REJECTIONS: Rejections = MappingProxyType({})


class Evaluator(Protocol):
    """Measures graphs of one detector, all on the same data."""

    def evaluate(
        self,
        model: DetectionModel,
        certify: Certify,
        rejections: Rejections = NO_REJECTIONS,
        keep: Keep | None = None,
    ) -> Measurement | Rejection:
        """Measure in full, or drop the graph at one of the looks of `rejections`; without them it is measured in full.

        certify: given the accuracies, whether they must come from the authority on the metric.
        rejections: of what is compared, the rule of when to drop; all with the same looks.
        keep: is given the match records of a graph measured in full, in the order that `rejections` want the
        baseline's in; not called where accuracy does not come from matches.

        Raises EvaluationError or ModelError when the graph cannot be measured.
        """
        ...


def measure_fully(evaluator: Evaluator, model: DetectionModel, keep: Keep | None = None) -> Measurement:
    """Measure a graph on every image, by the authority on the metric. See `Evaluator`."""
    found = evaluator.evaluate(model, lambda accuracies: True, keep=keep)
    if isinstance(found, Rejection):
        raise TypeError("an evaluator dropped a graph without a rule to drop it by")
    return found


class CocoEvaluator:
    """COCO mAP of boxes, masks or both: our own accumulation decides, faster-coco-eval tells, pycocotools certifies.

    Images are seen in a random order, the same for every graph: the first of them are a fair sample of all.
    instances: sessions that run side by side, each with so many threads; 0 for what is faster on this machine, which is
    measured with the first graph where there are many images.
    iou_types: what is compared; of several, accuracy is the first one's. Masks take a data set with masks.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        progress: Progress,
        intra_threads: int = 0,
        inter_threads: int = 0,
        *,
        instances: int = 1,
        iou_types: Sequence[IouType] = (IouType.BBOX,),
    ):
        order = np.random.default_rng(ORDER_SEED).permutation(len(dataset))
        self._given = dataset
        self._dataset = replace(dataset, entries=tuple(dataset.entries[i] for i in order))
        self._progress = progress
        self._iou_types = tuple(iou_types)
        self._threads = (intra_threads, inter_threads)
        cores = len(os.sched_getaffinity(0))
        if instances > cores:
            raise EvaluationError(f"num_of_instance: got {instances}; expected 1 to {cores}, the cores of this machine")
        # Instances, and the threads of each; latency is always that of one session with the threads asked for.
        self._instances, self._instance_threads = instances, intra_threads
        self._truths = [
            ImageTruth(entry.image_id, entry.height, entry.width, entry.ground_truth) for entry in self._dataset.entries
        ]
        self._category_ids = {i for truth in self._truths for i in truth.ground_truth.category_ids.tolist()}

    def evaluate(
        self,
        model: DetectionModel,
        certify: Certify,
        rejections: Rejections = NO_REJECTIONS,
        keep: Keep | None = None,
    ) -> Measurement | Rejection:
        """Run the detector on every image, unless it is dropped at a look; see `Evaluator`."""
        started = time.perf_counter()
        detections: list[Detections] = []
        matches: dict[IouType, list[ImageMatches]] = {iou_type: [] for iou_type in self._iou_types}
        with ModelRunner(model, *self._threads) as runner, closing(self._detect_each(model, runner)) as each:
            counted = self._progress.track(each, len(self._dataset), "evaluate")
            for truth, found in zip(self._truths, counted, strict=True):
                detections.append(found)
                for iou_type, of_type in matches.items():
                    of_type.append(match_image(truth, found, self._category_ids, iou_type))
                for iou_type, rejection in rejections.items():
                    if len(detections) in rejection.schedule:
                        tell = partial(self._tell_look, len(detections), iou_type)
                        rejected = rejection.look(self._records(matches[iou_type]), tell)
                        if rejected is not None:
                            return replace(rejected, elapsed_s=time.perf_counter() - started)
            latency = _trial_latency(runner, self._given.first_image[np.newaxis])
        records = {iou_type: self._records(of_type) for iou_type, of_type in matches.items()}
        told = {one: _mean_average_precision(of_one) for one, of_one in records.items()}
        backend = CocoBackend.PYCOCOTOOLS if certify(told) else CocoBackend.FASTER
        figures = {one: coco_metrics(self._truths, detections, backend, one).figures for one in self._iou_types}
        if keep is not None:
            keep(records)
        first, *others = self._iou_types
        return Measurement(
            accuracy=figures[first]["mAP"],
            images=len(self._dataset),
            latency_ms=latency.median_ms,
            latency_p90_ms=latency.p90_ms,
            size_bytes=model.size_bytes,
            elapsed_s=time.perf_counter() - started,
            metrics={
                **figures[first],
                **{f"{one.value}_{name}": value for one in others for name, value in figures[one].items()},
            },
            watched={one.value: figures[one]["mAP"] for one in self._iou_types} if others else {},
        )

    def _tell_look(self, images: int, iou_type: IouType, found: LossInterval) -> None:
        self._progress.event(TrialLooked(images, iou_type.value, found.loss, found.low, found.high, found.confidence))

    def _detect_each(self, model: DetectionModel, runner: ModelRunner) -> Generator[Detections, None, None]:
        """What is found in each image: by `runner`, or by several sessions where that is faster."""
        if not self._instances:
            self._instances = 1
            if len(self._dataset) >= MANY_IMAGES:
                some = [sample.image for sample in self._dataset.first(IMAGES_TO_CHOOSE_BY)]
                self._instances, self._instance_threads = choose_instances(model, some)
        masks = IouType.SEGM in self._iou_types
        if self._instances == 1:
            yield from (runner.detect(sample.image, masks=masks, view=sample.view) for sample in self._dataset)
        else:
            yield from detect_images(
                model,
                self._dataset,
                instances=self._instances,
                threads=self._instance_threads,
                inter_threads=self._threads[1],
                masks=masks,
            )

    def _records(self, matches: Sequence[ImageMatches]) -> MatchRecords:
        return match_records([truth.image_id for truth in self._truths[: len(matches)]], self._category_ids, matches)


class FunctionEvaluator:
    """A user's eval_func as the accuracy. image: [1, H, W, 3], what latency is measured on."""

    def __init__(self, eval_func: EvalFunction, image: NDArray[Any], intra_threads: int = 0, inter_threads: int = 0):
        self._eval_func = eval_func
        self._image = image
        self._threads = (intra_threads, inter_threads)

    def evaluate(
        self,
        model: DetectionModel,
        certify: Certify,
        rejections: Rejections = NO_REJECTIONS,
        keep: Keep | None = None,
    ) -> Measurement:
        """Call the function once; it is its own authority, and says nothing before it ends. See `Evaluator`."""
        started = time.perf_counter()
        try:
            # Who imports a graph into TensorFlow changes it.
            returned = self._eval_func(copy_graph(model.graph_def))
        except (Exception, SystemExit) as error:
            # Whatever a user's function raises is a failed evaluation of this graph, told with its cause.
            raise EvaluationError(f"eval_func raised {type(error).__name__}: {' '.join(str(error).split())}") from error
        accuracy = _checked_accuracy(returned)
        with ModelRunner(model, *self._threads) as runner:
            latency = _trial_latency(runner, self._image)
        return Measurement(
            accuracy=accuracy,
            images=0,
            latency_ms=latency.median_ms,
            latency_p90_ms=latency.p90_ms,
            size_bytes=model.size_bytes,
            elapsed_s=time.perf_counter() - started,
        )


def _checked_accuracy(returned: object) -> float:
    """What an eval_func returned, as the number that it has to be. Raises EvaluationError for anything else."""
    told = f"eval_func returned {' '.join(reprlib.repr(returned).split())}"
    if isinstance(returned, bool) or not isinstance(returned, int | float | np.integer | np.floating):
        raise EvaluationError(f"{told}; expected a number")
    try:
        accuracy = float(returned)
    except OverflowError:  # a whole number larger than any float
        accuracy = math.inf
    if not math.isfinite(accuracy) or accuracy < 0:
        raise EvaluationError(f"{told}; expected a finite number of at least 0")
    return accuracy


def _mean_average_precision(records: MatchRecords) -> float:
    return float(mean_average_precision(records, np.ones((1, len(records))))[0])


def _trial_latency(runner: ModelRunner, image: NDArray[Any]) -> LatencyFigures:
    def run() -> object:
        return runner.run(image)

    (first,) = measure_latency([run], warmup=1, iterations=1)
    runs = iterations_within(LATENCY_BUDGET_S, first.median_ms, fewest=FEWEST_RUNS, most=MOST_RUNS)
    (figures,) = measure_latency([run], warmup=1, iterations=runs)
    return figures
