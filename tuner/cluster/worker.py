"""What a worker does: one thing at a time, in a process of its own on some machine."""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import ray
from numpy.typing import NDArray

from tuner.cluster.facts import NodeFacts, read_facts
from tuner.cluster.recipe import Failure, FoundRange, ImageChunk, Recipe, Stored
from tuner.cluster.shards import ImageRange
from tuner.data.dataset import DetectionDataset
from tuner.data.images import ImageStore
from tuner.errors import TunerError
from tuner.evaluation.coco_map import CategoryCurves, CocoBackend, ImageTruth, category_curves
from tuner.evaluation.latency import LatencyFigures
from tuner.evaluation.workers import matched, trial_latency
from tuner.model.detection_model import DetectionModel
from tuner.model.runner import ModelRunner
from tuner.quantization.ranges import Observation, observe

# So many graphs are kept with their sessions, and so many values of the object store.
GRAPHS_KEPT, VALUES_KEPT = 2, 64
# One more than runs, so that the next image is decoded meanwhile.
_DECODERS = 1

_Result = TypeVar("_Result")


class Cancelled(Exception):
    """The result is not wanted any more."""


class Worker:
    """Runs graphs on images that it reads itself, and keeps what it will need again.

    threads, inter_threads: of its sessions. cache_mb: MiB for decoded images.
    Its methods give a Failure for an error that the user can mend, which so keeps its kind and its one line.
    """

    def __init__(self, threads: int, inter_threads: int, cache_mb: int) -> None:
        self._threads = (threads, inter_threads)
        self._store = ImageStore(cache_mb * 2**20)
        self._values: OrderedDict[str, Any] = OrderedDict()
        self._graphs: OrderedDict[str, tuple[DetectionModel, ModelRunner]] = OrderedDict()

    def facts(self) -> NodeFacts:
        """What results depend on here."""
        return read_facts()

    def find(self, recipe: Recipe, stored: Stored, part: ImageRange) -> FoundRange | Failure:
        """What a graph finds in some images of a chunk; `part` counts within it."""
        return _told(lambda: self._find(recipe, stored, part))

    def observe(self, stored: Stored, tensors: Sequence[str], images: Sequence[Stored]) -> list[Observation] | Failure:
        """What the tensors of a float graph are in some images, each [1, H, W, 3]."""
        return _told(
            lambda: observe(ray.get(stored.reference), tensors, [ray.get(image.reference) for image in images])
        )

    def latency(self, recipe: Recipe, image: NDArray[Any], threads: tuple[int, int]) -> LatencyFigures | Failure:
        """How long one run of a graph takes, on [1, H, W, 3]."""

        def measure() -> LatencyFigures:
            with ModelRunner(self._graph(recipe)[0], *threads) as runner:
                return trial_latency(runner, image)

        return _told(measure)

    def curves(self, part: Stored, backend: CocoBackend) -> CategoryCurves | Failure:
        """The curves of some categories over all images."""
        return _told(lambda: category_curves(ray.get(part.reference), backend))

    def call(self, function: Callable[..., Any], arguments: Sequence[Any]) -> Any:
        """What a function of the package gives; its arguments, as they are or stored."""
        given = [ray.get(one.reference) if isinstance(one, Stored) else one for one in arguments]
        return _told(lambda: function(*given))

    def _find(self, recipe: Recipe, stored: Stored, part: ImageRange) -> FoundRange:
        model, runner = self._graph(recipe)
        chunk: ImageChunk = self._value(stored)
        entries = chunk.entries[part.start : part.stop]
        dataset = DetectionDataset(entries, chunk.category_ids, (), _DECODERS, chunk.steps, {}, self._store)
        started, found = time.perf_counter(), []
        for entry, sample in zip(entries, dataset, strict=True):
            if ray.get_runtime_context().is_canceled():
                raise Cancelled
            detections = runner.detect(sample.image, masks=chunk.masks, view=sample.view)
            truth = ImageTruth(entry.image_id, entry.height, entry.width, entry.ground_truth)
            found.append(matched(truth, detections, chunk.category_ids, chunk.iou_types))
        return FoundRange(model.sha256, found, time.perf_counter() - started)

    def _graph(self, recipe: Recipe) -> tuple[DetectionModel, ModelRunner]:
        if recipe.key not in self._graphs:
            given = None if recipe.given is None else ray.get(recipe.given.reference)
            source = None if recipe.source is None else self._value(recipe.source)
            model = recipe.make(given, source)
            while len(self._graphs) >= GRAPHS_KEPT:
                self._graphs.popitem(last=False)[1][1].close()
            self._graphs[recipe.key] = model, ModelRunner(model, *self._threads)
        self._graphs.move_to_end(recipe.key)
        return self._graphs[recipe.key]

    def _value(self, stored: Stored) -> Any:
        if stored.key not in self._values:
            self._values[stored.key] = ray.get(stored.reference)
            if len(self._values) > VALUES_KEPT:
                self._values.popitem(last=False)
        self._values.move_to_end(stored.key)
        return self._values[stored.key]


def _told(work: Callable[[], _Result]) -> _Result | Failure:
    try:
        return work()
    except TunerError as error:
        return Failure(type(error).__name__, str(error))
