"""Who runs graphs on images: this process, or whoever else keeps the promise of `Workers`."""

import os
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from tuner.data.dataset import DetectionDataset
from tuner.data.images import Entry
from tuner.detections import Detections
from tuner.errors import EvaluationError
from tuner.evaluation.coco_map import (
    CocoBackend,
    CocoMetrics,
    ImageMatches,
    ImageTruth,
    IouType,
    coco_metrics,
    match_image,
)
from tuner.evaluation.inference import choose_instances, detect_images
from tuner.evaluation.latency import LatencyFigures, iterations_within, measure_latency
from tuner.model.detection_model import DetectionModel
from tuner.model.runner import ModelRunner

# A trial's latency is taken in about this time, from at least and at most so many runs.
LATENCY_BUDGET_S = 3.0
FEWEST_RUNS, MOST_RUNS = 5, 50
# From so many images on, finding out how they go through fastest pays; by so many of them.
MANY_IMAGES, IMAGES_TO_CHOOSE_BY = 1000, 8

_Result = TypeVar("_Result")


@dataclass(frozen=True, eq=False)
class EvaluationImages:
    """What graphs are measured on.

    dataset: in the order in which images are seen. iou_types: what is compared with what is annotated. masks: whether
    detections have masks, which they also have where those are compared.
    """

    dataset: DetectionDataset
    iou_types: tuple[IouType, ...] = ()
    masks: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "masks", self.masks or IouType.SEGM in self.iou_types)

    @cached_property
    def truths(self) -> list[ImageTruth]:
        """What is annotated, one for each image."""
        return [truth_of(entry) for entry in self.dataset.entries]

    @cached_property
    def category_ids(self) -> frozenset[int]:
        """The categories of the annotated objects."""
        return frozenset(i for truth in self.truths for i in truth.ground_truth.category_ids.tolist())


def truth_of(entry: Entry) -> ImageTruth:
    """What is annotated in an image."""
    return ImageTruth(entry.image_id, entry.height, entry.width, entry.ground_truth)


@dataclass(frozen=True, slots=True)
class Found:
    """What a graph found in one image, and how that matches what is annotated there, by what is compared."""

    detections: Detections
    matches: Mapping[IouType, ImageMatches]


def matched(
    truth: ImageTruth, detections: Detections, category_ids: Collection[int], iou_types: Sequence[IouType]
) -> Found:
    """Match what was found in an image. Raises EvaluationError as `match_image` does."""
    return Found(detections, {one: match_image(truth, detections, category_ids, one) for one in iou_types})


class RunningGraph(Protocol):
    """A graph at work on the images of an evaluation."""

    def find(self) -> Generator[Found, None, None]:
        """What it finds in each image, in their order. Closing it drops what has not begun.

        Raises what `ModelRunner.detect` and the images raise, after the results before it.
        """

    def latency(self) -> LatencyFigures:
        """How long one run takes, with nothing else going on there; to be asked once, after `find`."""


class Workers(Protocol):
    """Run graphs; what they find is the same bit for bit, whoever they are, on CPUs of one kind."""

    def running(
        self, model: DetectionModel, image: NDArray[Any] | None, images: EvaluationImages | None = None
    ) -> AbstractContextManager[RunningGraph]:
        """Start a graph; leaving the context ends it.

        image: [1, H, W, 3], for latency; None where that is not wanted. images: None where that alone is wanted.
        """

    def metrics(
        self, images: EvaluationImages, detections: Sequence[Detections], backend: CocoBackend, iou_type: IouType
    ) -> CocoMetrics:
        """`coco_metrics` of what was found in all images."""

    def alone(self, function: Callable[..., _Result], *arguments: Any) -> _Result:
        """Call a function where latency is taken, with nothing else going on there."""


class ThisProcess:
    """One session, or several side by side, in this process.

    instances: sessions that run side by side, each with so many threads; 0 for what is faster on this machine, which
    is measured with the first graph where there are many images.
    """

    def __init__(self, intra_threads: int = 0, inter_threads: int = 0, *, instances: int = 1) -> None:
        cores = len(os.sched_getaffinity(0))
        if instances > cores:
            raise EvaluationError(f"num_of_instance: got {instances}; expected 1 to {cores}, the cores of this machine")
        self._threads = (intra_threads, inter_threads)
        # Instances, and the threads of each; latency is always that of one session with the threads asked for.
        self._instances, self._instance_threads = instances, intra_threads

    @contextmanager
    def running(
        self, model: DetectionModel, image: NDArray[Any] | None, images: EvaluationImages | None = None
    ) -> Iterator[RunningGraph]:
        """See `Workers`."""
        with ModelRunner(model, *self._threads) as runner:
            yield _Here(self, model, runner, image, images)

    def metrics(
        self, images: EvaluationImages, detections: Sequence[Detections], backend: CocoBackend, iou_type: IouType
    ) -> CocoMetrics:
        """See `Workers`."""
        return coco_metrics(images.truths, detections, backend, iou_type)

    def alone(self, function: Callable[..., _Result], *arguments: Any) -> _Result:
        """See `Workers`."""
        return function(*arguments)

    def detect_each(
        self, model: DetectionModel, runner: ModelRunner, images: EvaluationImages
    ) -> Generator[Detections, None, None]:
        """What is found in each image: by `runner`, or by several sessions where that is faster."""
        dataset = images.dataset
        if not self._instances and len(dataset) >= MANY_IMAGES:
            some = [sample.image for sample in dataset.first(IMAGES_TO_CHOOSE_BY)]
            self._instances, self._instance_threads = choose_instances(model, some)
        if self._instances <= 1:
            yield from (runner.detect(sample.image, masks=images.masks, view=sample.view) for sample in dataset)
        else:
            yield from detect_images(
                model,
                dataset,
                instances=self._instances,
                threads=self._instance_threads,
                inter_threads=self._threads[1],
                masks=images.masks,
            )


@dataclass(frozen=True)
class _Here:
    workers: ThisProcess
    model: DetectionModel
    runner: ModelRunner
    image: NDArray[Any] | None
    images: EvaluationImages | None

    def find(self) -> Generator[Found, None, None]:
        images = self.images
        if images is None:
            return
        with closing(self.workers.detect_each(self.model, self.runner, images)) as each:
            for truth, found in zip(images.truths, each, strict=True):
                yield matched(truth, found, images.category_ids, images.iou_types)

    def latency(self) -> LatencyFigures:
        if self.image is None:
            raise ValueError("latency was not to be taken")
        return trial_latency(self.runner, self.image)


def trial_latency(runner: ModelRunner, image: NDArray[np.generic]) -> LatencyFigures:
    """How long a run on one image takes, in about LATENCY_BUDGET_S. image: [1, H, W, 3]."""

    def run() -> object:
        return runner.run(image)

    (first,) = measure_latency([run], warmup=1, iterations=1)
    runs = iterations_within(LATENCY_BUDGET_S, first.median_ms, fewest=FEWEST_RUNS, most=MOST_RUNS)
    (figures,) = measure_latency([run], warmup=0, iterations=runs)
    return figures
