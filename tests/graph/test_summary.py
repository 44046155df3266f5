"""What a graph says of itself, and its operations against TensorFlow's own count."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tuner.errors import ModelError
from tuner.graph.summary import Endpoint, count_flops, graph_facts
from tuner.model.detection_model import DetectionModel, ModelFormat
from tuner.model.loading import load_model

tf1 = tf.compat.v1
PRODUCTS = ("Conv2D", "DepthwiseConv2dNative", "MatMul", "BatchMatMulV2", "Conv2DBackpropInput")


def profiled(graph: tf.Graph) -> int:
    """TensorFlow's own count of the same ops, from shapes that are known without a run."""
    options = tf1.profiler.ProfileOptionBuilder(tf1.profiler.ProfileOptionBuilder.float_operation())
    report = tf1.profiler.profile(graph, cmd="op", options=options.with_empty_output().build())
    return sum(child.float_ops for child in walk(report) if child.name in PRODUCTS)


def walk(report: Any) -> Any:
    for child in report.children:
        yield child
        yield from walk(child)


def test_operations_of_every_product() -> None:
    with tf.Graph().as_default() as graph:
        x = tf1.placeholder(tf.float32, [2, 12, 10, 8], name="x")
        ones = lambda *shape: np.ones(shape, np.float32)  # noqa: E731
        y = tf.nn.conv2d(x, ones(3, 3, 8, 6), 2, "SAME")  # [2, 6, 5, 6]
        y = tf.nn.depthwise_conv2d(y, ones(3, 3, 6, 2), [1, 1, 1, 1], "VALID")  # [2, 4, 3, 12]
        grouped = tf.nn.conv2d(y, ones(1, 1, 4, 6), 1, "SAME")  # three groups
        rows = tf.reshape(y, [-1, 12])  # [24, 12]
        products = [tf.matmul(rows, ones(12, 5)), tf.matmul(rows, ones(5, 12), transpose_b=True)]
        batch = tf.matmul(tf.reshape(rows, [2, 12, 12]), ones(2, 12, 5))
        wide = tf.nn.conv2d_transpose(y, ones(3, 3, 7, 12), [2, 8, 6, 7], 2)
        tf.add_n([tf.reduce_sum(one) for one in (grouped, *products, batch, wide)], name="out")
    model = DetectionModel(graph.as_graph_def(), ("x:0",), ("out:0",), Path("x.pb"), ModelFormat.FROZEN_GRAPH)
    found = count_flops(model)
    assert dict(found.by_op) == {
        "Conv2D": 2 * (2 * 6 * 5 * 6 * 9 * 8 + 2 * 4 * 3 * 6 * 4),
        "DepthwiseConv2dNative": 2 * (2 * 4 * 3 * 12 * 9),
        "MatMul": 2 * 2 * (24 * 5 * 12),
        "BatchMatMulV2": 2 * (2 * 12 * 5 * 12),
        "Conv2DBackpropInput": 2 * (2 * 4 * 3 * 12 * 9 * 7),
    }
    assert found.total == sum(found.by_op.values())
    assert (found.shapes, found.uncounted) == (((2, 12, 10, 8),), ())


@pytest.mark.parametrize("name", ["yolo_fastestv2_bn", pytest.param("nanodet_plus_m_320", marks=pytest.mark.slow)])
def test_as_tensorflow_counts(name: str, assets: Path) -> None:
    model = load_model(assets / f"detectors/{name}.pb")
    graph_def = tf1.GraphDef.FromString(model.graph_def.SerializeToString())
    for node in graph_def.node:
        if node.op == "Placeholder":
            node.attr["shape"].shape.CopyFrom(tf.TensorShape([1, 200, 300, 3]).as_proto())
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
    found = count_flops(model, [1, 200, 300, 3])
    assert found.total == profiled(graph) > 1e8
    assert count_flops(model, [2, 200, 300, 3]).total == 2 * found.total


def test_facts_of_a_graph_with_control_flow() -> None:
    tf1.disable_control_flow_v2()
    try:
        with tf.Graph().as_default() as graph:
            x = tf1.placeholder(tf.float32, [None, 4, 4, 8], name="x")
            kernel = np.ones((1, 1, 8, 8), np.float32)
            _, y = tf1.while_loop(
                lambda step, y: step < 2,
                lambda step, y: (step + 1, tf.nn.conv2d(y, kernel, 1, "SAME", name="again")),
                [tf.constant(0), x],
            )
            tf.identity(tf1.cond(tf.reduce_sum(y) > 0, lambda: y + 1, lambda: y * 2), name="out")
    finally:
        tf1.enable_control_flow_v2()
    model = DetectionModel(graph.as_graph_def(), ("x:0",), ("out:0",), Path("x.pb"), ModelFormat.FROZEN_GRAPH)
    facts = graph_facts(model)
    assert facts.inputs == (Endpoint("x:0", "float32", (None, 4, 4, 8)),)
    assert facts.outputs == (Endpoint("out:0", "float32", None),)
    assert (facts.while_loops, facts.conditions) == (1, 1)
    assert (facts.parameters, facts.parameters_bytes) == (64, 256)
    assert sum(facts.ops.values()) == len(model.graph_def.node)
    assert facts.size_bytes == model.graph_def.ByteSize()
    found = count_flops(model)
    assert (found.total, found.uncounted) == (0, ("while/again",))


@pytest.mark.parametrize("shape", [[1, 5, 5, 8], [1, 4, 4], [4]])
def test_shapes_that_do_not_fit(shape: list[int], float_graph: Any) -> None:
    sketch = float_graph(size=(4, 4))
    sketch.named(sketch.convolve(sketch.x, "conv"), "out")
    with pytest.raises(ModelError, match=r"^input x:0 takes the shape \(None, 4, 4, 8\); got \["):
        count_flops(sketch.model(), shape)
