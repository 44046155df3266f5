from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
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
from tuner.finals import choose_fastest, of_search, other_plans, still_in_float
from tuner.model.detection_model import DetectionModel, ModelFormat
from tuner.precision import BF16, FP32, INT8, OpPrecision, PrecisionPlan
from tuner.quantization.cpu import CpuFeatures
from tuner.trial import CompletedTrial, FailedTrial, Measurement

OPS = ("a", "b")
WITH_BFLOAT16 = CpuFeatures(frozenset({"avx512_vnni", "avx512_bf16"}))
WITHOUT = CpuFeatures(frozenset({"avx512_vnni"}))


def config(**quantization: Any) -> TuningConfig:
    dataloader = {"dataset": {"COCORaw": {"root": "instances.json"}}}
    settings = {
        "model": {"name": "tiny", "framework": "tensorflow"},
        "quantization": quantization,
        "evaluation": {"accuracy": {"metric": {"COCOmAP": {}}, "dataloader": dataloader}},
    }
    return parse_config(settings, "test")


def plan(a: OpPrecision, b: OpPrecision) -> PrecisionPlan:
    return PrecisionPlan({"a": a, "b": b})


NO_BF16 = {"activation": {"dtype": ["int8", "fp32"]}}


@pytest.mark.parametrize(
    ("quantization", "best", "features", "plans"),
    [
        ({}, plan(INT8, INT8), WITH_BFLOAT16, {"bf16": plan(BF16, BF16), "float": plan(FP32, FP32)}),
        (
            {},
            plan(INT8, FP32),
            WITH_BFLOAT16,
            {"bf16": plan(BF16, BF16), "int8 and bf16": plan(INT8, BF16), "float": plan(FP32, FP32)},
        ),
        ({}, plan(INT8, INT8), WITHOUT, {"float": plan(FP32, FP32)}),
        ({}, plan(INT8, INT8), None, {"float": plan(FP32, FP32)}),
        ({"model_wise": NO_BF16}, plan(INT8, INT8), WITH_BFLOAT16, {"float": plan(FP32, FP32)}),
        (
            {"op_wise": {"a": {"activation": {"dtype": ["int8"]}}}},
            plan(INT8, INT8),
            WITH_BFLOAT16,
            {"bf16": plan(INT8, BF16), "float": plan(INT8, FP32)},
        ),
        ({"int8_only": True}, plan(INT8, INT8), WITH_BFLOAT16, {}),
        ({"engine": "inc"}, plan(INT8, INT8), WITH_BFLOAT16, {}),
    ],
)
def test_other_plans(
    quantization: dict[str, Any],
    best: PrecisionPlan,
    features: CpuFeatures | None,
    plans: Mapping[str, PrecisionPlan],
) -> None:
    found = other_plans(config(**quantization), OPS, best, features)
    assert {name: other for name, other in found.items() if other != best} == plans


def model(name: str) -> DetectionModel:
    graph_def = tf.compat.v1.GraphDef()
    graph_def.node.add(name=name, op="NoOp")
    return DetectionModel(graph_def, ("x:0",), (f"{name}:0",), Path(f"{name}.pb"), ModelFormat.FROZEN_GRAPH)


def measured(accuracy: float, latency_ms: float = 10.0) -> Measurement:
    return Measurement(accuracy, 5, latency_ms, latency_ms, 100, 1.0)


def trial(number: int, requested: PrecisionPlan, accuracy: float) -> CompletedTrial:
    return CompletedTrial(number, 4, requested, requested, model(str(number)).sha256, measured(accuracy), 0.0)


PLANS = {"bf16": plan(BF16, BF16), "float": plan(FP32, FP32)}
NAMES = {plan_: name for name, plan_ in PLANS.items()}


class Running(nullcontext[Any]):
    """Runs any graph but the one that is told not to."""

    def __init__(self, graph: DetectionModel) -> None:
        super().__init__(self)
        self.name = graph.graph_def.node[0].name

    def run(self, image: Any) -> None:
        if self.name == "broken":
            raise ModelError("it does not run")


@dataclass
class Runner:
    """Makes a graph called after its plan, and finds the accuracies that it is told to find."""

    accuracies: Mapping[str, float | None]
    ran: list[str] = field(default_factory=list)

    def graph(self, best: CompletedTrial) -> DetectionModel:
        return model("int8")

    def quantize(self, wanted: PrecisionPlan, images: int) -> DetectionModel:
        return model(NAMES[wanted])

    def run(self, wanted: PrecisionPlan, images: int) -> CompletedTrial | FailedTrial:
        name = NAMES[wanted]
        self.ran.append(name)
        accuracy = self.accuracies[name]
        if accuracy is None:
            return FailedTrial(9, images, wanted, "it does not run")
        return trial(9, wanted, accuracy)


@pytest.mark.parametrize(
    ("accuracy", "latencies", "accuracies", "handed_over", "ran"),
    [
        # Baseline 0.5, limit 1 %. Latencies: of the float model, and of the graphs for int8, bf16 and float.
        (0.5, (9, 5, 6, 8), {}, "int8", []),
        (0.5, (9, 5, 4.9, 8), {}, "int8", []),  # 2 % less is noise
        (0.5, (9, 5, 4, 8), {"bf16": 0.499}, "bf16", ["bf16"]),
        (0.5, (9, 5, 4, 8), {"bf16": 0.4}, "int8", ["bf16"]),
        (0.5, (9, 5, 4, 8), {"bf16": None}, "int8", ["bf16"]),
        (0.5, (9, 12, 13, 8), {"float": 0.5}, "float", ["float"]),
        (0.5, (9, 12, 7, 8), {"bf16": 0.4, "float": 0.5}, "float", ["bf16", "float"]),
        (0.3, (9, 5, 7, 4), {"bf16": 0.5}, "bf16", ["bf16"]),  # better slow than too much lost
        (0.3, (9, 5, 7, 4), {"bf16": 0.4}, "bf16", ["bf16"]),  # and to lose less; float is what there was before
        (0.3, (9, 5, 7, 4), {"bf16": 0.2}, "int8", ["bf16"]),
    ],
)
def test_choose_fastest(
    *,
    accuracy: float,
    latencies: Sequence[float],
    accuracies: Mapping[str, float | None],
    handed_over: str,
    ran: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timed = dict(zip(("given", "int8", "bf16", "float"), latencies, strict=True))

    def in_turns(config: Any, graphs: Sequence[DetectionModel], *_: Any) -> list[LatencyFigures]:
        return [
            LatencyFigures(timed[name], timed[name] + 1, timed[name], 1000 / timed[name])
            for name in (graph.graph_def.node[0].name for graph in graphs)
        ]

    monkeypatch.setattr(finals, "timed_in_turns", in_turns)
    monkeypatch.setattr(finals, "ModelRunner", Running)
    runner: Any = Runner(accuracies)
    final = choose_fastest(
        config(),
        PLANS,
        runner,
        models=[model("given")],
        image=np.zeros((1, 2, 2, 3), np.uint8),
        baseline=measured(0.5),
        best=trial(1, plan(INT8, INT8), accuracy),
    )
    assert final.graph.graph_def.node[0].name == handed_over
    assert runner.ran == ran
    assert final.baseline.latency_ms == latencies[0]
    assert final.best.measurement.latency_ms == timed[handed_over]
    assert final.best.measurement.latency_p90_ms == timed[handed_over] + 1
    assert (final.note == "") == (handed_over == "int8")
    assert final.rewritten_ms is None


def test_graphs_that_are_the_same_or_do_not_run_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """One plan makes the best graph again, one cannot be lowered and one does not run: the best stays."""
    best = trial(1, plan(INT8, INT8), 0.5)
    others = {"bf16": plan(BF16, BF16), "int8 and bf16": plan(INT8, BF16), "float": plan(FP32, FP32)}

    class Maker(Runner):
        def quantize(self, wanted: PrecisionPlan, images: int) -> DetectionModel:
            if wanted == others["bf16"]:
                raise QuantizationError("no")
            return model("1") if wanted == others["float"] else model("broken")

    compared: list[str] = []

    def in_turns(config: Any, graphs: Sequence[DetectionModel], *_: Any) -> list[LatencyFigures]:
        compared.extend(graph.graph_def.node[0].name for graph in graphs)
        return [LatencyFigures(5, 6, 5, 200)] * len(graphs)

    monkeypatch.setattr(finals, "timed_in_turns", in_turns)
    monkeypatch.setattr(finals, "ModelRunner", Running)
    maker: Any = Maker({})
    image = np.zeros((1, 2, 2, 3), np.uint8)
    final = choose_fastest(
        config(), others, maker, models=[model("given")], image=image, baseline=measured(0.5), best=best
    )
    assert compared == ["given", "int8"]
    assert final.best.number == best.number


def test_rules_about_other_ops_of_the_model_are_no_fault() -> None:
    rules = {"image_tensor": {"activation": {"dtype": ["fp32"]}}}
    every_op = ["image_tensor", *OPS]
    found = other_plans(config(op_wise=rules), every_op, plan(INT8, INT8), WITHOUT)
    assert found == {"float": plan(FP32, FP32)}


def test_of_search() -> None:
    choices = {"a": (INT8, FP32), "b": (INT8, FP32)}
    searched = [trial(0, plan(INT8, INT8), 0.5), trial(1, plan(FP32, INT8), 0.5)]
    failed = FailedTrial(2, 4, plan(INT8, FP32), "no")
    finals_trials = [trial(3, plan(BF16, BF16), 0.5), trial(4, plan(FP32, FP32), 0.5)]
    assert of_search([*searched, failed, *finals_trials], choices) == [*searched, failed]
    in_bf16 = {"a": (BF16, FP32), "b": (BF16, FP32)}
    assert of_search(finals_trials, in_bf16) == finals_trials


def test_still_in_float() -> None:
    reasons = {"a": "alone", "b": "alone"}
    assert still_in_float(reasons, trial(1, plan(FP32, BF16), 0.5)) == {"a": "alone"}
    assert still_in_float(reasons, None) == reasons
