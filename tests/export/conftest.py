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
