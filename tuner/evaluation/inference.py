"""Detecting in many images at once: several sessions side by side, fed while the next images are decoded."""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

from numpy.typing import NDArray

from tuner.data.images import map_ahead
from tuner.detections import Detections, Sample
from tuner.errors import EvaluationError
from tuner.evaluation.latency import iterations_within, measure_latency
from tuner.model.detection_model import DetectionModel
from tuner.model.runner import ModelRunner

# A run this long keeps its cores busy by itself, and comparing would cost more than it can win.
LONG_RUN_S = 0.1
# Instances are compared in so many turns of about so long each.
TURNS, TURN_S = 3, 0.08
_CALLERS_THREAD = -1

_Image = NDArray[Any]


def detect_images(
    model: DetectionModel,
    images: Iterable[Sample | _Image],
    *,
    instances: int = 1,
    threads: int = 0,
    inter_threads: int = 0,
    masks: bool = False,
) -> Iterator[Detections]:
    """What the model finds in each image, in their order, at most two per instance ahead of the reader.

    images: samples, or what the model is fed, such as [H, W, 3], as arrays. instances: sessions that run side by side.
    threads, inter_threads: of each one, inside one operator and for independent ones; 0 lets TensorFlow choose, except
    that an instance of one thread runs operators one after the other unless told otherwise. masks: as
    `ModelRunner.detect` has it.
    Sessions are built with the first image, and closed when the reader has the last result or stops.

    Raises what `images` raises and ModelError as `ModelRunner.detect` does, after the results before it.
    """
    with _own_session_each(model, threads, inter_threads, masks=masks) as detect:
        yield from map_ahead(detect, images, instances)


def choose_instances(
    model: DetectionModel, images: Sequence[_Image], *, instances: int = 0, threads: int = 0
) -> tuple[int, int]:
    """How many sessions, of how many threads each, get through most images in a second on this machine.

    Compares one session over all cores with one of a single thread for each core, on `images`, each [H, W, 3]; in
    under a second for small models, sessions built, and not at all where a run takes longer than LONG_RUN_S.
    instances, threads: what is not 0 was asked for and is kept; nothing is measured then.
    Raises EvaluationError for more instances than cores, ModelError for a model that does not run.
    """
    cores = len(os.sched_getaffinity(0))
    if not 0 <= instances <= cores:
        raise EvaluationError(f"instances: got {instances}; expected 1 to {cores}, the cores of this machine")
    if instances or threads or cores == 1:
        return instances or 1, threads or cores // (instances or 1)
    with ExitStack() as stack:
        wide = stack.enter_context(_rounds(model, 1, cores))
        wide(images[:1])  # The first run optimises the graph.
        (alone,) = measure_latency([lambda: wide(images[:1])], warmup=0, iterations=2)
        if alone.median_ms > LONG_RUN_S * 1000:
            return 1, cores
        count = cores * iterations_within(TURN_S, alone.median_ms * cores, fewest=1, most=50)
        batch = [images[index % len(images)] for index in range(count)]
        narrow = stack.enter_context(_rounds(model, cores, 1))
        both = measure_latency([lambda: wide(batch), lambda: narrow(batch)], warmup=1, iterations=TURNS)
    return (cores, 1) if both[1].median_ms < both[0].median_ms else (1, cores)


def threads_side_by_side(threads: int, inter_threads: int) -> tuple[int, int]:
    """Threads inside one operator and for independent ones, of runs that go beside each other.

    One thread runs operators one after the other in the caller's, unless told otherwise; 0 lets TensorFlow choose.
    """
    return threads, _CALLERS_THREAD if threads == 1 and inter_threads == 0 else inter_threads


@contextmanager
def _rounds(model: DetectionModel, instances: int, threads: int) -> Iterator[Callable[[Sequence[_Image]], Any]]:
    """A function that detects in all of the images it is given."""
    with _own_session_each(model, threads) as detect, ThreadPoolExecutor(instances) as pool:
        yield lambda images: list(pool.map(detect, images))


@contextmanager
def _own_session_each(
    model: DetectionModel, threads: int, inter_threads: int = 0, *, masks: bool = False
) -> Iterator[Callable[[Sample | _Image], Detections]]:
    """A function that detects in one image, in a session that belongs to the thread it is called in.

    oneDNN keeps what it has compiled for each thread apart, so a thread that stays with its session and runs all of
    its operators compiles them once.
    """
    own = threading.local()
    of_session = threads_side_by_side(threads, inter_threads)
    with ExitStack() as sessions:

        def detect(item: Sample | _Image) -> Detections:
            if not hasattr(own, "runner"):
                own.runner = sessions.enter_context(ModelRunner(model, *of_session))
            runner: ModelRunner = own.runner
            if isinstance(item, Sample):
                return runner.detect(item.image, masks=masks, view=item.view)
            return runner.detect(item, masks=masks)

        yield detect
