"""How long one run takes, and how many images a machine gets through in a second."""

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, product
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from threading import BrokenBarrierError
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.errors import EvaluationError
from tuner.model.detection_model import DetectionModel
from tuner.model.runner import ModelRunner, allow_xla_on_cpu


@dataclass(frozen=True, slots=True)
class LatencyFigures:
    """Times of one run (one batch) in milliseconds, and images per second over all instances.

    xla_clusters: how many parts of the graph ran as compiled by XLA.
    """

    median_ms: float
    p90_ms: float
    p99_ms: float
    min_ms: float
    mean_ms: float
    images_per_s: float
    xla_clusters: int = 0


def measure_latency(
    runs: Sequence[Callable[[], object]], *, warmup: int = 5, iterations: int = 50, images_per_run: int = 1
) -> list[LatencyFigures]:
    """The figures of each of `runs`, taken in turns (A B A B ...) so that a disturbance meets all of them alike.

    warmup: rounds before the clock counts. iterations: rounds that count. Raises EvaluationError below one iteration.
    """
    return [_summarise([times], images_per_run) for times in _time_in_turns(runs, warmup, iterations)]


def iterations_within(budget_s: float, run_ms: float, *, fewest: int, most: int) -> int:
    """How many runs of `run_ms` milliseconds take about `budget_s` seconds: at least `fewest`, at most `most`."""
    return min(max(int(budget_s * 1000 / max(run_ms, 1e-3)), fewest), most)


def measure_models(
    models: Sequence[DetectionModel],
    images: NDArray[Any],
    *,
    threads: int = 0,
    inter_threads: int = 0,
    instances: int = 1,
    warmup: int = 5,
    iterations: int = 50,
    xla: bool = False,
) -> list[LatencyFigures]:
    """The figures of each model on one batch of images, [N, H, W, 3].

    threads, inter_threads: of each instance, inside one operator and for independent ones; 0 is all of its cores.
    instances: processes at once, each pinned to its share of the cores; times are of the runs of all of them, images
    per second is their sum.
    xla: time each model once more, compiled by XLA, in the same turns; those figures follow the plain ones. On a CPU
    `allow_xla_on_cpu` must come in time for that; instances have processes of their own.
    Raises EvaluationError for more instances than cores, ModelError for a model that does not run.
    """
    time_models = partial(
        _time_models,
        list(models),
        images,
        threads=(threads, inter_threads),
        warmup=warmup,
        iterations=iterations,
        xla=xla,
    )
    found = [time_models()] if instances == 1 else _time_instances(time_models, instances)
    return [
        replace(_summarise([timed.times_s for timed in of_model], len(images)), xla_clusters=of_model[0].xla_clusters)
        for of_model in zip(*found, strict=True)
    ]


def measure_in_pairs(
    models: Sequence[DetectionModel], measure: Callable[[Sequence[DetectionModel]], list[LatencyFigures]]
) -> list[LatencyFigures]:
    """The figures of models of which no more than two fit into memory at once.

    measure: takes turns between two models. The smallest model is in every pair, so that what slows down the machine
    during one pair does not count against it: the figures of the others are told in units of its median.
    """
    common = min(range(len(models)), key=lambda index: models[index].size_bytes)
    # The larger one first: while its graph is optimised, the other is not there yet.
    pairs = {
        index: measure([model, models[common]])
        for index, model in enumerate(models)
        if index != common or len(models) == 1
    }
    common_ms = float(np.median([beside.median_ms for _, beside in pairs.values()]))
    figures = {index: _slower(of_model, common_ms / beside.median_ms) for index, (of_model, beside) in pairs.items()}
    of_common = next(iter(pairs.values()))[1]
    figures.setdefault(common, _slower(of_common, common_ms / of_common.median_ms))
    return [figures[index] for index in range(len(models))]


def _slower(figures: LatencyFigures, factor: float) -> LatencyFigures:
    return replace(
        figures,
        median_ms=figures.median_ms * factor,
        p90_ms=figures.p90_ms * factor,
        p99_ms=figures.p99_ms * factor,
        min_ms=figures.min_ms * factor,
        mean_ms=figures.mean_ms * factor,
        images_per_s=figures.images_per_s / factor,
    )


@dataclass(frozen=True, slots=True)
class _Timed:
    """One model in one process."""

    times_s: list[float]
    xla_clusters: int


def _time_in_turns(runs: Sequence[Callable[[], object]], warmup: int, iterations: int) -> list[list[float]]:
    """Seconds of every counted run: one list for each of `runs`."""
    if iterations < 1:
        raise EvaluationError(f"iterations: got {iterations}; expected at least 1")
    times: list[list[float]] = [[] for _ in runs]
    for iteration in range(warmup + iterations):
        for run, own_times in zip(runs, times, strict=True):
            start = time.perf_counter()
            run()
            elapsed = time.perf_counter() - start
            if iteration >= warmup:
                own_times.append(elapsed)
    return times


def _time_models(
    models: Sequence[DetectionModel],
    images: NDArray[Any],
    *,
    threads: tuple[int, int],
    warmup: int,
    iterations: int,
    xla: bool,
    wait: Callable[[], object] = lambda: None,
) -> list[_Timed]:
    kinds = (False, True) if xla else (False,)
    if xla:
        allow_xla_on_cpu()
    with ExitStack() as stack:
        runners = []
        for model, kind in product(models, kinds):
            runner = stack.enter_context(ModelRunner(model, *threads, xla=kind))
            # The first run optimises the graph, which takes a different time in each process, and memory.
            runner.run(images)
            runners.append(runner)
        wait()
        runs = [partial(runner.run, images) for runner in runners]
        times = _time_in_turns(runs, warmup, iterations)
        # Afterwards: some parts are compiled only when they ran a few times.
        clusters = [runner.xla_clusters(images) if xla else 0 for runner in runners]
        return [_Timed(*of_runner) for of_runner in zip(times, clusters, strict=True)]


def _time_instances(time_models: Callable[..., list[_Timed]], instances: int) -> list[list[_Timed]]:
    cores = sorted(os.sched_getaffinity(0))
    if not 1 <= instances <= len(cores):
        raise EvaluationError(f"instances: got {instances}; expected 1 to {len(cores)}, the cores of this machine")
    # Forked processes would share TensorFlow's threads, of which only one survives the fork.
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(instances)
    shares: SimpleQueue[list[int]] = context.SimpleQueue()
    for share in np.array_split(cores, instances):
        shares.put([int(core) for core in share])
    with ProcessPoolExecutor(instances, context, _start_instance, (shares, barrier)) as pool:
        futures = [pool.submit(_time_instance, time_models) for _ in range(instances)]
    faults = [fault for future in futures if (fault := future.exception()) is not None]
    if faults:
        # One instance that fails releases the others from the barrier: theirs is not the cause.
        cause = next((fault for fault in faults if not isinstance(fault, BrokenBarrierError)), faults[0])
        if isinstance(cause, BrokenProcessPool):
            raise EvaluationError(f"{instances} instances: a process died, perhaps for want of memory") from cause
        raise cause
    return [future.result() for future in futures]


_barrier: Barrier


def _start_instance(shares: "SimpleQueue[list[int]]", barrier: Barrier) -> None:
    """In a fresh process: take a share of the cores before TensorFlow counts them."""
    global _barrier  # noqa: PLW0603
    _barrier = barrier
    os.sched_setaffinity(0, shares.get())


def _time_instance(time_models: Callable[..., list[_Timed]]) -> list[_Timed]:
    try:
        return time_models(wait=_barrier.wait)
    except BaseException:
        _barrier.abort()
        raise


def _summarise(times_s: Sequence[Sequence[float]], images_per_run: int) -> LatencyFigures:
    """One model's figures from the times of its runs, one list for each instance."""
    every = np.array(list(chain.from_iterable(times_s))) * 1000
    return LatencyFigures(
        median_ms=float(np.median(every)),
        p90_ms=float(np.percentile(every, 90)),
        p99_ms=float(np.percentile(every, 99)),
        min_ms=float(every.min()),
        mean_ms=float(every.mean()),
        images_per_s=float(sum(images_per_run * len(times) / sum(times) for times in times_s)),
    )
