"""Two detectors on the same images: what each finds, how they differ, and how long they take in turns."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tuner.comparison.differences import CONFIDENCE, Differences, find_differences
from tuner.comparison.disagreement import Disagreement, disagreement, most_disagreeing
from tuner.config import TuningConfig
from tuner.data.dataset import DetectionDataset
from tuner.detections import Detections
from tuner.errors import ConfigError, DatasetError
from tuner.evaluation.coco_map import CocoBackend, coco_metrics, match_image
from tuner.evaluation.inference import choose_instances, detect_images
from tuner.evaluation.latency import LatencyFigures, iterations_within, measure_latency
from tuner.evaluation.match_records import match_records
from tuner.evaluation.workers import IMAGES_TO_CHOOSE_BY, MANY_IMAGES, truth_of
from tuner.inputs import Inputs, open_inputs, open_model, with_labels
from tuner.meter import iou_types
from tuner.model.detection_model import DetectionModel
from tuner.model.runner import ModelRunner
from tuner.progress import Clock, Progress
from tuner.timing import COMPARISON_S, FEWEST_COMPARED, MOST_COMPARED, apply_compute, latency_threads

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two. config: how it is read and fed. float_model: labels the images where nobody has."""

    model: Path
    config: TuningConfig
    float_model: Path


@dataclass(frozen=True, slots=True)
class Compared:
    """What was measured of one of the two. figures: COCO's, by name, as fractions."""

    path: Path
    figures: Mapping[str, float]
    latency: LatencyFigures
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """A and B on the same images.

    iou_type: what is compared of an object, bbox or segm. labels: annotations, or model. score: from which on a
    detection counts in `disagreements`, the images in which most detections have no partner. differing: in how many
    images one has none. category_names: by id, of those whose names are known.
    """

    images: int
    iou_type: str
    labels: str
    a: Compared
    b: Compared
    differences: Differences
    score: float
    differing: int
    disagreements: tuple[Disagreement, ...]
    category_names: Mapping[int, str]

    def to_json(self) -> dict[str, Any]:
        """The comparison as a JSON object; differences are B less A."""
        return {
            "schema": SCHEMA,
            "images": self.images,
            "iou_type": self.iou_type,
            "labels": self.labels,
            "confidence": CONFIDENCE,
            "models": {side: {**asdict(one), "path": str(one.path)} for side, one in (("a", self.a), ("b", self.b))},
            "map": {"difference": self.differences.difference, "interval": self.differences.interval},
            "categories": [
                {"name": self.category_names.get(one.category_id), **asdict(one), "difference": one.difference}
                for one in self.differences.categories
            ],
            "disagreement": {
                "score": self.score,
                "images_differing": self.differing,
                "images": [{**asdict(one), "agreement": one.agreement} for one in self.disagreements],
            },
        }


def compare(
    sides: tuple[Side, Side],
    progress: Progress,
    *,
    limit: int | None = None,
    most_images: int = 10,
    iterations: int | None = None,
    skip_bad_records: bool = False,
    cache_mb: int = 512,
    allow_code: bool = False,
    allow_ops: bool = False,
) -> Comparison:
    """Run both detectors on the evaluation set and tell how they differ.

    limit: the first so many images only. most_images: how many disagreements are told. iterations: runs of each that
    are timed; None for as many as take about COMPARISON_S seconds. allow_code: import what the settings name as
    module:name. allow_ops: as `load_model`.
    Raises ConfigError where the two are not of the same images, and TunerError for what else the user can mend.
    """
    clock = Clock(progress)
    first, second = sides
    with clock.stage("load"):
        models = [open_model(side.config, side.model, allow_ops=allow_ops) for side in sides]
        opened = [
            open_inputs(
                side.config,
                skip_bad_records=skip_bad_records,
                cache_mb=cache_mb,
                fed_to=model,
                allow_code=allow_code,
            )
            for side, model in zip(sides, models, strict=True)
        ]
        of_a, of_b = (_annotated(inputs).first(limit or len(_annotated(inputs))) for inputs in opened)
        if first.config is not second.config:
            _check_same_images(sides, of_a, of_b)
        labels = first.config.evaluation.accuracy.labels
        if labels == "model":
            labeller = open_model(first.config, first.float_model, allow_ops=allow_ops)
            labelled = with_labels(first.config, replace(opened[0], evaluation=of_a), labeller, clock.progress)
            of_a = _annotated(labelled)
    truths = [truth_of(entry) for entry in of_a.entries]
    category_ids = {i for truth in truths for i in truth.ground_truth.category_ids.tolist()}
    iou_type = iou_types(first.config)[0]
    found = []
    for name, side, model, dataset in zip("AB", sides, models, (of_a, of_b), strict=True):
        with clock.stage(f"detect with {name}"):
            found.append(_detect(side.config, model, dataset, clock.progress))
    with clock.stage("compare"):
        figures = [coco_metrics(truths, of_one, CocoBackend.PYCOCOTOOLS, iou_type).figures for of_one in found]
        matches = [
            [match_image(truth, one, category_ids, iou_type) for truth, one in zip(truths, of_one, strict=True)]
            for of_one in found
        ]
        image_ids = [truth.image_id for truth in truths]
        records = [match_records(image_ids, category_ids, of_one) for of_one in matches]
        differences = find_differences(records[0], records[1])
        score = first.config.evaluation.accuracy.label_score
        disagreements = [
            disagreement(truth, entry.name, (found_a, found_b), (matches_a, matches_b), score)
            for truth, entry, found_a, found_b, matches_a, matches_b in zip(
                truths, of_a.entries, *found, *matches, strict=True
            )
        ]
    with clock.stage("time"):
        latencies = _time(sides, models, (of_a, of_b), iterations)
    compared = [
        Compared(side.model, of_one, latency, model.size_bytes)
        for side, of_one, latency, model in zip(sides, figures, latencies, models, strict=True)
    ]
    return Comparison(
        images=len(truths),
        iou_type=iou_type.value,
        labels=labels,
        a=compared[0],
        b=compared[1],
        differences=differences,
        score=score,
        differing=sum(one.alone > 0 for one in disagreements),
        disagreements=most_disagreeing(disagreements, most_images),
        category_names=of_a.category_names,
    )


def _annotated(inputs: Inputs) -> DetectionDataset:
    if inputs.evaluation is None:
        raise ConfigError("evaluation.accuracy: an eval_func keeps its own images; give --dataset_location")
    return inputs.evaluation


def _check_same_images(sides: Sequence[Side], *datasets: DetectionDataset) -> None:
    # What is done to the images is each detector's own matter.
    hashes = [replace(dataset, steps=()).sha256 for dataset in datasets]
    if hashes[0] != hashes[1]:
        told = "; ".join(
            f"{side.model}: {len(dataset)} images, {sha256[:12]}"
            for side, dataset, sha256 in zip(sides, datasets, hashes, strict=True)
        )
        raise DatasetError(f"the two are not of the same images ({told}); name one set with --dataset_location")


def _detect(
    config: TuningConfig, model: DetectionModel, dataset: DetectionDataset, progress: Progress
) -> list[Detections]:
    """What the model finds in each image, by as many sessions as `evaluate` would take."""
    compute = config.evaluation.accuracy.configs
    threads, inter_threads = apply_compute(compute)
    instances = compute.num_of_instance or 1
    if len(dataset) >= MANY_IMAGES and not (compute.num_of_instance or threads or inter_threads):
        instances, threads = choose_instances(model, [one.image for one in dataset.first(IMAGES_TO_CHOOSE_BY)])
    masks = "segm" in iou_types(config)
    each = detect_images(model, dataset, instances=instances, threads=threads, inter_threads=inter_threads, masks=masks)
    return list(progress.track(each, len(dataset), "detect"))


def _time(
    sides: Sequence[Side],
    models: Sequence[DetectionModel],
    datasets: Sequence[DetectionDataset],
    iterations: int | None,
) -> list[LatencyFigures]:
    """Both on the first image, each as it is fed it, in turns."""
    config = sides[0].config
    threads = latency_threads(config)
    images = [dataset.first_image[np.newaxis] for dataset in datasets]
    with ModelRunner(models[0], *threads) as of_a, ModelRunner(models[1], *threads) as of_b:
        runs = [partial(runner.run, image) for runner, image in zip((of_a, of_b), images, strict=True)]
        first = measure_latency(runs, warmup=1, iterations=1)
        round_ms = sum(one.median_ms for one in first)
        fitting = iterations_within(COMPARISON_S, round_ms, fewest=FEWEST_COMPARED, most=MOST_COMPARED)
        return measure_latency(runs, warmup=config.evaluation.performance.warmup, iterations=iterations or fitting)
