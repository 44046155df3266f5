"""From a proposal to a finished trial: make the graph, read back what it holds, measure it, record it."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Protocol

from tuner.engine import Engine, as_failure
from tuner.errors import EvaluationError, ModelError, QuantizationError
from tuner.files import write_bytes
from tuner.model.detection_model import DetectionModel
from tuner.model.frozen_graph import read_graph_def
from tuner.study import MOST_DEATHS, Study
from tuner.trial import CompletedTrial, FailedTrial, Measurement, Proposal, RejectedTrial, Rejection, Trial

_log = logging.getLogger(__name__)


class Watcher(Protocol):
    """Is told of every trial, on its way and when it is recorded. stop_reason: why no more are wanted, or ""."""

    stop_reason: str

    def searching(self, earlier_s: float) -> AbstractContextManager[None]:
        """A search begins, of which so many seconds belong to earlier sessions; leaving the context ends it."""

    def began(self, number: int, proposal: Proposal) -> None:
        """A plan is tried, under this number of the record."""

    def ended(self, trial: Trial) -> None:
        """A trial is recorded."""


@dataclass
class TrialRunner:
    """Runs the trials of one study.

    model: the float one. engine: makes graphs and reads back what they hold.
    measure: a graph in full, or until it is plain that it cannot meet the criterion. watcher: is told of each trial.
    graphs: a folder to keep each measured graph in, for an engine that does not make the same graph twice.
    quantize_s, evaluate_s: wall time spent on either in this session.
    """

    model: DetectionModel
    engine: Engine
    measure: Callable[[DetectionModel], Measurement | Rejection]
    study: Study
    watcher: Watcher
    graphs: Path | None = None
    quantize_s: float = 0.0
    evaluate_s: float = 0.0
    _latest: tuple[str, DetectionModel] | None = field(default=None, repr=False)

    def run(self, proposal: Proposal) -> Trial:
        """Try one plan. A plan that cannot be lowered, run or measured becomes a FailedTrial, with its cause.

        So does one with which earlier sessions died. What is no plan's fault (a full disk, a damaged image, Ctrl-C)
        goes on to the caller, and the plan is free to be tried again.
        """
        is_deadly = proposal in self.study.deadly
        number = self.study.start(proposal)
        trial: Trial
        try:
            self.watcher.began(number, proposal)
            if is_deadly:
                raise QuantizationError(f"the process died {MOST_DEATHS} times while this plan was tried")
            with as_failure():
                trial = self._measured(number, proposal)
        except (QuantizationError, EvaluationError, ModelError) as error:
            _log.warning("a plan failed: %s", error)
            trial = FailedTrial(number, proposal, str(error))
        except BaseException:
            self.study.abandon(number)
            raise
        self.study.record(trial)
        self.watcher.ended(trial)
        return trial

    def graph(self, trial: CompletedTrial) -> DetectionModel:
        """The graph of a trial, made anew where it is not the latest one.

        Raises QuantizationError when it is not, bit for bit, the graph that was measured.
        """
        if self._latest is not None and self._latest[0] == trial.graph_sha256:
            return self._latest[1]
        if self.graphs is not None:
            return self.model.with_graph(read_graph_def(self.graphs / f"{trial.graph_sha256}.pb"))
        graph = self.engine.quantize(trial.proposal)
        if graph.sha256 != trial.graph_sha256:
            raise QuantizationError(
                f"trial {trial.number}: the graph made anew is {graph.sha256[:12]}, "
                f"the one that was measured is {trial.graph_sha256[:12]}"
            )
        return graph

    def _measured(self, number: int, proposal: Proposal) -> CompletedTrial | RejectedTrial:
        started = perf_counter()
        graph = self.engine.quantize(proposal)
        applied = self.engine.read_plan(graph)
        quantize_s = perf_counter() - started
        self.quantize_s += quantize_s
        self._latest = (graph.sha256, graph)
        if self.graphs is not None:
            write_bytes(self.graphs / f"{graph.sha256}.pb", graph.graph_def.SerializeToString(deterministic=True))
        started = perf_counter()
        found = self._known(graph.sha256) or self.measure(graph)
        self.evaluate_s += perf_counter() - started
        if isinstance(found, Rejection):
            return RejectedTrial(number, proposal, applied, graph.sha256, found, quantize_s)
        return CompletedTrial(number, proposal, applied, graph.sha256, found, quantize_s)

    def _known(self, graph_sha256: str) -> Measurement | Rejection | None:
        """What was found of this very graph when another plan made it."""
        for trial in self.study.trials:
            if isinstance(trial, CompletedTrial) and trial.graph_sha256 == graph_sha256:
                return trial.measurement
            if isinstance(trial, RejectedTrial) and trial.graph_sha256 == graph_sha256:
                return trial.rejection
        return None
