"""Detectors trained by others, exported to ONNX: as good in ONNX Runtime as the int8 graph of the same plan."""

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tuner.data.calibration import calibration_images
from tuner.data.dataset import open_dataset
from tuner.detections import Detections
from tuner.evaluation.coco_map import ImageTruth, coco_metrics
from tuner.export.runtimes import export_onnx
from tuner.graph.postprocess import optimize_postprocess
from tuner.model.loading import load_model
from tuner.model.runner import ModelRunner
from tuner.precision import INT8, PrecisionPlan
from tuner.quantization.quantize import find_quantizable_ops, prepare, quantize
from tuner.quantization.ranges import collect_ranges

MOST_APART = 0.005
SSD = "od_api/ssd_mobilenet_v1_depth05"
CASES = [
    ("detectors/nanodet_plus_m_320.pb", "coco_val/instances_with_masks.json", "coco_train/instances.json"),
    (f"{SSD}/frozen_inference_graph.pb", f"{SSD}/fit/instances.json", f"{SSD}/fit/instances.json"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("path", "evaluation", "calibration"), CASES)
def test_map_is_that_of_the_int8_graph(
    assets: Path, tmp_path: Path, path: str, evaluation: str, calibration: str
) -> None:
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    dataset = open_dataset(assets / evaluation, limit=100)
    images = list(calibration_images(open_dataset(assets / calibration), 20))
    model = load_model(assets / path)
    prepared = prepare(optimize_postprocess(model, images[:10]).model)
    ops = find_quantizable_ops(prepared)
    plan = PrecisionPlan(dict.fromkeys(ops.names, INT8))
    int8 = quantize(prepared, plan, collect_ranges(prepared, ops.tensors, images))

    export_onnx(model, tmp_path / "network.onnx", images, plan)

    about = json.loads((tmp_path / "network.json").read_text())
    rest = about["postprocess"]
    session = runtime.InferenceSession(tmp_path / "network.onnx", providers=["CPUExecutionProvider"])
    heads = [output["name"] for output in about["outputs"]]
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(load_model(tmp_path / rest["graph"]).graph_def, name="")
    expected, found = [], []
    with ModelRunner(int8) as runner, tf.compat.v1.Session(graph=graph) as joined:
        for sample in dataset:
            expected.append(runner.detect(sample.image))
            values = {about["inputs"][0]["name"]: sample.image[np.newaxis]}
            values |= dict(zip(heads, session.run(heads, values), strict=True))
            boxes, scores, classes, number = joined.run(
                rest["outputs"], {name: values[name] for name in rest["inputs"]}
            )
            count = int(number[0])
            found.append(Detections(boxes[0, :count], scores[0, :count], np.rint(classes[0, :count]).astype(np.int64)))
    truths = [ImageTruth(one.image_id, one.height, one.width, one.ground_truth) for one in dataset.entries]
    before, after = (float(coco_metrics(truths, ones).figures["mAP"]) for ones in (expected, found))
    print(f"{path}: int8 {before:.4f}, ONNX Runtime {after:.4f}")
    assert after == pytest.approx(before, abs=MOST_APART)
