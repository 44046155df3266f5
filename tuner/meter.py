"""What measures graphs in this run: accuracy as the settings want it, latency, and what is kept of both."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.cache import Cache
from tuner.config import Objective, TuningConfig
from tuner.criterion import cost, loss, passes
from tuner.data.dataset import DetectionDataset
from tuner.errors import ConfigError, EvaluationError
from tuner.evaluation.coco_map import IouType
from tuner.evaluation.early_rejection import EarlyRejection, LossInterval, LossLimit, loss_interval
from tuner.evaluation.evaluator import CocoEvaluator, Evaluator, FunctionEvaluator, measure_fully
from tuner.evaluation.footprint import measure_footprint
from tuner.evaluation.match_records import MatchRecords
from tuner.evaluation.workers import Workers
from tuner.inputs import Inputs
from tuner.model.detection_model import DetectionModel
from tuner.progress import Progress
from tuner.search.space import FAILED, Outcome
from tuner.timing import latency_threads
from tuner.trial import CompletedTrial, Confirmation, Measurement, RejectedTrial, Rejection, Trial

_log = logging.getLogger(__name__)

_Records = Mapping[IouType, MatchRecords]
_CACHED_AS = {IouType.BBOX: "detections", IouType.SEGM: "masks"}


class Meter:
    """Measures the float model once, and graphs against it.

    image: [1, H, W, 3], for latency and memory. A share of the images is kept from the search where the settings want
    its result to be confirmed. images: of the search; None where an eval_func keeps its own. baseline: of the float
    model, once it is measured. confirmations: of the graphs that were measured on those images, by their hash.
    """

    def __init__(
        self,
        config: TuningConfig,
        inputs: Inputs,
        image: NDArray[Any],
        cache: Cache,
        progress: Progress,
        *,
        environment: Mapping[str, str],
        workers: Workers,
    ) -> None:
        if config.tuning.confirm and inputs.evaluation is None:
            raise ConfigError("tuning.confirm: an eval_func keeps its own images; expected 0, or an evaluation set")
        self._config, self._criterion, self._cache = config, config.tuning.accuracy_criterion, cache
        self.image = image
        self._identity = inputs.evaluation_identity
        self.workers, self.environment = workers, environment
        searched, kept_back = _split(inputs.evaluation, config.tuning.confirm, config.tuning.random_seed)
        make = partial(make_evaluator, config, inputs, image, progress, workers=workers)
        self._evaluator = make(dataset=searched)
        self._confirmer = None if kept_back is None else make(dataset=kept_back)
        self.images = self._evaluator.images if isinstance(self._evaluator, CocoEvaluator) else None
        self._finds_matches = inputs.evaluation is not None
        self._records: _Records = {}
        self._kept_back_baseline: Measurement | None = None
        self.baseline: Measurement
        self.confirmations: dict[str, Confirmation] = {}

    def measure_baseline(self, model: DetectionModel, known: Measurement | None) -> Measurement:
        """Measure the float model, unless an earlier session or run did. known: what this study has of it.

        Raises EvaluationError for figures of which nothing can be a share.
        """
        self.baseline = self._measured_baseline(model, known)
        cost(self._config.tuning.weights, self._criterion, self.baseline, self.baseline)
        loss(self._criterion, self.baseline, self.baseline)
        if self._confirmer is not None:
            # Now, so that images that can confirm nothing are told before the search.
            self._kept_back_baseline = self._on_kept_back(self._confirmer, model)
            loss(self._criterion, self._kept_back_baseline, self._kept_back_baseline)
        return self.baseline

    def _measured_baseline(self, model: DetectionModel, known: Measurement | None) -> Measurement:
        if not self._finds_matches:
            # Nobody knows what else a user's function depends on.
            return known or self._with_memory(model, measure_fully(self._evaluator, model))
        dependencies = self._dependencies(model.sha256)
        kept = self._cache.read_json("baseline", dependencies)
        records = self._read_records(dependencies)
        if records and (known is not None or kept is not None):
            self._records = records
            return self._with_memory(model, known or Measurement.from_json(kept))
        measured = measure_fully(self._evaluator, model, self._keep_baseline)
        measured = known or self._with_memory(model, measured)
        self._cache.write_json("baseline", dependencies, measured.to_json())
        self._write_records(dependencies, self._records)
        return measured

    def measure(self, graph: DetectionModel, foretell: Callable[[Outcome], None]) -> Measurement | Rejection:
        """Measure a graph in full, or until it is plain that it cannot meet the criterion.

        foretell: is told what will come of it, up to the last bits, as soon as that is known.
        """

        def certify(expected: Measurement) -> bool:
            # Memory is taken at the very end.
            if Objective.FOOTPRINT not in self._config.tuning.weights:
                foretell(self._outcome(expected))
            return passes(self._criterion, self.baseline, expected)

        kept: list[_Records] = []
        found = self._evaluator.evaluate(graph, certify, self._rejections(), kept.append)
        if isinstance(found, Rejection):
            return found
        if kept:
            self._write_records(self._dependencies(graph.sha256), kept[0])
        return self._with_memory(graph, found)

    def confirm(self, graph: DetectionModel) -> bool:
        """Whether a graph meets the criterion on the images that were kept from the search too; where there are any."""
        before = self._kept_back_baseline
        if self._confirmer is None or before is None:
            return True
        try:
            after = self._on_kept_back(self._confirmer, graph)
        except EvaluationError as error:
            _log.warning("a graph is not confirmed: %s", error)
            return False
        lost = loss(self._criterion, before, after)
        self.confirmations[graph.sha256] = Confirmation(
            after.images, before.accuracy, after.accuracy, lost, passes(self._criterion, before, after)
        )
        return self.confirmations[graph.sha256].passes

    def _on_kept_back(self, confirmer: Evaluator, graph: DetectionModel) -> Measurement:
        """Measure a graph on the images that were kept from the search, unless an earlier session or run did."""
        dependencies = self._dependencies(graph.sha256)
        kept = self._cache.read_json("confirmation", dependencies)
        if kept is not None:
            return Measurement.from_json(kept)
        measured = measure_fully(confirmer, graph)
        self._cache.write_json("confirmation", dependencies, measured.to_json())
        return measured

    def confirms(self, trial: CompletedTrial) -> bool:
        """Whether the graph of a trial was confirmed, where there are images for that."""
        found = self.confirmations.get(trial.graph_sha256)
        return self._confirmer is None or (found is not None and found.passes)

    def outcome(self, trial: Trial) -> Outcome:
        """How a trial went, in the terms of a search."""
        if isinstance(trial, CompletedTrial):
            return self._outcome(trial.measurement)
        if isinstance(trial, RejectedTrial):
            # The estimate may lie within the limit although the bound does not.
            return Outcome(trial.rejection.loss, max(trial.rejection.loss - self._criterion.limit, 1e-6), math.inf)
        return FAILED

    def _outcome(self, measured: Measurement) -> Outcome:
        lost = loss(self._criterion, self.baseline, measured)
        excess = lost - self._criterion.limit
        passed = passes(self._criterion, self.baseline, measured)
        spent = cost(self._config.tuning.weights, self._criterion, self.baseline, measured)
        return Outcome(lost, min(excess, 0.0) if passed else excess, spent)

    def loss_interval(self, graph_sha256: str) -> LossInterval | None:
        """Between which bounds a graph's loss would lie on other images; None where its matches were not kept.

        Of boxes and masks, the one that loses more.
        """
        found = self._read_records(self._dependencies(graph_sha256), always=True)
        intervals = [
            loss_interval(before, found[iou_type], self._criterion.kind)
            for iou_type, before in self._records.items()
            if iou_type in found
        ]
        return max(intervals, key=lambda interval: interval.loss, default=None)

    def _rejections(self) -> Mapping[IouType, EarlyRejection]:
        alpha = self._config.tuning.early_rejection_alpha
        if not self._records or alpha == 0 or not self._criterion.higher_is_better:
            return {}
        limit = LossLimit(self._criterion.kind, self._criterion.limit)
        # Boxes and masks share it: a plan that keeps the limit may be dropped for either.
        share = alpha / len(self._records)
        return {iou_type: EarlyRejection(records, limit, share) for iou_type, records in self._records.items()}

    def _keep_baseline(self, records: _Records) -> None:
        self._records = records

    def _read_records(self, dependencies: Sequence[str], *, always: bool = False) -> _Records:
        """Those of all that is compared, or none."""
        found = {
            iou_type: self._cache.read_arrays(_CACHED_AS[iou_type], dependencies, always=always)
            for iou_type in iou_types(self._config)
        }
        if any(arrays is None for arrays in found.values()):
            return {}
        return {one: MatchRecords.from_arrays(arrays) for one, arrays in found.items() if arrays is not None}

    def _write_records(self, dependencies: Sequence[str], records: _Records) -> None:
        for iou_type, of_type in records.items():
            self._cache.write_arrays(_CACHED_AS[iou_type], dependencies, of_type.to_arrays())

    def _with_memory(self, graph: DetectionModel, measured: Measurement) -> Measurement:
        if Objective.FOOTPRINT not in self._config.tuning.weights or measured.memory_bytes:
            return measured
        return replace(measured, memory_bytes=measure_footprint(graph, self.image, *latency_threads(self._config)))

    @property
    def records_key(self) -> list[str]:
        """The kind of the cache that match records are in, then what they are kept under after a graph's hash."""
        tuning = self._config.tuning
        return [
            _CACHED_AS[iou_types(self._config)[0]],
            self._identity,
            ", ".join(iou_types(self._config)),
            f"{tuning.confirm:g}",
            str(tuning.random_seed),
            *(f"{name} {value}" for name, value in self.environment.items()),
        ]

    def _dependencies(self, graph_sha256: str) -> list[str]:
        return [graph_sha256, *self.records_key[1:]]


def _split(
    dataset: DetectionDataset | None, share: float, seed: int
) -> tuple[DetectionDataset | None, DetectionDataset | None]:
    """A data set without a random share of its images, and that share; None without one.

    Raises ConfigError for a set of fewer than two images.
    """
    if dataset is None or not share:
        return dataset, None
    if len(dataset) < 2:
        raise ConfigError(f"tuning.confirm: got {share:g} of {len(dataset)} image; expected at least 2 images")
    order = np.random.default_rng(seed).permutation(len(dataset))
    count = min(max(1, round(share * len(dataset))), len(dataset) - 1)
    parts = (sorted(order[count:].tolist()), sorted(order[:count].tolist()))
    searched, kept_back = (replace(dataset, entries=tuple(dataset.entries[i] for i in part)) for part in parts)
    return searched, kept_back


def make_evaluator(
    config: TuningConfig,
    inputs: Inputs,
    image: NDArray[Any],
    progress: Progress,
    *,
    workers: Workers,
    dataset: DetectionDataset | None = None,
) -> Evaluator:
    """What measures graphs: the user's eval_func, or COCO mAP on the evaluation set.

    image: to take latency on. workers: run the graphs. dataset: in the place of the whole evaluation set.
    """
    if inputs.eval_func is not None:
        return FunctionEvaluator(inputs.eval_func, image, workers)
    images = inputs.evaluation if dataset is None else dataset
    if images is None:
        raise ValueError("inputs have neither an evaluation set nor an eval_func")
    return CocoEvaluator(images, progress, iou_types=iou_types(config), workers=workers)


def iou_types(config: TuningConfig) -> tuple[IouType, ...]:
    """What the criterion compares: boxes, masks, or both."""
    asked = config.evaluation.accuracy.iou_type
    return tuple(IouType) if asked == "both" else (IouType(asked),)
