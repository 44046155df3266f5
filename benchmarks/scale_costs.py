"""What a candidate costs a worker and the driver, measured in this process with one thread: for the simulation."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

from tuner.cluster.recipe import FoundRange
from tuner.cluster.workforce import MOST_PARTS
from tuner.data.calibration import calibration_images
from tuner.data.dataset import DetectionDataset, open_dataset
from tuner.engine import Engine, LoweringSource
from tuner.evaluation.coco_map import CocoBackend, IouType, category_curves, metrics_of
from tuner.evaluation.coco_parts import category_parts
from tuner.evaluation.coco_tables import coco_tables
from tuner.evaluation.early_rejection import EarlyRejection, LossLimit
from tuner.evaluation.match_records import match_records, mean_average_precision
from tuner.evaluation.workers import EvaluationImages, Found, matched, trial_latency
from tuner.graph.postprocess import optimize_postprocess
from tuner.model.loading import load_model
from tuner.model.runner import ModelRunner
from tuner.precision import FP32, INT8, PrecisionPlan
from tuner.quantization.audit import read_plan
from tuner.quantization.quantize import find_quantizable_ops, prepare
from tuner.quantization.ranges import collect_ranges
from tuner.trial import Proposal

CALIBRATION_IMAGES = 10
# Seconds of what grows with the images are told for so many; a measured set is repeated until it has them.
SET = 5000


@dataclass(frozen=True)
class Costs:
    """Seconds, unless the name says otherwise; of an int8 graph of one detector.

    image_s: decode, detect with one thread and match. decode_s, match_s: parts of it. lower_s: a plan becomes a graph.
    session_s: of a graph, with what its first run takes longer than others. latency_s: to measure it, in a session that
    ran once.
    merge_s: to unpack and keep what was found in one image.
    own_s: our own mAP of SET images. look_s: an early look at 2,000 of them.
    faster_s, certify_s: COCO's figures of SET images by faster-coco-eval and pycocotools, in one process.
    tables_s: what of either stays with the driver when categories are spread; faster_part_s, certify_part_s: the
    longest part then. parts: into how many. result_bytes: found in one image, as Ray sends it.
    source_bytes: float graph and ranges. graph_bytes: of an int8 graph, which is not sent.
    """

    name: str
    image_s: float
    decode_s: float
    match_s: float
    lower_s: float
    session_s: float
    latency_s: float
    merge_s: float
    own_s: float
    look_s: float
    faster_s: float
    certify_s: float
    tables_s: float
    faster_part_s: float
    certify_part_s: float
    parts: int
    result_bytes: float
    source_bytes: int
    graph_bytes: int


@dataclass(frozen=True)
class Subject:
    """A detector to be measured. plans: candidates without end, no two of which are one graph."""

    name: str
    source: LoweringSource
    engine: Engine
    dataset: DetectionDataset
    plans: Iterator[Proposal]


def subject(model: Path, dataset: Path, images: int) -> Subject:
    """A detector, its ranges, and the first images of a set. Plans keep one operator in float, each another one."""
    name = model.parent.name if model.stem in {"frozen_inference_graph", "detector"} else model.stem
    opened = open_dataset(dataset, limit=images)
    calibration = list(calibration_images(opened, CALIBRATION_IMAGES))
    prepared = prepare(optimize_postprocess(load_model(model), calibration[:2]).model)
    ops = find_quantizable_ops(prepared)
    source = LoweringSource(prepared, collect_ranges(prepared, ops.tensors, calibration), matmul_kernel=True)
    engine = Engine(source.lower, read_plan, source)
    every = dict.fromkeys(ops.names, INT8)
    plans = (Proposal(PrecisionPlan({**every, op: FP32}), CALIBRATION_IMAGES) for op in cycle(ops.names[::-1]))
    return Subject(name, source, engine, opened, plans)


@contextmanager
def timed(seconds: list[float]) -> Iterator[None]:
    """Append what the block takes."""
    started = time.perf_counter()
    yield
    seconds.append(time.perf_counter() - started)


def took(function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """The seconds that a call takes, and what it gives."""
    started = time.perf_counter()
    given = function(*arguments)
    return time.perf_counter() - started, given


def measure(of: Subject, size: Callable[[object], int], thaw: Callable[[object], Callable[[], object]]) -> Costs:
    """What a candidate costs. size: bytes of a value as Ray sends it. thaw: packs a value; the result unpacks it."""
    images = EvaluationImages(of.dataset, (IouType.BBOX,))
    lowered, sessions = [], []
    for proposal in islice(of.plans, 3):
        with timed(lowered):
            graph = of.engine.quantize(proposal)
            _ = graph.sha256
    first = of.dataset.first_image
    with timed(sessions):
        runner = ModelRunner(graph, 1)
        runner.detect(first)
    decoding: list[float] = []
    detecting: list[float] = []
    matching: list[float] = []
    found: list[Found] = []
    for entry, truth in zip(of.dataset.entries, images.truths, strict=True):
        with timed(decoding):
            (sample,) = replace(of.dataset, entries=(entry,)).first(1)
        with timed(detecting):
            detections = runner.detect(sample.image, view=sample.view)
        with timed(matching):
            found.append(matched(truth, detections, images.category_ids, images.iou_types))
    runner.close()
    with ModelRunner(graph, 1) as timed_runner:
        timed_runner.run(first[np.newaxis])
        latency_s, _ = took(trial_latency, timed_runner, first[np.newaxis])
    result = FoundRange(graph.sha256, found, 1.0)
    unpack = thaw(result)
    merge_s = statistics.median(took(unpack)[0] for _ in range(5)) / len(found)
    detect_s, decode_s, match_s = (statistics.median(one) for one in (detecting, decoding, matching))
    session_s = sessions[0] - detect_s
    return Costs(
        name=of.name,
        image_s=decode_s + detect_s + match_s,
        decode_s=decode_s,
        match_s=match_s,
        lower_s=statistics.median(lowered),
        session_s=session_s,
        latency_s=latency_s,
        merge_s=merge_s,
        **_of_many(images, found),
        result_bytes=size(result) / len(found),
        source_bytes=size(of.source),
        graph_bytes=graph.size_bytes,
    )


def _of_many(images: EvaluationImages, found: list[Found]) -> dict[str, Any]:
    """What grows with the images in the driver, for SET images: those that there are, repeated."""
    pairs = islice(cycle(zip(images.truths, found, strict=True)), SET)
    truths, many = zip(*((replace(truth, image_id=i), one) for i, (truth, one) in enumerate(pairs, 1)), strict=True)
    detections = [one.detections for one in many]
    ids = [truth.image_id for truth in truths]

    def own() -> Any:
        records = match_records(ids, images.category_ids, [one.matches[IouType.BBOX] for one in many])
        mean_average_precision(records, np.ones((1, SET)))
        return records

    own_s, records = took(own)
    rejection = EarlyRejection(records, LossLimit("relative", 0.01))
    look_s, _ = took(rejection.look, records.first(rejection.schedule[-1]))
    collect_s, tables = took(coco_tables, truths, detections)
    whole = {backend: took(category_curves, tables, backend) for backend in CocoBackend}
    split_s, parts = took(category_parts, tables, MOST_PARTS)
    longest = {backend: max(took(category_curves, part, backend)[0] for part in parts) for backend in CocoBackend}
    sum_s, _ = took(metrics_of, [whole[CocoBackend.FASTER][1]])
    faster, authority = CocoBackend.FASTER, CocoBackend.PYCOCOTOOLS
    return {
        "own_s": own_s,
        "look_s": look_s,
        "faster_s": collect_s + whole[faster][0] + sum_s,
        "certify_s": collect_s + whole[authority][0] + sum_s,
        "tables_s": collect_s + split_s + sum_s,
        "faster_part_s": longest[faster],
        "certify_part_s": longest[authority],
        "parts": len(parts),
    }
