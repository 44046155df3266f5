"""From a plan to a finished trial: make the graph, read back what it holds, measure it, record it."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

from tuner.errors import EvaluationError, ModelError, QuantizationError
from tuner.evaluation.evaluator import Evaluator
from tuner.files import write_bytes
from tuner.model.detection_model import DetectionModel
from tuner.model.frozen_graph import read_graph_def
from tuner.precision import PrecisionPlan
from tuner.study import Study
from tuner.trial import CompletedTrial, FailedTrial, Trial

_log = logging.getLogger(__name__)


@dataclass
class TrialRunner:
    """Runs the trials of one study.

    model: the float one. quantize: plan and number of calibration images -> int8 model.
    read_plan: int8 model -> the plan it holds.
    certify: given an accuracy, whether it must come from the authority on the metric.
    graphs: a folder to keep each measured graph in, for an engine that does not make the same graph twice.
    quantize_s, evaluate_s: wall time spent on either in this session.
    """

    model: DetectionModel
    quantize: Callable[[PrecisionPlan, int], DetectionModel]
    read_plan: Callable[[DetectionModel], PrecisionPlan]
    evaluator: Evaluator
    certify: Callable[[float], bool]
    study: Study
    graphs: Path | None = None
    quantize_s: float = 0.0
    evaluate_s: float = 0.0
    _latest: tuple[str, DetectionModel] | None = field(default=None, repr=False)

    def run(self, plan: PrecisionPlan, calibration_images: int) -> Trial:
        """Try one plan. A plan that cannot be lowered, run or measured becomes a FailedTrial, with its cause."""
        number = self.study.start(plan, calibration_images)
        trial: Trial
        try:
            trial = self._measured(number, plan, calibration_images)
        except (QuantizationError, EvaluationError, ModelError) as error:
            _log.warning("a plan failed: %s", error)
            trial = FailedTrial(number, calibration_images, plan, str(error))
        self.study.record(trial)
        return trial

    def graph(self, trial: CompletedTrial) -> DetectionModel:
        """The graph of a trial, made anew where it is not the latest one.

        Raises QuantizationError when it is not, bit for bit, the graph that was measured.
        """
        if self._latest is not None and self._latest[0] == trial.graph_sha256:
            return self._latest[1]
        if self.graphs is not None:
            return self.model.with_graph(read_graph_def(self.graphs / f"{trial.graph_sha256}.pb"))
        graph = self.quantize(trial.requested, trial.calibration_images)
        if graph.sha256 != trial.graph_sha256:
            raise QuantizationError(
                f"trial {trial.number}: the graph made anew is {graph.sha256[:12]}, "
                f"the one that was measured is {trial.graph_sha256[:12]}"
            )
        return graph

    def _measured(self, number: int, plan: PrecisionPlan, calibration_images: int) -> CompletedTrial:
        started = perf_counter()
        graph = self.quantize(plan, calibration_images)
        applied = self.read_plan(graph)
        quantize_s = perf_counter() - started
        self.quantize_s += quantize_s
        self._latest = (graph.sha256, graph)
        if self.graphs is not None:
            write_bytes(self.graphs / f"{graph.sha256}.pb", graph.graph_def.SerializeToString(deterministic=True))
        started = perf_counter()
        measurement = next(
            (
                trial.measurement
                for trial in self.study.trials
                if isinstance(trial, CompletedTrial) and trial.graph_sha256 == graph.sha256
            ),
            None,
        ) or self.evaluator.evaluate(graph, self.certify)
        self.evaluate_s += perf_counter() - started
        return CompletedTrial(number, calibration_images, plan, applied, graph.sha256, measurement, quantize_s)
