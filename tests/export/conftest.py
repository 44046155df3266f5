"""A detector of one convolution: small enough to be written in a moment, and to be told apart from another."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tuner.model.detection_model import DetectionModel, ModelFormat


@pytest.fixture
def make_detector() -> Callable[..., DetectionModel]:
    """Build a detector; `seed` chooses its weights, `channels` their number, `scope` goes before its names."""

    def make(seed: int = 0, channels: int = 6, scope: str = "") -> DetectionModel:
        weights = np.random.default_rng(seed).normal(0, 0.1, (3, 3, 3, channels)).astype(np.float32)
        with tf.Graph().as_default() as graph, tf.name_scope(f"{scope}/" if scope else ""):
            image = tf.compat.v1.placeholder(tf.uint8, [1, None, None, 3], name="image_tensor")
            features = tf.nn.conv2d(tf.cast(image, tf.float32) / 255, weights, 8, "SAME")
            slots = tf.reshape(features, [1, -1, channels])
            scores, order = tf.math.top_k(tf.sigmoid(slots[..., 4]), 4, name="top")
            outputs = (
                tf.gather(tf.sigmoid(slots[..., :4]), order, batch_dims=1, name="detection_boxes"),
                tf.identity(scores, name="detection_scores"),
                tf.cast(order % 3 + 1, tf.float32, name="detection_classes"),
                tf.fill([1], 4.0, name="num_detections"),
            )
        return DetectionModel(
            graph.as_graph_def(),
            (image.name,),
            tuple(tensor.name for tensor in outputs),
            Path("detector.pb"),
            ModelFormat.FROZEN_GRAPH,
        )

    return make


@pytest.fixture
def network_detector() -> DetectionModel:
    """A detector with all that an export meets: depthwise, moved and summed codes, two heads, suppression."""
    random = np.random.default_rng(7)

    def convolved(x: tf.Tensor, channels: int, side: int = 1, stride: int = 1, *, depthwise: bool = False) -> tf.Tensor:
        shape = (side, side, x.shape[-1], 1 if depthwise else channels)
        weights = random.normal(0, 1.4 / np.sqrt(np.prod(shape[: 2 if depthwise else 3])), shape).astype(np.float32)
        bias = random.normal(0, 0.1, x.shape[-1] if depthwise else channels).astype(np.float32)
        op = tf.raw_ops.DepthwiseConv2dNative if depthwise else tf.raw_ops.Conv2D
        return tf.nn.bias_add(op(input=x, filter=weights, strides=[1, stride, stride, 1], padding="SAME"), bias)

    with tf.Graph().as_default() as graph:
        image = tf.compat.v1.placeholder(tf.uint8, [None, None, None, 3], name="image_tensor")
        resized = tf.raw_ops.ResizeBilinear(
            images=tf.cast(image, tf.float32), size=[32, 32], half_pixel_centers=True, align_corners=False
        )
        x = tf.nn.relu6(convolved(tf.pad(resized / 127.5 - 1, [[0, 0], [1, 1], [1, 1], [0, 0]]), 16, 3, 2))
        x = tf.nn.leaky_relu(convolved(convolved(x, 16, 3, depthwise=True), 16))
        left, right = tf.split(x, [6, 10], axis=-1)
        joined = tf.concat([right, tf.nn.leaky_relu(convolved(left, 6, 3))], -1)
        pooled = tf.nn.max_pool2d(joined, 2, 2, "SAME")
        x = tf.nn.relu(convolved(pooled, 16) + tf.nn.relu(convolved(pooled, 16, 3)))
        corners = tf.reshape(convolved(x, 4, 3), [1, -1, 1, 4], name="corners")
        scores = tf.reshape(tf.sigmoid(convolved(x, 4)), [1, -1, 4], name="scores")
        found = tf.image.combined_non_max_suppression(corners, scores, 5, 5, 0.5, 0.1)
        outputs = (
            tf.identity(found[0], "detection_boxes"),
            tf.identity(found[1], "detection_scores"),
            tf.identity(found[2] + 1, "detection_classes"),
            tf.cast(found[3], tf.float32, "num_detections"),
        )
    names = tuple(tensor.name for tensor in outputs)
    return DetectionModel(graph.as_graph_def(), (image.name,), names, Path("detector.pb"), ModelFormat.FROZEN_GRAPH)
