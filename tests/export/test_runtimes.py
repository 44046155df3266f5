"""What an exported network computes in other runtimes, held against the simulation of the same plan."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from tuner.errors import ConfigError, ModelError
from tuner.export.heads import cut_at_heads
from tuner.export.rounded_graph import round_as_planned
from tuner.export.runtimes import export_onnx, export_tflite
from tuner.model.detection_model import DetectionModel
from tuner.model.runner import ModelRunner
from tuner.precision import FP32, INT8, PrecisionPlan
from tuner.quantization.quantize import find_quantizable_ops, prepare, quantize
from tuner.quantization.ranges import Ranges, collect_ranges
from tuner.quantization.simulation import simulate

IMAGES = [np.random.default_rng(seed).integers(0, 256, (1, 40, 48, 3), np.uint8) for seed in range(4)]
# How far two ways to round may lie apart, as a share of what rounding does: ties go one way or the other.
TIES = 0.35

Values = dict[str, NDArray[Any]]


def quantized(model: DetectionModel) -> tuple[DetectionModel, PrecisionPlan, Ranges]:
    prepared = prepare(model)
    ops = find_quantizable_ops(prepared)
    return prepared, PrecisionPlan(dict.fromkeys(ops.names, INT8)), collect_ranges(prepared, ops.tensors, IMAGES)


def run(model: DetectionModel) -> Values:
    with ModelRunner(model, as_written=True) as runner:
        return runner.run(IMAGES[0])


def assert_rounds_alike(found: Values, simulated: Values, exact: Values) -> None:
    for name, value in simulated.items():
        rounding = np.abs(value - exact[name]).mean()
        assert rounding > 0
        assert np.abs(found[name] - value).mean() <= TIES * rounding, name


def run_onnx(file: Path) -> Values:
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {session.get_inputs()[0].name: IMAGES[0]}), strict=True))


def run_postprocess(file: Path, values: Values) -> list[NDArray[Any]]:
    about = json.loads(file.with_suffix(".json").read_text())["postprocess"]
    graph_def = tf.compat.v1.GraphDef.FromString((file.parent / about["graph"]).read_bytes())
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
        with tf.compat.v1.Session(graph=graph) as session:
            found: Sequence[NDArray[Any]] = session.run(
                about["outputs"], {name: values[name] for name in about["inputs"]}
            )
    return list(found)


def test_rounded_graph_rounds_as_the_simulation(network_detector: DetectionModel) -> None:
    prepared, plan, ranges = quantized(network_detector)
    network = cut_at_heads(prepared).network
    rounded = round_as_planned(network.graph, plan, ranges)
    simulated = run(network.with_graph(simulate(network.graph, plan, ranges).graph_def))
    assert_rounds_alike(run(network.with_graph(rounded.graph.graph_def)), simulated, run(network))
    assert set(rounded.weights) == set(plan)
    assert any(rounding.zero_point == 0 for rounding in rounded.roundings.values())


def test_onnx_computes_the_plan(tmp_path: Path, network_detector: DetectionModel) -> None:
    onnx = pytest.importorskip("onnx")
    file = tmp_path / "detector.onnx"
    exported = export_onnx(network_detector, file, IMAGES)

    prepared, plan, ranges = quantized(network_detector)
    network = cut_at_heads(prepared).network
    assert exported.int8_ops == len(plan) == 8
    simulated = run(network.with_graph(simulate(network.graph, plan, ranges).graph_def))
    found = run_onnx(file)
    assert_rounds_alike(found, simulated, run(network))

    graph = onnx.load(file).graph
    weights = [one for one in graph.initializer if one.name.endswith("/weights/codes")]
    assert len(weights) == len(plan)
    assert {one.data_type for one in weights} == {onnx.TensorProto.INT8}
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "detector.json",
        "detector.onnx",
        "detector.postprocess.pb",
    ]
    boxes, scores, classes, number = run_postprocess(file, found)
    assert boxes.shape == (1, 5, 4) and scores.shape == classes.shape == (1, 5) and number.shape == (1,)


def test_one_convolution_is_exact_to_a_step(tmp_path: Path, network_detector: DetectionModel) -> None:
    prepared, everything, ranges = quantized(network_detector)
    first = find_quantizable_ops(prepared).names[0]
    plan = everything.with_ops([op for op in everything if op != first], FP32)
    file = tmp_path / "detector.onnx"
    pytest.importorskip("onnx")
    assert export_onnx(network_detector, file, IMAGES, plan).int8_ops == 1
    network = cut_at_heads(prepared).network
    simulated = run(network.with_graph(simulate(network.graph, plan, ranges).graph_def))
    for name, value in run_onnx(file).items():
        np.testing.assert_allclose(value, simulated[name], atol=1e-2 * np.abs(simulated[name]).max())


def test_symmetric_onnx_has_neither_zero_points_nor_int8_biases(
    tmp_path: Path, network_detector: DetectionModel
) -> None:
    onnx = pytest.importorskip("onnx")
    file = tmp_path / "detector.onnx"
    assert export_onnx(network_detector, file, IMAGES, symmetric=True).int8_ops == 8
    assert json.loads(file.with_suffix(".json").read_text())["symmetric"] is True

    model = onnx.load(file)
    onnx.checker.check_model(model, full_check=True)
    constants = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    makers = {output: node for node in model.graph.node for output in node.output}
    roundings = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert {node.op_type for node in roundings} == {"QuantizeLinear", "DequantizeLinear"}
    for node in roundings:
        zero_point = constants[node.input[2]]
        assert zero_point.dtype == np.int8 and not zero_point.any()
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 8
    for node in convolutions:
        weights = makers[node.input[1]]
        assert weights.op_type == "DequantizeLinear" and weights.attribute[0].i == 0
        assert constants[weights.input[1]].shape == constants[node.input[2]].shape
        assert constants[node.input[2]].dtype == np.float32


def test_symmetric_onnx_answers_as_the_network(tmp_path: Path, network_detector: DetectionModel) -> None:
    pytest.importorskip("onnx")
    file = tmp_path / "detector.onnx"
    export_onnx(network_detector, file, IMAGES, symmetric=True)
    found = run_onnx(file)

    prepared, plan, ranges = quantized(network_detector)
    network = cut_at_heads(prepared).network
    exact = run(network)
    rounded = round_as_planned(network.graph, plan, ranges, symmetric=True)
    assert_rounds_alike(found, run(network.with_graph(rounded.graph.graph_def)), exact)
    for name, value in found.items():
        assert np.linalg.norm(value - exact[name]) <= 0.1 * np.linalg.norm(exact[name])


def test_symmetric_step_is_the_largest_magnitude_of_127(network_detector: DetectionModel) -> None:
    prepared, plan, ranges = quantized(network_detector)
    network = cut_at_heads(prepared).network
    lows = []
    # One by one, for then what an operator reads has one scale; of a depthwise one it has a scale for each channel.
    for op in (op for op in plan if network.graph.nodes[op].op == "Conv2D"):
        rounded = round_as_planned(network.graph, PrecisionPlan({op: INT8}), ranges, symmetric=True)
        ((name, rounding),) = rounded.roundings.items()
        observed = ranges[name.removesuffix("/rounded").replace("/output_", ":")]
        assert rounding.step == pytest.approx(max(-observed.low, observed.high) / 127)
        lows.append(observed.low)
    assert min(lows) < 0 <= max(lows)


def test_postprocess_joins_on(tmp_path: Path, network_detector: DetectionModel) -> None:
    cut = cut_at_heads(network_detector)
    assert cut.postprocess is not None
    assert cut.postprocess.inputs == cut.network.outputs
    heads = run(cut.network)
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(cut.postprocess.graph_def, name="")
        with tf.compat.v1.Session(graph=graph) as session:
            found = session.run(list(cut.postprocess.outputs), heads)
    for value, expected in zip(found, run(network_detector).values(), strict=True):
        np.testing.assert_allclose(value, expected, atol=1e-5)


def test_graph_without_suppression_is_not_cut(make_detector: Any) -> None:
    assert cut_at_heads(make_detector()).postprocess is None


def test_plan_of_another_model(tmp_path: Path, network_detector: DetectionModel) -> None:
    pytest.importorskip("onnx")
    with pytest.raises(ConfigError, match=r"^the plan is of another model: detector.pb has no operator 'elsewhere'$"):
        export_onnx(network_detector, tmp_path / "a.onnx", IMAGES, PrecisionPlan({"elsewhere": INT8}))
    assert not list(tmp_path.iterdir())


def test_int8_graph_is_not_exported_again(tmp_path: Path, network_detector: DetectionModel) -> None:
    pytest.importorskip("onnx")
    int8 = quantize(*quantized(network_detector))
    for export in (export_onnx, export_tflite):
        with pytest.raises(ConfigError, match=r"^detector.pb: an int8 graph already \(\w+\): give the float model"):
            export(int8, tmp_path / "a.onnx", IMAGES)
    assert not list(tmp_path.iterdir())


def unknown_op_detector() -> DetectionModel:
    """Erfinv lies between image and convolution, which neither ONNX nor TFLite has."""
    from tuner.model.detection_model import ModelFormat  # noqa: PLC0415

    with tf.Graph().as_default() as graph:
        image = tf.compat.v1.placeholder(tf.uint8, [1, 8, 8, 3], name="image_tensor")
        weights = np.random.default_rng(0).normal(0, 1, (3, 3, 3, 4)).astype(np.float32)
        tf.nn.conv2d(tf.math.erfinv(tf.cast(image, tf.float32) / 512), weights, 1, "SAME", name="out")
    return DetectionModel(graph.as_graph_def(), ("image_tensor:0",), ("out:0",), Path("x.pb"), ModelFormat.FROZEN_GRAPH)


def test_op_that_onnx_has_not(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    with pytest.raises(ModelError, match=r"^x.pb: ONNX has no form of Erfinv$"):
        export_onnx(unknown_op_detector(), tmp_path / "x.onnx", [image[:, :8, :8] for image in IMAGES])
    assert not list(tmp_path.iterdir())


def test_op_that_tflite_has_not(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^x.pb: TFLite has no form of Erfinv$"):
        export_tflite(unknown_op_detector(), tmp_path / "x.tflite", [image[:, :8, :8] for image in IMAGES])
    assert not list(tmp_path.iterdir())


def test_tflite_answers_as_the_network(tmp_path: Path, network_detector: DetectionModel) -> None:
    file = tmp_path / "detector.tflite"
    exported = export_tflite(network_detector, file, IMAGES)
    interpreter = tf.lite.Interpreter(model_path=str(file))
    interpreter.resize_tensor_input(0, IMAGES[0].shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(0, IMAGES[0])
    interpreter.invoke()
    found = [interpreter.get_tensor(one["index"]) for one in interpreter.get_output_details()]
    expected = run(cut_at_heads(network_detector).network)
    for name, value in zip(exported.outputs, found, strict=True):
        assert np.linalg.norm(value - expected[name]) <= 0.1 * np.linalg.norm(expected[name])
    run_postprocess(file, dict(zip(exported.outputs, found, strict=True)))
