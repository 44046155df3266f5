"""What a worker does, in a process of its own on some machine: several images at a time, through one session."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import ray
from numpy.typing import NDArray

from tuner import errors
from tuner.cluster.facts import NodeFacts, read_facts
from tuner.cluster.recipe import Failure, FoundRange, ImageChunk, Recipe, Stored
from tuner.cluster.shards import ImageRange
from tuner.data.dataset import DetectionDataset
from tuner.data.images import ImageStore
from tuner.errors import TunerError
from tuner.evaluation.coco_map import CategoryCurves, CocoBackend, category_curves
from tuner.evaluation.inference import threads_side_by_side
from tuner.evaluation.latency import LatencyFigures
from tuner.evaluation.workers import Found, matched, trial_latency, truth_of
from tuner.model.detection_model import DetectionModel
from tuner.model.runner import ModelRunner
from tuner.quantization.ranges import Observation, observe

# So many graphs are kept with their sessions, and so many values of the object store.
GRAPHS_KEPT, VALUES_KEPT = 3, 64
# Calls that search images, and one that makes the next graph meanwhile; each kind has threads of its own.
SEARCHING, PREPARING = "searching", "preparing"
# One more than runs, so that the next image is decoded meanwhile.
_DECODERS = 1

_Result = TypeVar("_Result")


class Cancelled(Exception):
    """The result is not wanted any more."""


@dataclass(eq=False)
class _Loaded:
    """A graph with its session. users: how many run it just now."""

    model: DetectionModel
    runner: ModelRunner
    users: int


class Worker:
    """Runs graphs on images that it reads itself, and keeps what it will need again.

    threads, inter_threads: of its sessions, for each run; runs go beside each other. cache_mb: MiB for decoded images.
    Its methods give a Failure for an error that the user can mend, which so keeps its kind and its one line.
    """

    def __init__(self, threads: int, inter_threads: int, cache_mb: int) -> None:
        self._threads = threads_side_by_side(threads, inter_threads)
        self._store = ImageStore(cache_mb * 2**20)
        self._lock = threading.Lock()
        self._values: OrderedDict[str, Any] = OrderedDict()
        self._graphs: OrderedDict[str, Future[_Loaded]] = OrderedDict()
        self._timed: tuple[str, ModelRunner] | None = None

    def facts(self) -> NodeFacts:
        """What results depend on here."""
        return read_facts()

    @ray.method(concurrency_group=SEARCHING)  # type: ignore[untyped-decorator]
    def find(self, recipe: Recipe, stored: Stored, part: ImageRange) -> FoundRange | Failure:
        """What a graph finds in some images of a chunk; `part` counts within it."""
        return _told(lambda: self._find(recipe, stored, part))

    @ray.method(concurrency_group=PREPARING)  # type: ignore[untyped-decorator]
    def prepare(self, recipe: Recipe, stored: Stored) -> None:
        """Make a graph and its session, and run it once, which takes longest, before anybody asks for it.

        What goes wrong is told where the graph is asked for.
        """
        _told(lambda: self._find(recipe, stored, ImageRange(0, 1)))

    def observe(self, stored: Stored, tensors: Sequence[str], images: Sequence[Stored]) -> list[Observation] | Failure:
        """What the tensors of a float graph are in some images, each [1, H, W, 3]."""
        return _told(
            lambda: observe(ray.get(stored.reference), tensors, [ray.get(image.reference) for image in images])
        )

    @ray.method(concurrency_group=PREPARING)  # type: ignore[untyped-decorator]
    def prepare_latency(self, recipe: Recipe, image: NDArray[Any], threads: tuple[int, int]) -> None:
        """Make the session of which latency is to be taken, and run it once; see `prepare`."""
        _told(lambda: self._timed_session(recipe, threads).run(image))

    def latency(self, recipe: Recipe, image: NDArray[Any], threads: tuple[int, int]) -> LatencyFigures | Failure:
        """How long one run of a graph takes, on [1, H, W, 3]."""
        return _told(lambda: trial_latency(self._timed_session(recipe, threads), image))

    def _timed_session(self, recipe: Recipe, threads: tuple[int, int]) -> ModelRunner:
        """A session of its own, which is closed when the next one is wanted: nobody waits for that.

        A latency that still runs in it then is one that nobody wants any more.
        """
        if self._timed is None or self._timed[0] != recipe.key:
            self._end_timed_session()
            with self._graph(recipe) as loaded:
                self._timed = recipe.key, ModelRunner(loaded.model, *threads)
        return self._timed[1]

    def curves(self, part: Stored, backend: CocoBackend) -> CategoryCurves | Failure:
        """The curves of some categories over all images."""
        return _told(lambda: category_curves(ray.get(part.reference), backend))

    def call(self, function: Callable[..., Any], arguments: Sequence[Any]) -> Any:
        """What a function of the package gives."""
        self._end_timed_session()
        return _told(lambda: function(*arguments))

    def _end_timed_session(self) -> None:
        if self._timed is not None:
            self._timed[1].close()
            self._timed = None

    def _find(self, recipe: Recipe, stored: Stored, part: ImageRange) -> FoundRange | Failure:
        chunk: ImageChunk = self._value(stored)
        entries = chunk.entries[part.start : part.stop]
        dataset = DetectionDataset(entries, chunk.category_ids, (), _DECODERS, chunk.steps, {}, self._store)
        found: list[Found] = []

        def look() -> None:
            for entry, sample in zip(entries, dataset, strict=True):
                if ray.get_runtime_context().is_canceled():
                    raise Cancelled
                detections = loaded.runner.detect(sample.image, masks=chunk.masks, view=sample.view)
                found.append(matched(truth_of(entry), detections, chunk.category_ids, chunk.iou_types))

        with self._graph(recipe) as loaded:
            started = time.perf_counter()
            failure = _told(look)
            whole = FoundRange(loaded.model.sha256, found, time.perf_counter() - started)
        if failure is None:
            return whole
        return replace(failure, before=whole) if found else failure

    @contextmanager
    def _graph(self, recipe: Recipe) -> Iterator[_Loaded]:
        """A graph at work, made by whoever needs it first, while the others wait for it."""
        loaded = self._taken(recipe)
        try:
            yield loaded
        finally:
            with self._lock:
                loaded.users -= 1

    def _taken(self, recipe: Recipe) -> _Loaded:
        while True:
            with self._lock:
                is_mine = recipe.key not in self._graphs
                making = self._graphs.setdefault(recipe.key, Future())
                self._graphs.move_to_end(recipe.key)
            if is_mine:
                return self._made(recipe, making)
            loaded = making.result()
            with self._lock:
                # Unless it was closed since.
                if self._graphs.get(recipe.key) is making:
                    loaded.users += 1
                    return loaded

    def _made(self, recipe: Recipe, making: "Future[_Loaded]") -> _Loaded:
        """Make a graph, and close those that were not used for longest."""
        try:
            given = None if recipe.given is None else ray.get(recipe.given.reference)
            source = None if recipe.source is None else self._value(recipe.source)
            model = recipe.make(given, source)
            loaded = _Loaded(model, ModelRunner(model, *self._threads), users=1)
        except BaseException as error:
            with self._lock:
                del self._graphs[recipe.key]
            making.set_exception(error)
            raise
        making.set_result(loaded)
        with self._lock:
            idle = [key for key, one in self._graphs.items() if one.done() and not one.result().users]
            for key in idle[: max(0, len(self._graphs) - GRAPHS_KEPT)]:
                self._graphs.pop(key).result().runner.close()
        return loaded

    def _value(self, stored: Stored) -> Any:
        with self._lock:
            if stored.key in self._values:
                self._values.move_to_end(stored.key)
                return self._values[stored.key]
        value = ray.get(stored.reference)
        with self._lock:
            self._values[stored.key] = value
            if len(self._values) > VALUES_KEPT:
                self._values.popitem(last=False)
        return value


def _told(work: Callable[[], _Result]) -> _Result | Failure:
    try:
        return work()
    except TunerError as error:
        # A room may have kinds of its own.
        kind = next(one for one in type(error).__mro__ if one.__module__ == errors.__name__)
        return Failure(kind.__name__, str(error))
