from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tuner import finals
from tuner.config import TuningConfig
from tuner.config.loading import parse_config
from tuner.errors import ModelError, QuantizationError
from tuner.evaluation.latency import LatencyFigures
from tuner.evaluation.workers import ThisProcess
from tuner.finals import Final, choose_final, untried_proposals
from tuner.model.detection_model import DetectionModel, ModelFormat
from tuner.precision import BF16, FP32, INT8, OpPrecision, PrecisionPlan
from tuner.search.space import SearchSpace
from tuner.trial import CompletedTrial, FailedTrial, Measurement, Proposal, RejectedTrial, Rejection, Trial


def config(objective: str = "performance", **quantization: Any) -> TuningConfig:
    dataloader = {"dataset": {"COCORaw": {"root": "instances.json"}}}
    settings = {
        "model": {"name": "tiny", "framework": "tensorflow"},
        "quantization": quantization,
        "evaluation": {"accuracy": {"metric": {"COCOmAP": {}}, "dataloader": dataloader}},
        "tuning": {"objective": objective},
    }
    return parse_config(settings, "test")


def plan(a: OpPrecision, b: OpPrecision) -> PrecisionPlan:
    return PrecisionPlan({"a": a, "b": b})


PLANS = {
    "int8": plan(INT8, INT8),
    "bf16": plan(BF16, BF16),
    "mixed": plan(INT8, BF16),
    "float": plan(FP32, FP32),
}


def proposal(name: str) -> Proposal:
    return Proposal(PLANS[name], 4, idea=name)


@pytest.mark.parametrize(
    ("quantization", "allowed", "tried", "expected"),
    [
        ({}, (INT8, BF16, FP32), ["int8"], ["bf16", "float"]),
        ({}, (INT8, BF16, FP32), ["int8", "bf16"], ["float"]),
        ({}, (INT8, FP32), ["int8"], ["float"]),
        ({}, (INT8,), ["int8"], []),
        ({"int8_only": True}, (INT8, FP32), [], []),
        ({"engine": "inc"}, (INT8, FP32), [], []),
    ],
)
def test_untried_proposals(
    quantization: dict[str, Any], allowed: tuple[OpPrecision, ...], tried: Sequence[str], expected: Sequence[str]
) -> None:
    space = SearchSpace({"a": allowed, "b": allowed}, (2, 4))
    trials: list[Trial] = [FailedTrial(number, proposal(name), "no") for number, name in enumerate(tried)]
    found = untried_proposals(config(**quantization), space, trials)
    assert [(one.idea, one.plan, one.calibration_images) for one in found] == [
        (name, PLANS[name], 4) for name in expected
    ]


def model(name: str) -> DetectionModel:
    graph_def = tf.compat.v1.GraphDef()
    graph_def.node.add(name=name, op="NoOp")
    return DetectionModel(graph_def, ("x:0",), (f"{name}:0",), Path(f"{name}.pb"), ModelFormat.FROZEN_GRAPH)


def trial(name: str, accuracy: float) -> CompletedTrial:
    measured = Measurement(accuracy, 5, 10.0, 10.0, 100, 1.0)
    return CompletedTrial([*PLANS].index(name), proposal(name), PLANS[name], model(name).sha256, measured, 0.0)


class Running(nullcontext[Any]):
    """Runs any graph but the one that is called broken."""

    def __init__(self, graph: DetectionModel) -> None:
        super().__init__(self)
        self.name = graph.graph_def.node[0].name

    def run(self, image: Any) -> None:
        if self.name == "broken":
            raise ModelError("it does not run")


@dataclass
class Runner:
    """Makes a graph called after its plan, and finds the accuracies that it is told; None is a failure.

    It is its own engine, and its own meter, which confirms all graphs but those in `unlucky`.
    """

    accuracies: Mapping[str, float | str | None] = field(default_factory=dict)
    unlucky: Sequence[str] = ()
    ran: list[str] = field(default_factory=list)
    image: Any = field(default_factory=lambda: np.zeros((1, 2, 2, 3), np.uint8))
    baseline: Measurement = field(default_factory=lambda: Measurement(0.5, 5, 9.0, 9.0, 400, 1.0))

    workers: ThisProcess = field(default_factory=ThisProcess)

    @property
    def engine(self) -> "Runner":
        return self

    def graph(self, best: CompletedTrial) -> DetectionModel:
        return model(best.proposal.idea)

    def quantize(self, wanted: Proposal) -> DetectionModel:
        return model(wanted.idea)

    def run(self, wanted: Proposal) -> Trial:
        self.ran.append(wanted.idea)
        accuracy = self.accuracies[wanted.idea]
        if accuracy is None:
            return FailedTrial(9, wanted, "it does not run")
        if isinstance(accuracy, str):
            return RejectedTrial(9, wanted, wanted.plan, "", Rejection(3, 1, 0.5, 0.1, 0.005), 0.0)
        return trial(wanted.idea, accuracy)

    def confirm(self, graph: DetectionModel) -> bool:
        return graph.graph_def.node[0].name not in self.unlucky


def choose(
    runner: Runner,
    leading: Sequence[CompletedTrial],
    untried: Sequence[str],
    latencies: Mapping[str, float],
    monkeypatch: pytest.MonkeyPatch,
    *,
    settings: TuningConfig | None = None,
) -> Final:
    def in_turns(_: Any, graphs: Sequence[DetectionModel], *__: Any) -> list[LatencyFigures]:
        names = [graph.graph_def.node[0].name for graph in graphs]
        times = [latencies[name] for name in names]
        return [LatencyFigures(ms, ms + 1, p99_ms=ms + 2, min_ms=ms, mean_ms=ms, images_per_s=100) for ms in times]

    monkeypatch.setattr(finals, "timed_in_turns", in_turns)
    monkeypatch.setattr(finals, "ModelRunner", Running)
    both: Any = runner
    proposals = [proposal(name) for name in untried]
    return choose_final(settings or config(), both, both, models=[model("given")], leading=leading, untried=proposals)


@pytest.mark.parametrize(
    ("accuracy", "latencies", "accuracies", "handed_over", "ran"),
    [
        # Baseline 0.5, limit 1 %. Latencies: of the float model, and of the graphs for int8, bf16 and float.
        (0.5, (9, 5, 6, 8), {}, "int8", []),
        (0.5, (9, 5, 4.9, 8), {}, "int8", []),  # 2 % less is noise
        (0.5, (9, 5, 4, 8), {"bf16": 0.499}, "bf16", ["bf16"]),
        (0.5, (9, 5, 4, 8), {"bf16": 0.4}, "int8", ["bf16"]),
        (0.5, (9, 5, 4, 8), {"bf16": None}, "int8", ["bf16"]),
        (0.5, (9, 5, 4, 8), {"bf16": "rejected"}, "int8", ["bf16"]),
        (0.5, (9, 12, 13, 8), {"float": 0.5}, "float", ["float"]),
        (0.5, (9, 12, 7, 8), {"bf16": 0.4, "float": 0.5}, "float", ["bf16", "float"]),
        (0.3, (9, 5, 7, 4), {"bf16": 0.5}, "bf16", ["bf16"]),  # better slow than too much lost
        (0.3, (9, 5, 7, 4), {"bf16": 0.4}, "bf16", ["bf16"]),  # and to lose less; float is what there was before
        (0.3, (9, 5, 7, 4), {"bf16": 0.2}, "int8", ["bf16"]),
    ],
)
def test_choose_final(
    *,
    accuracy: float,
    latencies: Sequence[float],
    accuracies: Mapping[str, float | str | None],
    handed_over: str,
    ran: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timed = dict(zip(("given", "int8", "bf16", "float"), latencies, strict=True))
    runner = Runner(accuracies)
    final = choose(runner, [trial("int8", accuracy)], ["bf16", "float"], timed, monkeypatch)
    assert final.graph.graph_def.node[0].name == handed_over
    assert runner.ran == ran
    assert final.baseline.latency_ms == latencies[0]
    assert final.best.measurement.latency_ms == timed[handed_over]
    assert final.best.measurement.latency_p90_ms == timed[handed_over] + 1
    assert (final.note == "") == (handed_over == "int8")
    assert final.rewritten_ms is None


@pytest.mark.parametrize(
    ("latencies", "unlucky", "handed_over"),
    [
        ((9, 5, 6), [], "int8"),
        ((9, 5, 4), [], "bf16"),  # both passed: the faster one, as timed in turns
        ((9, 5, 6), ["int8"], "bf16"),
        ((9, 5, 4), ["bf16"], "int8"),
        ((9, 5, 4), ["bf16", "int8"], "int8"),  # none is confirmed: the best, which the run will not accept
    ],
)
def test_of_several_that_passed_the_fastest_that_is_confirmed(
    latencies: Sequence[float], unlucky: Sequence[str], handed_over: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = dict(zip(("given", "int8", "bf16"), latencies, strict=True))
    leading = [trial("int8", 0.5), trial("bf16", 0.5)]
    final = choose(Runner(unlucky=unlucky), leading, [], timed, monkeypatch)
    assert final.best.proposal.idea == handed_over


def test_the_objective_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = {"given": 9.0, "int8": 5.0, "bf16": 1.0}
    small, large = trial("int8", 0.5), trial("bf16", 0.5)
    final = choose(Runner(), [small, large], [], timed, monkeypatch, settings=config("accuracy"))
    assert final.best.proposal.idea == "int8"  # the first of equals, however fast the other one is
    better = replace(large, measurement=replace(large.measurement, accuracy=0.56))
    assert (
        choose(Runner(), [small, better], [], timed, monkeypatch, settings=config("accuracy")).best.proposal.idea
        == "bf16"
    )


def test_graphs_that_are_the_same_or_do_not_run_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """One plan makes the best graph again, one cannot be lowered and one does not run: the best stays."""

    class Maker(Runner):
        def quantize(self, wanted: Proposal) -> DetectionModel:
            if wanted.idea == "bf16":
                raise QuantizationError("no")
            return model("int8" if wanted.idea == "float" else "broken")

    # Only these two have a latency: to time another graph would be an error.
    timed = {"given": 9.0, "int8": 5.0}
    final = choose(Maker(), [trial("int8", 0.5)], ["bf16", "mixed", "float"], timed, monkeypatch)
    assert final.best.number == trial("int8", 0.5).number
