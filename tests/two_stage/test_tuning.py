"""A whole run without annotations: what the float detector finds is the truth."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.two_stage.conftest import Small, pictures
from tests.two_stage.network import DETECTIONS, MASK_SIDE
from tuner.config import parse_config
from tuner.criterion import Status
from tuner.job import TuningJob
from tuner.model.loading import load_model
from tuner.model.runner import ModelRunner
from tuner.pipeline import tune
from tuner.quantization.lowering.kernels import KERNEL_OPS


@pytest.mark.parametrize("small", ["masks"], indirect=True)
def test_tuned_by_its_own_detections(small: Small, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number, picture in enumerate(pictures(2, seed=5)):
        (images / f"{number}.png").write_bytes(tf.io.encode_png(picture[0]).numpy())
    dataloader = {"dataset": {"COCORaw": {"root": str(images)}}}
    settings: dict[str, Any] = {
        "model": {"name": "small", "framework": "tensorflow"},
        # Which of such small graphs is the fastest is chance.
        "quantization": {"int8_only": True, "calibration": {"sampling_size": 2, "dataloader": dataloader}},
        "evaluation": {
            "accuracy": {"metric": {"COCOmAP": {"iouType": "both"}}, "labels": "model", "dataloader": dataloader},
            "performance": {"warmup": 1, "iteration": 2},
        },
        # Weights are random, and so is what a little rounding makes of boxes.
        "tuning": {"accuracy_criterion": {"relative": 0.99}, "exit_policy": {"max_trials": 1}},
    }
    output, workspace = tmp_path / "int8.pb", tmp_path / "workspace"
    job = TuningJob(parse_config(settings, "test"), small.folder / "saved_model", output, workspace)
    result = tune(job)
    assert result.status is Status.ACCEPTED
    assert result.baseline.accuracy == 1
    assert json.loads((workspace / "result.json").read_text())["dataset"]["labels"] == "model"
    written = load_model(output)
    assert written.outputs == small.model.outputs
    kernels = [node.name for node in written.graph_def.node if node.op in KERNEL_OPS]
    assert {name.removesuffix("/int8") for name in kernels} == set(small.ops.names)
    with ModelRunner(written) as runner:
        found = runner.run(pictures(1)[0])
        assert runner.detect(pictures(1)[0][0], masks=True).masks is not None
    masks = found["detection_masks:0"]
    assert masks.shape == (1, DETECTIONS, MASK_SIDE, MASK_SIDE)
    assert np.all((masks >= 0) & (masks <= 1))
