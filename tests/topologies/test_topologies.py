"""The model zoo's topologies from every form that they are published in. One large graph is in memory at a time."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from tests.two_stage.network import DETECTION_OUTPUTS
from tests.two_stage.stages import assert_only_layers, assert_only_layers_become_bfloat16
from tuner.config import parse_config
from tuner.criterion import Status
from tuner.job import TuningJob
from tuner.model.loading import load_model
from tuner.model.runner import ModelRunner
from tuner.pipeline import tune
from tuner.precision import INT8, Dtype, PrecisionPlan
from tuner.quantization.audit import read_plan
from tuner.quantization.quantize import find_quantizable_ops, prepare, quantize
from tuner.quantization.ranges import collect_ranges

pytestmark = pytest.mark.slow

DETECTIONS = 100
MASK_SIDE = 15
FORMS = {"pb": "frozen_inference_graph.pb", "checkpoint": "", "saved_model": "saved_model"}


@dataclass(frozen=True)
class Expected:
    """How many operators a plan decides about, by kind, and how many it may not."""

    convolutions: int
    depthwise: int = 0
    matmuls: int = 0
    refused: int = 0
    masks: bool = False


# Inception v2's first convolution has a depth multiplier of 8, for which there is no kernel.
EXPECTED = {
    "ssd_mobilenet_v1": Expected(convolutions=34, depthwise=13),
    "ssd_resnet50_v1": Expected(convolutions=110),
    "faster_rcnn_inception_v2": Expected(convolutions=72, matmuls=2, refused=1),
    "faster_rcnn_resnet101": Expected(convolutions=107, matmuls=2),
    "faster_rcnn_inception_resnet_v2": Expected(convolutions=247, matmuls=2),
    "mask_rcnn_inception_v2": Expected(convolutions=93, matmuls=2, refused=1, masks=True),
}


def picture(seed: int) -> NDArray[np.uint8]:
    """Coloured tiles, [1, 320, 480, 3]."""
    tiles = np.random.default_rng(seed).integers(0, 256, (1, 10, 15, 3), np.uint8)
    return tiles.repeat(32, axis=1).repeat(32, axis=2)


def assert_detections(found: dict[str, NDArray[Any]], masks: bool) -> None:
    shapes = {
        "detection_boxes:0": (1, DETECTIONS, 4),
        "detection_scores:0": (1, DETECTIONS),
        "detection_classes:0": (1, DETECTIONS),
        "num_detections:0": (1,),
    }
    if masks:
        shapes["detection_masks:0"] = (1, DETECTIONS, MASK_SIDE, MASK_SIDE)
    assert {name: value.shape for name, value in found.items()} == shapes
    assert all(np.isfinite(value).all() for value in found.values())
    assert found["num_detections:0"][0] > 0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("topology", EXPECTED)
def test_every_form_can_be_int8(topology: str, form: str, od_graph: Callable[[str], Path]) -> None:
    expected = EXPECTED[topology]
    model = load_model(od_graph(topology) / FORMS[form])
    assert model.inputs == ("image_tensor:0",)
    names = (*DETECTION_OUTPUTS, "detection_masks") if expected.masks else DETECTION_OUTPUTS
    assert model.outputs == tuple(f"{name}:0" for name in names)

    prepared = prepare(model)
    ops = find_quantizable_ops(prepared)
    kinds = [prepared.graph.nodes[name].op for name in ops.names]
    assert expected == Expected(
        kinds.count("Conv2D"),
        kinds.count("DepthwiseConv2dNative"),
        kinds.count("MatMul"),
        len(ops.refused),
        expected.masks,
    )
    assert_only_layers(prepared.graph, ops)
    assert_only_layers_become_bfloat16(prepared.graph, ops)

    ranges = collect_ranges(prepared, ops.tensors, [picture(0)])
    int8 = quantize(prepared, PrecisionPlan(dict.fromkeys(ops.names, INT8)), ranges)
    assert read_plan(int8, ops.names).count()[Dtype.INT8] == len(ops.names)
    with ModelRunner(int8) as runner:
        assert_detections(runner.run(picture(1)), expected.masks)


@pytest.mark.parametrize("topology", EXPECTED)
def test_tuned_by_its_own_detections(topology: str, od_graph: Callable[[str], Path], tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(3):
        (images / f"{number}.png").write_bytes(tf.io.encode_png(picture(number)[0]).numpy())
    dataloader = {"dataset": {"COCORaw": {"root": str(images)}}}
    kind = "both" if EXPECTED[topology].masks else "bbox"
    # Random weights are sure of nothing.
    accuracy = {"metric": {"COCOmAP": {"iouType": kind}}, "labels": "model", "label_score": 0.001}
    settings: dict[str, Any] = {
        "model": {"name": topology, "framework": "tensorflow"},
        "quantization": {"calibration": {"sampling_size": 2, "dataloader": dataloader}},
        "evaluation": {
            "accuracy": {**accuracy, "dataloader": dataloader},
            "performance": {"warmup": 1, "iteration": 2},
        },
        "tuning": {"accuracy_criterion": {"relative": 0.99}, "exit_policy": {"max_trials": 1}},
    }
    output = tmp_path / "int8.pb"
    frozen = od_graph(topology) / FORMS["pb"]
    result = tune(TuningJob(parse_config(settings, "test"), frozen, output, tmp_path / "workspace"))
    # What rounding makes of detections that are all about equally likely is chance.
    assert result.status in (Status.ACCEPTED, Status.BEST_EFFORT)
    assert result.best is not None
    assert result.best.applied.count()[Dtype.INT8] > 0
    with ModelRunner(load_model(output)) as runner:
        assert_detections(runner.run(picture(0)), EXPECTED[topology].masks)
