"""The work of a run on the workers of a cluster; the driver asks, merges in order, and decides."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, TypeVar

import numpy as np
import ray
from numpy.typing import NDArray

from tuner.cluster.address import parse_address
from tuner.cluster.connection import connected
from tuner.cluster.facts import read_facts
from tuner.cluster.image_calls import chunks_of, find_calls
from tuner.cluster.jobs import Call, Job
from tuner.cluster.pool import Pool, PoolSettings
from tuner.cluster.recipe import FoundRange, Recipe, Stored
from tuner.cluster.scheduler import HANG_S, PATIENCE_S, Scheduler
from tuner.cluster.shards import LONGEST_S, UNKNOWN_S, most_ranges
from tuner.cluster.worker import GRAPHS_KEPT
from tuner.detections import Detections
from tuner.engine import Engine
from tuner.errors import ClusterError
from tuner.evaluation.coco_map import CocoBackend, CocoMetrics, IouType, coco_metrics, metrics_of
from tuner.evaluation.coco_parts import category_parts
from tuner.evaluation.coco_tables import coco_tables
from tuner.evaluation.latency import LatencyFigures
from tuner.evaluation.workers import EvaluationImages, Found, RunningGraph
from tuner.files import json_sha256
from tuner.model.detection_model import DetectionModel
from tuner.quantization.ranges import Observation
from tuner.trial import Proposal

_Result = TypeVar("_Result")

# So many plans at most are drawn side by side: more would be drawn blindly.
MOST_AT_ONCE = 8
# From so many images on, COCO's figures take longer than to send them. In more parts than that they are not made
# faster, since one category cannot be split.
MANY_IMAGES, MOST_PARTS = 500, 32
# About so long latency takes until it is known.
LATENCY_S = 5.0
# More runs beside each other in one process wait for Python.
MOST_CPUS = 8
# Both the plan that follows where one passes, and the one that follows where it does not.
LEAST_AHEAD = 2
# What is asked for goes before what may be asked for.
_NOW, _MAYBE = 0, 1


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """threads, inter_threads: of each worker's sessions, 0 for its share of the CPUs. cache_mb: MiB on each node for
    decoded images. hang_s, patience_s: as `Scheduler`.
    """

    threads: int = 0
    inter_threads: int = 0
    cache_mb: int = 512
    hang_s: float = HANG_S
    patience_s: float = PATIENCE_S


@contextmanager
def cluster_workforce(address: str, settings: ClusterSettings) -> Iterator["ClusterWorkforce"]:
    """The workers at an address, until the context is left. Raises ConfigError and ClusterError."""
    where = parse_address(address)
    with connected(where):
        local = where.local_workers > 0
        pool = Pool(
            PoolSettings(
                settings.threads or 1,
                settings.inter_threads,
                cpus=settings.threads or 1 if local else MOST_CPUS,
                cache_mb=settings.cache_mb,
            ),
            read_facts(),
        )
        with closing(Scheduler(pool, hang_s=settings.hang_s, patience_s=settings.patience_s)) as scheduler:
            yield ClusterWorkforce(scheduler, pool, (settings.threads, settings.inter_threads))


class ClusterWorkforce:
    """See `tuner.workforce.Workforce`. threads: of the sessions whose latency is taken."""

    def __init__(self, scheduler: Scheduler, pool: Pool, threads: tuple[int, int]) -> None:
        self._scheduler, self._pool, self._threads = scheduler, pool, threads
        self._numbers = count(1)
        self._chunks: dict[EvaluationImages, list[Stored]] = {}
        self._proposals: dict[str, Proposal] = {}
        self._source: Stored | None = None
        self._given: dict[str, Recipe] = {}
        self._begun: dict[tuple[EvaluationImages, str], Job] = {}
        self.image_s, self._latency_s = UNKNOWN_S, LATENCY_S

    @property
    def described(self) -> str:
        """Which machines there are now, in words."""
        return self._pool.described

    def at_once(self, images: EvaluationImages | None) -> int:
        """See `Workforce`."""
        if images is None:
            return 1
        # Of no clock: it decides what is drawn.
        ranges = most_ranges(len(images.dataset), UNKNOWN_S)
        return min(MOST_AT_ONCE, max(1, self._scheduler.slots // ranges))

    def ahead(self, images: EvaluationImages | None) -> int:
        """See `Workforce`: none where what waits is this machine, which has enough to do."""
        if images is None:
            return 0
        others = self.at_once(images) - 1
        return max(LEAST_AHEAD, others) if len(self._pool.hosts) > 1 else others

    @contextmanager
    def running(
        self, model: DetectionModel, image: NDArray[Any] | None, images: EvaluationImages | None = None
    ) -> Iterator[RunningGraph]:
        """See `Workers`: the graph itself stays here, unless nobody knows how it is made."""
        recipe = self._recipe(model)
        finding = None if images is None else self._find(recipe, images, _NOW)
        latency = Call("latency", (recipe, image, self._threads), "latency", beforehand="prepare_latency")
        left = 0 if finding is None else self._left_for_latency(finding)
        timing = self._scheduler.submit(
            Job([] if image is None else [latency], after=finding, left=left, is_alone=True)
        )
        try:
            yield _Running(self, model, finding, timing)
        finally:
            for job in (finding, timing):
                if job is not None:
                    self._scheduler.cancel(job)

    def metrics(
        self, images: EvaluationImages, detections: Sequence[Detections], backend: CocoBackend, iou_type: IouType
    ) -> CocoMetrics:
        """See `Workers`: where there are many images, each worker makes the curves of some categories."""
        workers = self._scheduler.workers
        if len(images.dataset) < MANY_IMAGES or workers == 1:
            return coco_metrics(images.truths, detections, backend, iou_type)
        parts = category_parts(coco_tables(images.truths, detections, iou_type), min(workers, MOST_PARTS))
        calls = [Call("curves", (self._store(part), backend), f"curves of part {i}") for i, part in enumerate(parts, 1)]
        return metrics_of(list(self._scheduler.results(self._scheduler.submit(Job(calls)))))

    def alone(self, function: Callable[..., _Result], *arguments: Any) -> _Result:
        """See `Workers`: on the pinned node, in the order in which it is asked for."""
        told = getattr(function, "__name__", "a measurement")
        job = self._scheduler.submit(Job([Call("call", (function, arguments), told)], is_alone=True))
        (found,) = self._scheduler.results(job)
        result: _Result = found
        return result

    def observe(
        self, model: DetectionModel, tensors: Sequence[str], images: Iterable[NDArray[np.generic]], /
    ) -> list[Observation]:
        """See `Workforce`."""
        stored, given = self._store(model), list(images)
        # One part for each worker, since each part takes a session.
        parts = np.array_split(np.arange(len(given)), min(len(given), self._scheduler.workers) or 1)
        calls = [
            Call(
                "observe",
                (stored, tuple(tensors), [self._store(given[index]) for index in part]),
                f"calibration images {part[0] + 1} to {part[-1] + 1}",
            )
            for part in parts
            if len(part)
        ]
        job = self._scheduler.submit(Job(calls))
        # Workers share what they fetch, and what is fetched is read only; ranges are put together in place.
        return [dict(one) for part in self._scheduler.results(job) for one in part]

    def learn(self, engine: Engine) -> Engine:
        """See `Workforce`."""
        if engine.source is None:
            return engine
        self._source = self._store(replace(engine.source, images=()))

        def quantize(proposal: Proposal) -> DetectionModel:
            model = engine.quantize(proposal)
            # Images for corrections of weights are here only.
            if not proposal.corrections:
                self._proposals[model.sha256] = proposal
            return model

        return replace(engine, quantize=quantize)

    def expect(self, proposals: Sequence[Proposal], images: EvaluationImages | None) -> None:
        """See `Workforce`."""
        if images is None:
            return
        wanted = [self._of_proposal(proposal) for proposal in proposals if not proposal.corrections and self._source]
        keys = [recipe.key for recipe in wanted]
        for (of_images, key), job in list(self._begun.items()):
            if key not in keys and job.rank != _NOW:
                self._scheduler.cancel(job)
                del self._begun[of_images, key]
        for rank, recipe in enumerate(wanted, start=_MAYBE):
            self._find(recipe, images, rank)
        self._scheduler.prepare([(recipe, self._chunks[images][0]) for recipe in wanted[1:GRAPHS_KEPT]])

    def found(self, job: Job, model: DetectionModel) -> Generator[Found, None, None]:
        """What a job found, image by image. Raises ClusterError where another graph was run than `model`."""
        seconds, images = 0.0, 0
        with closing(self._scheduler.results(job)) as results:
            for part in results:
                self._check_graph(part, model)
                seconds, images = seconds + part.seconds, images + len(part.found)
                self.image_s = seconds / images
                yield from part.found

    def latency(self, job: Job) -> LatencyFigures:
        """What a job measured."""
        (found,) = self._scheduler.results(job)
        self._latency_s = job.longest_s
        figures: LatencyFigures = found
        return figures

    def _left_for_latency(self, finding: Job) -> int:
        """How many calls the other nodes answer while one takes latency; none where there is no other node."""
        # What the pinned node has begun has to end first.
        meanwhile_s = self._latency_s + max(LONGEST_S, self.image_s)
        images_meanwhile = meanwhile_s * self._scheduler.slots_elsewhere / self.image_s
        left = 0
        for call in reversed(finding.calls):
            images_meanwhile -= len(call.arguments[-1])
            if images_meanwhile < 0:
                break
            left += 1
        return left

    def _check_graph(self, part: FoundRange, model: DetectionModel) -> None:
        if part.graph_sha256 != model.sha256:
            raise ClusterError(
                f"a worker made the graph {part.graph_sha256[:12]} of a plan, which is {model.sha256[:12]} here: "
                "all nodes need the same version of the package"
            )

    def _recipe(self, model: DetectionModel) -> Recipe:
        proposal = self._proposals.get(model.sha256)
        if proposal is not None:
            return self._of_proposal(proposal)
        if model.sha256 not in self._given:
            self._given = {model.sha256: Recipe(model.sha256, given=self._store(model))}
        return self._given[model.sha256]

    def _of_proposal(self, proposal: Proposal) -> Recipe:
        told = {**proposal.to_json(), "parameters": {}, "idea": ""}
        return Recipe(json_sha256(told), source=self._source, proposal=replace(proposal, parameters={}, idea=""))

    def _find(self, recipe: Recipe, images: EvaluationImages, rank: int) -> Job:
        key = images, recipe.key
        job = self._begun.pop(key, None)
        if job is None or not self._scheduler.promote(job, rank):
            job = self._scheduler.submit(Job(self._calls(recipe, images), rank=rank))
        if rank != _NOW:
            self._begun[key] = job
        return job

    def _calls(self, recipe: Recipe, images: EvaluationImages) -> list[Call]:
        if images not in self._chunks:
            self._chunks[images] = [self._store(chunk) for chunk in chunks_of(images)]
        return find_calls(recipe, self._chunks[images], len(images.dataset), self._scheduler.slots, self.image_s)

    def _store(self, value: object) -> Stored:
        return Stored(f"{type(value).__name__} {next(self._numbers)}", ray.put(value))


@dataclass(frozen=True)
class _Running:
    workforce: ClusterWorkforce
    model: DetectionModel
    finding: Job | None
    timing: Job

    def find(self) -> Generator[Found, None, None]:
        if self.finding is not None:
            yield from self.workforce.found(self.finding, self.model)

    def latency(self) -> LatencyFigures:
        return self.workforce.latency(self.timing)
