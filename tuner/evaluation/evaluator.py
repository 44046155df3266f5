"""What a graph is worth: its accuracy on every image of the evaluation set, its latency and its size."""

import math
import reprlib
import time
from collections.abc import Callable, Mapping, Sequence
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
from tuner.evaluation.coco_map import CocoBackend, ImageMatches, IouType
from tuner.evaluation.early_rejection import EarlyRejection, LossInterval
from tuner.evaluation.match_records import MatchRecords, match_records, mean_average_precision
from tuner.evaluation.workers import EvaluationImages, ThisProcess, Workers
from tuner.model.detection_model import DetectionModel
from tuner.model.frozen_graph import copy_graph
from tuner.progress import Progress, TrialLooked
from tuner.trial import Measurement, Rejection

# Another order would be as good; a baseline's records are of use with the same one only.
ORDER_SEED = 0


class EvalFunction(Protocol):
    """A user's own accuracy: a number from the graph, for instance on data that only the user can read."""

    def __call__(self, graph_def: Any) -> float:
        """The accuracy of a frozen `tensorflow.compat.v1.GraphDef`."""
        ...


Keep = Callable[[Mapping[IouType, MatchRecords]], None]
Certify = Callable[[Measurement], bool]
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

        certify: given what our own accumulation says of the graph, without other metrics than those that the criterion
        watches, whether its figures must come from the authority on the metric.
        rejections: of what is compared, the rule of when to drop; all with the same looks.
        keep: is given the match records of a graph measured in full, in the order that `rejections` want the
        baseline's in; not called where accuracy does not come from matches.

        Raises EvaluationError or ModelError when the graph cannot be measured.
        """
        ...


def measure_fully(evaluator: Evaluator, model: DetectionModel, keep: Keep | None = None) -> Measurement:
    """Measure a graph on every image, by the authority on the metric. See `Evaluator`."""
    found = evaluator.evaluate(model, lambda expected: True, keep=keep)
    if isinstance(found, Rejection):
        raise TypeError("an evaluator dropped a graph without a rule to drop it by")
    return found


class CocoEvaluator:
    """COCO mAP of boxes, masks or both: our own accumulation decides, faster-coco-eval tells, pycocotools certifies.

    Images are seen in a random order, the same for every graph: the first of them are a fair sample of all.
    iou_types: what is compared; of several, accuracy is the first one's. Masks take a data set with masks.
    images: in that order. workers: run the graphs; this process where none are given.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        progress: Progress,
        *,
        iou_types: Sequence[IouType] = (IouType.BBOX,),
        workers: Workers | None = None,
    ):
        order = np.random.default_rng(ORDER_SEED).permutation(len(dataset))
        self._given = dataset
        shuffled = replace(dataset, entries=tuple(dataset.entries[i] for i in order))
        self.images = EvaluationImages(shuffled, tuple(iou_types))
        self._progress = progress
        self._workers = workers or ThisProcess()

    def evaluate(
        self,
        model: DetectionModel,
        certify: Certify,
        rejections: Rejections = NO_REJECTIONS,
        keep: Keep | None = None,
    ) -> Measurement | Rejection:
        """Run the detector on every image, unless it is dropped at a look; see `Evaluator`."""
        started = time.perf_counter()
        images, total = self.images, len(self.images.dataset)
        detections: list[Detections] = []
        matches: dict[IouType, list[ImageMatches]] = {iou_type: [] for iou_type in images.iou_types}
        image = self._given.first_image[np.newaxis]
        with self._workers.running(model, image, images) as graph, closing(graph.find()) as each:
            for found in self._progress.track(each, total, "evaluate"):
                detections.append(found.detections)
                for iou_type, of_type in matches.items():
                    of_type.append(found.matches[iou_type])
                for iou_type, rejection in rejections.items():
                    if len(detections) in rejection.schedule:
                        tell = partial(self._tell_look, len(detections), iou_type)
                        rejected = rejection.look(self._records(matches[iou_type]), tell)
                        if rejected is not None:
                            return replace(rejected, elapsed_s=time.perf_counter() - started)
            latency = graph.latency()
        records = {iou_type: self._records(of_type) for iou_type, of_type in matches.items()}
        first, *others = images.iou_types

        def measured(accuracies: Mapping[IouType, float], metrics: Mapping[str, float]) -> Measurement:
            return Measurement(
                accuracy=accuracies[first],
                images=total,
                latency_ms=latency.median_ms,
                latency_p90_ms=latency.p90_ms,
                size_bytes=model.size_bytes,
                elapsed_s=time.perf_counter() - started,
                metrics=metrics,
                watched={one.value: accuracies[one] for one in images.iou_types} if others else {},
            )

        expected = measured({one: _mean_average_precision(of_one) for one, of_one in records.items()}, {})
        backend = CocoBackend.PYCOCOTOOLS if certify(expected) else CocoBackend.FASTER
        figures = {one: self._workers.metrics(images, detections, backend, one).figures for one in images.iou_types}
        if keep is not None:
            keep(records)
        return measured(
            {one: of_one["mAP"] for one, of_one in figures.items()},
            {
                **figures[first],
                **{f"{one.value}_{name}": value for one in others for name, value in figures[one].items()},
            },
        )

    def _tell_look(self, images: int, iou_type: IouType, found: LossInterval) -> None:
        self._progress.event(TrialLooked(images, iou_type.value, found.loss, found.low, found.high, found.confidence))

    def _records(self, matches: Sequence[ImageMatches]) -> MatchRecords:
        images = self.images
        return match_records([truth.image_id for truth in images.truths[: len(matches)]], images.category_ids, matches)


class FunctionEvaluator:
    """A user's eval_func as the accuracy. image: [1, H, W, 3], what latency is measured on. workers: measure it."""

    def __init__(self, eval_func: EvalFunction, image: NDArray[Any], workers: Workers | None = None):
        self._eval_func = eval_func
        self._image = image
        self._workers = workers or ThisProcess()

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
        with self._workers.running(model, self._image) as graph:
            latency = graph.latency()
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
