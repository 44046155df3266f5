import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.core.framework.graph_pb2 import GraphDef
from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.python.framework import tensor_util

from tuner.errors import QuantizationError
from tuner.model.detection_model import DetectionModel, ModelFormat
from tuner.model.loading import load_model
from tuner.model.runner import ModelRunner
from tuner.precision import FP32, INT8, Dtype, Granularity, OpPrecision, PrecisionPlan
from tuner.quantization.child import Limits
from tuner.quantization.inc_adapter import applied_by_inc, quantize_with_inc

tf1 = tf.compat.v1

PER_TENSOR = OpPrecision(Dtype.INT8, Granularity.PER_TENSOR)
IMAGES = [np.random.default_rng(seed).integers(0, 256, (1, 32, 32, 3), np.uint8) for seed in range(3)]


def _weights(seed: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 0.3, shape).astype(np.float32)


def _make_model(*, residual: bool = False) -> DetectionModel:
    """Four convolutions, one of them depthwise, and a sigmoid; the names `first` and `first_b` begin alike."""
    with tf.Graph().as_default() as graph:
        image = tf1.placeholder(tf.uint8, [1, 32, 32, 3], name="image_tensor")
        x = tf.cast(image, tf.float32) / 255
        x = _convolve(x, _weights(0, 3, 3, 3, 8), "first", stride=2)
        if residual:
            sums = tf1.nn.conv2d(x, _weights(5, 1, 1, 8, 8), [1, 1, 1, 1], "SAME", name="branch")
            x = tf.nn.relu(tf.nn.bias_add(sums, _weights(6, 8)) + x)
        x = _convolve(x, _weights(1, 1, 1, 8, 8), "first_b")
        sums = tf1.nn.depthwise_conv2d_native(x, _weights(2, 3, 3, 8, 1), [1, 1, 1, 1], "SAME", name="middle")
        x = tf.nn.relu6(tf.nn.bias_add(sums, _weights(3, 8)))
        x = tf1.nn.conv2d(x, _weights(4, 1, 1, 8, 6), [1, 1, 1, 1], "SAME", name="last")
        scores = tf.sigmoid(tf.nn.bias_add(x, _weights(7, 6)), name="detection_scores")
    path = Path("four_convolutions.pb")
    return DetectionModel(graph.as_graph_def(), (image.name,), (scores.name,), path, ModelFormat.FROZEN_GRAPH)


def _convolve(x: tf.Tensor, weights: NDArray[np.float32], name: str, stride: int = 1) -> tf.Tensor:
    sums = tf1.nn.conv2d(x, weights, [1, stride, stride, 1], "SAME", name=name)
    return tf.nn.relu6(tf.nn.bias_add(sums, np.full(weights.shape[-1], 0.1, np.float32)))


@pytest.fixture
def temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which temporary files are made during a test."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_plan_is_followed_op_by_op_and_read_back(
    tmp_path: Path, temporary_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _make_model()
    plan = PrecisionPlan({"first": FP32, "first_b": PER_TENSOR, "middle": INT8, "last": INT8})
    working = tmp_path / "working"
    working.mkdir()
    monkeypatch.chdir(working)
    environment = dict(os.environ)

    quantized = quantize_with_inc(model, plan, IMAGES)

    assert applied_by_inc(quantized.graph_def, list(plan)) == plan
    assert quantized.inputs == model.inputs
    assert quantized.outputs == model.outputs
    with ModelRunner(model) as before, ModelRunner(quantized) as after:
        expected, found = (runner.run(IMAGES[0])["detection_scores:0"] for runner in (before, after))
    assert 0 < np.abs(found - expected).max() < 0.05
    assert list(temporary_files.iterdir()) == []
    assert list(working.iterdir()) == []
    assert dict(os.environ) == environment


def test_crash_of_the_converter_is_told_by_its_signal(temporary_files: Path) -> None:
    plan = PrecisionPlan(dict.fromkeys(("first", "branch", "first_b", "middle", "last"), INT8))

    with pytest.raises(QuantizationError, match=r"^neural-compressor: crashed with SIG[A-Z]+$"):
        quantize_with_inc(_make_model(residual=True), plan, IMAGES)

    assert list(temporary_files.iterdir()) == []


def test_cause_of_a_failed_conversion(temporary_files: Path) -> None:
    wrong = [image[:, :20] for image in IMAGES]

    with pytest.raises(QuantizationError) as raised:
        quantize_with_inc(_make_model(), PrecisionPlan({"first": INT8, "last": INT8}), wrong)

    message = str(raised.value)
    assert message.startswith("neural-compressor: Cannot feed value of shape (1, 20, 32, 3) for Tensor image_tensor:0")
    assert "\n" not in message


def test_no_calibration_images() -> None:
    with pytest.raises(QuantizationError, match="at least one calibration image, got none"):
        quantize_with_inc(_make_model(), PrecisionPlan({"first": INT8}), [])


@pytest.fixture
def write_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let a shell script take the place of the conversion; $5 is its folder."""

    def write(script: str) -> None:
        path = tmp_path / "worker"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))

    return write


SWALLOWED = """cat >&2 <<END
Traceback (most recent call last):
  File "graph_converter.py", line 600, in quantize
    self._quantize_graph()
KeyError: 'a detail'
2026-01-01 00:00:00 [ERROR][graph_converter.py:657] Fail to quantize graph due to Shape must be rank 4 but is rank 3.
Traceback (most recent call last):
  File "tensorflow.py", line 282, in quantize
    converted_model.q_config.update({})
    ^^^^^^^^^^^^^^^^^^^^^^^^
AttributeError: 'NoneType' object has no attribute 'graph_def'
END
exit 1"""

RAISED = """cat >&2 <<END
Traceback (most recent call last):
  File "session.py", line 1, in run
tensorflow.python.framework.errors_impl.UnknownError: the first cause

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "worker.py", line 1, in <module>
    run()
  File "runner.py", line 2, in run
    raise ModelError()
tuner.errors.ModelError: its int8 graph: failed while running: no kernel
  [[node a]]
END
exit 1"""


@pytest.mark.parametrize(
    ("script", "limit_s", "cause"),
    [
        (SWALLOWED, 60, "Shape must be rank 4 but is rank 3"),
        (RAISED, 60, "ModelError: its int8 graph: failed while running: no kernel"),
        ("exit 7", 60, "ended with exit code 7"),
        (
            "echo loading; echo no more of this >&2; echo I0000 00:00:17.9 9 stub.cc:31] no GPU; exit 7",
            60,
            "no more of this",
        ),
        ("exit 0", 60, "returned no graph"),
        ("kill -ABRT $$", 60, "crashed with SIGABRT"),
        ("kill -KILL $$", 60, "crashed with SIGKILL"),
        ("exec sleep 60", 0.5, "not done after 0.5 s, ended"),
    ],
)
def test_every_end_of_the_worker_without_a_graph(
    temporary_files: Path, write_worker: Callable[[str], None], script: str, limit_s: float, cause: str
) -> None:
    write_worker(script)

    with pytest.raises(QuantizationError) as raised:
        quantize_with_inc(_make_model(), PrecisionPlan({"first": INT8}), IMAGES, Limits(limit_s))

    assert str(raised.value) == f"neural-compressor: {cause}"
    assert list(temporary_files.iterdir()) == []


def test_worker_gets_everything_without_pickle(tmp_path: Path, write_worker: Callable[[str], None]) -> None:
    model = _make_model()
    plan = PrecisionPlan({"first": FP32, "last": PER_TENSOR})
    seen = tmp_path / "seen"
    write_worker(f'cp -r "$5" {seen}; cp "$5/float.pb" "$5/int8.pb"')

    quantized = quantize_with_inc(model, plan, IMAGES)

    assert quantized.graph_def == model.graph_def
    request = json.loads((seen / "request.json").read_text())
    assert request == {"inputs": list(model.inputs), "outputs": list(model.outputs), "ops": plan.to_json()}
    with np.load(seen / "images.npz", allow_pickle=False) as images:
        for name, image in zip(images.files, IMAGES, strict=True):
            np.testing.assert_array_equal(images[name], image)


def _kernel(op: str, name: str, channels: int, *, position: int) -> list[NodeDef]:
    least = NodeDef(op="HostConst", name=f"{name}/least")
    least.attr["value"].tensor.CopyFrom(tensor_util.make_tensor_proto(np.zeros(channels, np.float32)))
    return [least, NodeDef(op=op, name=name, input=[*(["x"] * position), f"{name}/least:0"])]


@pytest.mark.parametrize(
    ("op", "name", "channels", "position", "applied"),
    [
        ("QuantizedConv2DWithBiasAndReluAndRequantize", "a/Conv2D_eightbit_requantize", 8, 5, INT8),
        ("QuantizedConv2DWithBiasAndReluAndRequantize", "a/Conv2D_eightbit_requantize", 1, 5, PER_TENSOR),
        ("QuantizedConv2DPerChannel", "a/Conv2D_eightbit_quantized_conv", 8, 4, INT8),
        ("QuantizedDepthwiseConv2D", "a/Conv2D_eightbit_quantized_depthwise_conv", 8, 4, INT8),
        ("QuantizedConv2DWithBiasAndRequantize", "a/Conv2D_1_eightbit_requantize", 8, 5, FP32),
        ("QuantizedConv2DWithBiasAndRequantize", "b/a/Conv2D_eightbit_requantize", 8, 5, FP32),
        ("QuantizedConv2DWithBiasAndRequantize", "a/Conv2D_eightbit_a_eightbit_requantize", 8, 5, FP32),
        ("Conv2D", "a/Conv2D", 8, 1, FP32),
        ("QuantizeV2", "a/Conv2D_eightbit_quantize_x", 1, 1, FP32),
    ],
)
def test_read_back_of_one_kernel(op: str, name: str, channels: int, position: int, applied: OpPrecision) -> None:
    graph_def = GraphDef(node=_kernel(op, name, channels, position=position))

    assert applied_by_inc(graph_def, ["a/Conv2D"]) == PrecisionPlan({"a/Conv2D": applied})


@pytest.mark.slow
def test_real_detector(assets: Path, temporary_files: Path) -> None:
    model = load_model(assets / "detectors" / "nanodet_plus_m_320.pb")
    convolutions = {node.name: node.op for node in model.graph_def.node if "Conv2" in node.op or "Conv2d" in node.op}
    kept = sorted(convolutions)[:5]
    plan = PrecisionPlan(dict.fromkeys(convolutions, INT8)).with_ops(kept, FP32)
    paths = sorted(assets.rglob("*.jpg"))[:5]
    photos = [tf.io.decode_jpeg(path.read_bytes(), channels=3).numpy()[np.newaxis] for path in paths]

    quantized = quantize_with_inc(model, plan, photos)

    applied = applied_by_inc(quantized.graph_def, list(plan))
    assert all(applied[op] == FP32 for op in kept)
    # Depthwise convolutions without an activation are beyond neural-compressor: the read-back says so.
    assert applied.count()[Dtype.INT8] > 50
    assert {convolutions[op] for op, precision in applied.items() if precision == INT8} == {"Conv2D"}
    with ModelRunner(model) as before, ModelRunner(quantized) as after:
        expected, found = (runner.detect(photos[0][0]) for runner in (before, after))
    assert found.category_ids[0] == expected.category_ids[0]
    np.testing.assert_allclose(found.boxes[0], expected.boxes[0], atol=0.05)
