"""Fewer bytes, and nothing else: the same results to the last bit, the same names where anybody looks for them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework.node_def_pb2 import NodeDef

from tuner.data.calibration import calibration_images
from tuner.data.dataset import open_dataset
from tuner.model.graph_view import GraphView
from tuner.model.loading import load_model
from tuner.model.nodes import const_node, op_node
from tuner.model.runner import ModelRunner
from tuner.precision import INT8, PrecisionPlan
from tuner.quantization.audit import read_plan
from tuner.quantization.lowering import lower as lowering
from tuner.quantization.lowering.compact import compact
from tuner.quantization.lowering.convolutions import find_convolutions
from tuner.quantization.lowering.kernels import KERNEL_OPS
from tuner.quantization.lowering.regions import possible_sources
from tuner.quantization.quantize import find_quantizable_ops, prepare, quantize
from tuner.quantization.ranges import collect_ranges


def names(nodes: list[NodeDef]) -> list[str]:
    return [node.name for node in nodes]


def test_equal_constants_are_one() -> None:
    one, other = np.array([1, 2], np.int32), np.array([1, 3], np.int32)
    made = compact(
        [
            const_node("a", one),
            const_node("b", one),
            const_node("c", other),
            const_node("d", one, on_host=True),
            op_node("Pack", "out", ["a", "b", "c", "d"], T=tf.int32, N=4, axis=0),
        ],
        ["out", "q1"],
    )
    assert names(made) == ["q0", "q2", "q3", "out"]
    assert list(made[-1].input) == ["q0", "q0", "q2", "q3"]


def test_codes_are_not_relabelled_forth_and_back() -> None:
    made = compact(
        [
            op_node("Bitcast", "codes", ["data:1"], T=tf.uint8, type=tf.quint8),
            op_node("Bitcast", "plain", ["codes"], T=tf.quint8, type=tf.uint8),
            op_node("Bitcast", "signed", ["codes"], T=tf.quint8, type=tf.int8),
            op_node("Identity", "out", ["plain"], T=tf.uint8),
        ],
        ["data", "out"],
    )
    assert {node.name: list(node.input) for node in made} == {"q0": ["data:1"], "q1": ["q0"], "out": ["data:1"]}


def test_attributes_with_their_default_value_go() -> None:
    attributes = {"T": tf.float32, "strides": [1, 1, 1, 1], "padding": "SAME", "dilations": [1, 2, 2, 1]}
    (node,) = compact(
        [op_node("Conv2D", "out", ["x", "w"], data_format="NHWC", explicit_paddings=list[int](), **attributes)], ["out"]
    )
    assert set(node.attr) == set(attributes)


@pytest.fixture
def pair(
    float_graph: Any, observe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> tuple[GraphView, GraphView, Any]:
    """An int8 graph of all kinds of kernels and carriers, before and after, and an input."""
    sketch = float_graph(seed=4, size=(8, 8))
    data = sketch.convolve(sketch.x, "conv", bias=True, activation="Relu")
    with sketch.graph.as_default():
        first, second = tf.split(tf.nn.max_pool2d(data, 2, 2, "SAME", name="pool"), 2, 3, name="split")
    parts = [sketch.convolve(first, "depthwise", "DepthwiseConv2dNative", bias=True), second]
    data = sketch.concatenate(parts)
    data = sketch.convolve(data, "pointwise", weights=sketch.weights(1, 1, 12, 16), activation="LeakyRelu")
    sketch.named(sketch.convolve(data, "last"), "out")
    graph = sketch.view()
    found, _ = find_convolutions(graph)
    x = sketch.random.normal(0, 1, (2, 8, 8, 8)).astype(np.float32)
    ranges = observe(graph, x, possible_sources(graph, found))
    plan = PrecisionPlan(dict.fromkeys(found, INT8))
    after = lowering.lower(graph, plan, ranges)
    monkeypatch.setattr(lowering, "compact", lambda added, _: added)
    return lowering.lower(graph, plan, ranges), after, x


def test_results_stay_to_the_last_bit(pair: tuple[GraphView, GraphView, Any], run: Callable[..., Any]) -> None:
    before, after, x = pair
    assert after.graph_def.ByteSize() < before.graph_def.ByteSize()
    np.testing.assert_array_equal(run(after, x)[0], run(before, x)[0])


def test_a_real_detector_finds_the_very_same(assets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepare(load_model(assets / "detectors/fastestdet.pb"))
    ops = find_quantizable_ops(prepared)
    images = list(calibration_images(open_dataset(assets / "coco_train/instances.json", cache_mb=0), 3))
    ranges = collect_ranges(prepared, ops.tensors, images)
    plan = PrecisionPlan(dict.fromkeys(ops.names, INT8))
    after, again = (quantize(prepared, plan, ranges) for _ in range(2))
    monkeypatch.setattr(lowering, "compact", lambda added, _: added)
    before = quantize(prepared, plan, ranges)
    assert after.sha256 == again.sha256
    assert after.size_bytes < 0.8 * before.size_bytes
    assert read_plan(after, ops.names) == read_plan(before, ops.names)
    with ModelRunner(before) as one, ModelRunner(after) as other:
        for image in images:
            expected, found = one.run(image), other.run(image)
            for name, values in expected.items():
                np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_names_that_are_looked_for_stay(pair: tuple[GraphView, GraphView, Any]) -> None:
    before, after, _ = pair
    kernels = {node.name for node in before.graph_def.node if node.op in KERNEL_OPS}
    assert len(kernels) == 4
    for name in kernels:
        read = f"{name}/units" if f"{name}/units" in before.nodes else f"{name}/weights_high"
        assert {name, read} <= after.nodes.keys()
    assert {"x", "out"} <= after.nodes.keys()
