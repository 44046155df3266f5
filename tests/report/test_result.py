"""result.json against a literal, and what it says where there is nothing to say."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tuner.criterion import Status
from tuner.precision import FP32, INT8, PrecisionPlan
from tuner.report.result import TuningResult, result_json

Make = Callable[..., TuningResult]

FIGURES = (
    *("mAP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large"),
)


def test_the_whole_of_it(result: Make) -> None:
    assert result_json(result()) == {
        "schema": 1,
        "status": "accepted",
        "reason": "the first plan that meets the criterion was found",
        "model": {
            "path": "models/float.pb",
            "sha256": "cd" * 32,
            "inputs": ["image_tensor:0"],
            "outputs": ["boxes:0", "scores:0"],
        },
        "dataset": {"sha256": "ef" * 32, "images": 400, "labels": "annotations"},
        "criterion": {"kind": "relative", "limit": 0.01, "higher_is_better": True},
        "baseline": {
            "accuracy": 0.5,
            "latency_ms": 8.0,
            "latency_p90_ms": 9.0,
            "size_bytes": 4_000_000,
            "images": 400,
            "metrics": {name: 0.5 + index / 100 for index, name in enumerate(FIGURES)},
        },
        "best": {
            "accuracy": 0.498,
            "relative_loss": 0.004,
            "loss_interval_95": [-0.01, 0.02],
            "confirmation": None,
            "latency_ms": 4.0,
            "latency_p90_ms": 6.0,
            "size_bytes": 1_000_000,
            "images": 400,
            "metrics": {name: 0.498 + index / 100 for index, name in enumerate(FIGURES)},
            "ops": {"int8": 1, "bf16": 0, "fp32": 2},
            "plan_sha256": PrecisionPlan({"a": INT8, "b": INT8, "c": FP32}).sha256,
            "graph_sha256": "ab" * 32,
            "trial": 1,
            "output_model": "out/int8.pb",
        },
        "trials": 3,
        "full_evaluations": 1,
        "rejected_early": 1,
        "images_evaluated": 500,
        "calibrations": 1,
        "seconds": {
            "total": 20.0,
            "load": 1.0,
            "calibrate": 2.0,
            "baseline": 5.0,
            "sensitivity": 3.0,
            "timing": 0.5,
            "quantize": 1.5,
            "evaluate": 4.0,
            "accepted": 9.0,
        },
        "failed_trials": [{"number": 0, "cause": "conv b: no kernel"}],
        "pareto_front": [{"trial": 1, "idea": "int8", "accuracy": 0.498, "latency_ms": 4.0}],
        "refused_ops": {"d": "its weights are not a constant", "e": "its weights are not a constant", "f": "grouped"},
        "rewritten": {"notes": ["suppression batched"], "float_latency_ms": 6.0},
    }


def test_it_is_json_that_reads_back_as_it_was(result: Make) -> None:
    table = result_json(result())
    assert json.loads(json.dumps(table, allow_nan=False)) == table


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_json_lacks_become_null(result: Make, number: float) -> None:
    run = result()
    table = result_json(replace(run, baseline=replace(run.baseline, accuracy=number, metrics={"mAP": number})))
    assert (table["baseline"]["accuracy"], table["baseline"]["metrics"]) == (None, {"mAP": None})
    json.dumps(table, allow_nan=False)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"status": Status.BEST_EFFORT}, {"status": "best_effort"}),
        ({"status": Status.INTERRUPTED}, {"status": "interrupted"}),
        (
            {"status": Status.FAILED, "best": None, "relative_loss": None, "trials": ()},
            {"status": "failed", "best": None, "trials": 0, "full_evaluations": 0, "images_evaluated": 0},
        ),
        ({"refused": {}}, {"refused_ops": {}}),
    ],
)
def test_other_endings(result: Make, fields: dict[str, Any], expected: dict[str, Any]) -> None:
    table = result_json(result(**fields))
    assert {key: table[key] for key in expected} == expected


def test_paths_are_text(result: Make) -> None:
    assert result_json(result(output_model=Path("a b/ä")))["best"]["output_model"] == "a b/ä"
