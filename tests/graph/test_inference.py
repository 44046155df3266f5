import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tuner.errors import ModelError
from tuner.graph.equivalence import check_same_results, random_images
from tuner.graph.inference import optimize_for_inference
from tuner.model.detection_model import DetectionModel, ModelFormat
from tuner.model.loading import load_model

SSD = "od_api/ssd_mobilenet_v1_depth05"
X = np.random.default_rng(7).normal(0, 1, (2, 9, 7, 8)).astype(np.float32)


def ops_of(model: DetectionModel) -> Counter[str]:
    return Counter(node.op for node in model.graph_def.node)


def test_all_at_once(float_graph: Any) -> None:
    sketch = float_graph(seed=2)
    with sketch.graph.as_default():
        x = tf.debugging.check_numerics(sketch.x, "x")
        y = sketch.batch_norm(sketch.convolve(x, "first"), "norm").y
        y = tf.nn.batch_normalization(
            sketch.convolve(y, "second", "DepthwiseConv2dNative"), 0.5, 2.0, 1.0, tf.constant([0.5] * 12) * 2, 1e-3
        )
        tf.add(tf.nn.relu(y), tf.stop_gradient(tf.nn.relu(y)), name="out")
    model = sketch.model()
    optimized = optimize_for_inference(model)
    counts = ops_of(optimized)
    del counts["Const"]
    assert counts == {
        "Placeholder": 1,
        "Conv2D": 1,
        "DepthwiseConv2dNative": 1,
        "BiasAdd": 2,
        "Relu": 1,
        "AddV2": 1,
    }
    assert (optimized.inputs, optimized.outputs) == (model.inputs, model.outputs)
    assert check_same_results(model, optimized, [X])["out:0"] < 1e-6
    assert optimize_for_inference(model).sha256 == optimized.sha256


def test_a_second_time_changes_nothing(float_graph: Any) -> None:
    sketch = float_graph(seed=2)
    sketch.named(sketch.batch_norm(sketch.convolve(sketch.x, "conv"), "norm").y, "out")
    once = optimize_for_inference(sketch.model())
    assert optimize_for_inference(once).sha256 == once.sha256


BEHIND = {
    "norm, factor": lambda sketch, y: sketch.batch_norm(y, "norm").y * 3.0,
    "norm, summand": lambda sketch, y: sketch.batch_norm(tf.nn.bias_add(y, [0.5] * 12), "norm").y + [2.0] * 12,
    "factor, norm": lambda sketch, y: sketch.batch_norm(y * 3.0, "norm").y,
    "norm, norm": lambda sketch, y: sketch.batch_norm(sketch.batch_norm(y, "norm").y, "again").y,
    "norm, factor, norm": lambda sketch, y: sketch.batch_norm(sketch.batch_norm(y, "norm").y * 3.0, "again").y,
}


@pytest.mark.parametrize("behind", BEHIND)
def test_all_that_scales_a_convolution_goes_into_it(behind: str, float_graph: Any) -> None:
    sketch = float_graph(seed=2)
    with sketch.graph.as_default():
        tf.nn.relu(BEHIND[behind](sketch, sketch.convolve(sketch.x, "conv")), name="out")
    model = sketch.model()
    optimized = optimize_for_inference(model)
    counts = ops_of(optimized)
    del counts["Const"]
    assert counts == {"Placeholder": 1, "Conv2D": 1, "BiasAdd": 1, "Relu": 1}
    assert check_same_results(model, optimized, [X])["out:0"] < 1e-6
    assert optimize_for_inference(optimized).sha256 == optimized.sha256


def test_a_graph_that_says_something_else_is_refused(float_graph: Any) -> None:
    sketch, other = float_graph(seed=2), float_graph(seed=3)
    for one in (sketch, other):
        one.named(one.convolve(one.x, "conv"), "out")
    with pytest.raises(
        ModelError, match=r"^x.pb: out:0 differs by .+ of its largest value on image 1; allowed are 1e-05"
    ):
        check_same_results(sketch.model(), other.model(), [X])


@pytest.mark.parametrize(
    ("dtype", "shape", "expected"),
    [
        (tf.uint8, [None, None, None, 3], [(1, 320, 320, 3), (1, 240, 416, 3)]),
        (tf.float32, [2, 8, 9, 3], [(2, 8, 9, 3)] * 2),
        (tf.uint8, None, [(1, 320, 320, 3), (1, 240, 416, 3)]),
        (tf.float32, [None, 10], [(1, 10)] * 2),
    ],
)
def test_random_images(dtype: tf.DType, shape: Any, expected: list[tuple[int, ...]]) -> None:
    found = random_images(with_input(dtype, shape), 2)
    assert [image.shape for image in found] == expected
    assert all(
        image.dtype == dtype.as_numpy_dtype and image.max() <= (255 if dtype == tf.uint8 else 1) for image in found
    )


def test_random_images_of_an_input_that_is_no_placeholder() -> None:
    model = with_input(tf.uint8, [None, None, None, 3])
    graph_def = tf.compat.v1.GraphDef.FromString(model.graph_def.SerializeToString())
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
        tf.cast(graph.get_tensor_by_name("in:0"), tf.float32, name="scaled")
    (image,) = random_images(DetectionModel(graph.as_graph_def(), ("scaled:0",), (), model.source, model.format), 1)
    assert (image.shape, image.dtype, image.max() <= 1) == ((1, 320, 320, 3), np.float32, True)


def test_no_images_of_text() -> None:
    with pytest.raises(ModelError, match=r"^x.pb: input in:0 takes string: no images can be made for it$"):
        random_images(with_input(tf.string, [None]))


def with_input(dtype: tf.DType, shape: Any) -> DetectionModel:
    with tf.Graph().as_default() as graph:
        tf.identity(tf.compat.v1.placeholder(dtype, shape, name="in"), name="out")
    return DetectionModel(graph.as_graph_def(), ("in:0",), ("out:0",), Path("x.pb"), ModelFormat.FROZEN_GRAPH)


def test_a_detector_with_batch_norm(assets: Path) -> None:
    model = load_model(assets / "detectors/yolo_fastestv2_bn.pb")
    optimized = optimize_for_inference(model)
    assert ops_of(model)["FusedBatchNormV3"] == 73
    assert not re.search("BatchNorm", " ".join(ops_of(optimized)))
    assert len(optimized.graph_def.node) < 0.7 * len(model.graph_def.node)
    assert max(check_same_results(model, optimized, random_images(model, 2)).values()) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("form", ["frozen_inference_graph.pb", "saved_model", ""])
def test_the_object_detection_api(assets: Path, form: str) -> None:
    model = load_model(assets / SSD / form)
    optimized = optimize_for_inference(model)
    assert not {"Assert", "FusedBatchNormV3"} & ops_of(optimized).keys()
    assert len(optimized.graph_def.node) < 0.4 * len(model.graph_def.node)
    assert max(check_same_results(model, optimized, random_images(model, 2)).values()) <= 1e-5
