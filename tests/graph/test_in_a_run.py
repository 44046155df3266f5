"""A whole run: the float model is measured as it is, the trials on the rewritten graph, and the report says so."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.graph.conftest import Nms
from tuner.config import parse_config
from tuner.job import TuningJob
from tuner.model.detection_model import DetectionModel
from tuner.pipeline import tune


@pytest.mark.parametrize("optimize", [True, False])
def test_a_run(detector: Callable[..., DetectionModel], tmp_path: Path, optimize: bool) -> None:
    model = tmp_path / "float.pb"
    model.write_bytes(detector(Nms()).graph_def.SerializeToString())
    settings = {
        "model": {"name": "made"},
        "quantization": {"calibration": {"sampling_size": 3}, "optimize_postprocess": optimize},
        "tuning": {"exit_policy": {"timeout": 0, "max_trials": 2}},
        "evaluation": {"performance": {"warmup": 1, "iteration": 3}},
    }
    rng = np.random.default_rng(8)
    measured: list[set[str]] = []

    def accuracy(graph_def: Any) -> float:
        measured.append({node.op for node in graph_def.node})
        return 1.0

    job = TuningJob(
        config=parse_config(settings, "test"),
        input_model=model,
        output_model=tmp_path / "int8.pb",
        workspace=tmp_path / "work",
        eval_func=accuracy,
        q_dataloader=[rng.integers(0, 256, (1, 40, 60, 3), np.uint8) for _ in range(3)],
    )
    result = tune(job)
    baseline, *trials = measured
    assert ("NonMaxSuppressionV5" in baseline, "CombinedNonMaxSuppression" in baseline) == (True, False)
    assert trials
    for trial in trials:
        assert ("NonMaxSuppressionV5" in trial, "CombinedNonMaxSuppression" in trial) == (not optimize, optimize)
    written = json.loads((job.workspace / "result.json").read_text())["rewritten"]
    assert len(written["notes"]) == optimize
    assert (written["float_latency_ms"] is not None) == optimize
    assert written == {"notes": list(result.rewritten), "float_latency_ms": result.rewritten_ms}
