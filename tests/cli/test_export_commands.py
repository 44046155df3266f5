"""What `tuner export` writes, and what it refuses in one line."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tuner.cli import main
from tuner.export.output import export_model
from tuner.model.detection_model import DetectionModel, ModelFormat
from tuner.model.runner import ModelRunner
from tuner.precision import INT8, PrecisionPlan
from tuner.quantization.quantize import find_quantizable_ops, prepare, quantize
from tuner.quantization.ranges import collect_ranges

IMAGE = np.random.default_rng(1).integers(0, 256, (1, 24, 32, 3), np.uint8)

FRESH_PROCESS = """
import sys, numpy as np, tensorflow as tf
serve = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
np.save(sys.argv[3], serve(image_tensor=tf.constant(np.load(sys.argv[2])))["scores"].numpy())
assert "tuner" not in sys.modules
"""


@pytest.fixture
def float_model() -> DetectionModel:
    random = np.random.default_rng(0)
    with tf.Graph().as_default() as graph:
        image = tf.compat.v1.placeholder(tf.uint8, [1, None, None, 3], name="image_tensor")
        x = tf.cast(image, tf.float32) / 255
        for channels in (8, 4):
            weights = random.normal(0, 0.3, (3, 3, x.shape[-1], channels)).astype(np.float32)
            x = tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(x, weights, 2, "SAME"), np.ones(channels, np.float32)))
        tf.identity(x, name="scores")
    return DetectionModel(
        graph.as_graph_def(), ("image_tensor:0",), ("scores:0",), Path("d.pb"), ModelFormat.FROZEN_GRAPH
    )


@pytest.fixture
def int8_graph(float_model: DetectionModel) -> DetectionModel:
    prepared = prepare(float_model)
    ops = find_quantizable_ops(prepared)
    ranges = collect_ranges(prepared, ops.tensors, [IMAGE])
    return quantize(prepared, PrecisionPlan(dict.fromkeys(ops.names, INT8)), ranges)


def test_int8_graph_as_saved_model_answers_where_tuner_is_not(tmp_path: Path, int8_graph: DetectionModel) -> None:
    export_model(int8_graph, tmp_path / "q.pb")
    assert main(["export", str(tmp_path / "q.pb"), str(tmp_path / "served"), "--format", "savedmodel"]) == 0
    np.save(tmp_path / "image.npy", IMAGE)
    paths = [str(tmp_path / name) for name in ("served", "image.npy", "found.npy")]
    subprocess.run([sys.executable, "-c", FRESH_PROCESS, *paths], check=True, capture_output=True)
    with ModelRunner(int8_graph) as runner:
        expected = runner.run(IMAGE)["scores:0"]
    np.testing.assert_array_equal(np.load(tmp_path / "found.npy"), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("f.onnx --format tf-trt", "tf-trt: TF-TRT is gone from TensorFlow's CPU builds"),
        ("f.pb --format onnx --calibration_location c", "f.pb: expected a name ending in .onnx for --format onnx"),
        ("f.pb --format savedmodel", "f.pb: a SavedModel is a folder"),
        ("f --format savedmodel --plan p.yaml", "--format savedmodel writes the graph as it is"),
        ("f.tflite --format tflite --plan p.yaml", "--format tflite: TensorFlow's converter chooses"),
        ("f.tflite --format tflite --symmetric", "--format tflite: --symmetric is for onnx"),
        ("f --format savedmodel --symmetric", "--format savedmodel: --symmetric is for onnx"),
        ("f.onnx --format onnx", "no images: give --calibration_location or --plan"),
        ("f.tflite --format tflite", "no images: give --calibration_location"),
        ("f.onnx --format coreml --plan p.yaml", "'coreml' is not one of"),
        ("f.onnx --format onnx --plan missing.yaml", "missing.yaml"),
    ],
)
def test_mistakes_take_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", "m.pb", *arguments.split()]) == 2
    out, errors = capsys.readouterr()
    assert out == ""
    assert message in errors and errors.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_plan_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.yaml").write_text("model: {name: m}\n")
    assert main(["export", "m.pb", "f.onnx", "--format", "onnx", "--plan", "p.yaml"]) == 2
    assert "p.yaml: no quantization.op_wise: expected the plan.yaml of a workspace" in capsys.readouterr().err


@pytest.fixture
def export_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, float_model: DetectionModel) -> list[str]:
    """The arguments that export m.pb to f.onnx; p.yaml is a plan in bf16."""
    pytest.importorskip("onnx")
    monkeypatch.chdir(tmp_path)
    Path("1.jpg").write_bytes(tf.io.encode_jpeg(IMAGE[0]).numpy())
    about = {"id": 1, "file_name": "1.jpg", "height": 24, "width": 32}
    box = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [0, 0, 12, 8], "area": 96, "iscrowd": 0}
    table = {"images": [about], "annotations": [box], "categories": [{"id": 3, "name": "kind"}]}
    Path("instances.json").write_text(json.dumps(table))
    export_model(float_model, Path("m.pb"))
    precisions = {op: {"activation": {"dtype": ["bf16"]}} for op in find_quantizable_ops(prepare(float_model)).names}
    images = {"dataloader": {"dataset": {"COCORaw": {"root": ".", "img_dir": ".", "anno_dir": "instances.json"}}}}
    plan = {
        "model": {"name": "m", "framework": "tensorflow"},
        "quantization": {"op_wise": precisions},
        "evaluation": {"accuracy": images},
    }
    Path("p.yaml").write_text(json.dumps(plan))
    return ["export", "m.pb", "f.onnx", "--format", "onnx", "--calibration_location", "instances.json"]


@pytest.mark.parametrize(
    ("arguments", "activations", "biases"),
    [([], "u8, with zero points", "32-bit integers"), (["--symmetric"], "int8, zero point 0", "float")],
)
def test_the_form_is_told(
    export_arguments: list[str],
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    activations: str,
    biases: str,
) -> None:
    assert main([*export_arguments, *arguments]) == 0
    rows = [re.split(r"\s{2,}", line.strip()) for line in capsys.readouterr().out.splitlines()]
    assert ["int8 operators", "2"] in rows
    assert ["activations", activations] in rows and ["biases", biases] in rows
    assert json.loads(Path("f.json").read_text())["symmetric"] == bool(arguments)


def test_plan_without_int8_says_how_to_get_some(
    export_arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*export_arguments, "--plan", "p.yaml"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("the plan has no int8 operators: give no --plan for all int8" in line for line in lines)
