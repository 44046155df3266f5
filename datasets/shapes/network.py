"""The detector: a small MobileNet-v2-style SSD, written once for training and for the frozen graph.

The layers are plain TensorFlow functions, so that the frozen graph holds just the ops and names of a TF1 Object
Detection API export: BatchNorm with constant statistics, no folded weights, no leftovers of variables.
"""

from collections.abc import Iterable
from typing import Protocol

import numpy as np
import tensorflow as tf

INPUT_SIDE_PX = 192
CLASS_COUNT = 10
MAX_DETECTIONS = 100

_BATCH_NORM_EPSILON = 1e-3
_STEM_CHANNELS = 24
_EXPANSION = 4

# One line per bottleneck: output channels, stride of its depthwise convolution. A residual add joins equal shapes.
_BOTTLENECKS = ((24, 2), (24, 1), (48, 2), (48, 1), (48, 1), (80, 2), (80, 1), (80, 1), (128, 2), (128, 1), (128, 2))
# Bottlenecks whose outputs carry a head, with the scale of its anchors (side of a square one, of the input's side).
_HEADS = {4: 0.07, 7: 0.147, 9: 0.31, 10: 0.65}
_ASPECT_RATIOS = (1.0, 0.5, 2.0)
_SCALE_STEPS = (1.0, 1.45)
ANCHORS_PER_CELL = len(_ASPECT_RATIOS) * len(_SCALE_STEPS)

# Box encodings are multiplied by these before the loss, as in the Object Detection API.
_CENTRE_SCALE, _SIZE_SCALE = 10.0, 5.0


class Weights(Protocol):
    """Where the layers get their numbers: variables in training, constants in the frozen graph."""

    training: bool

    def get(self, name: str, shape: tuple[int, ...], start: str) -> tf.Tensor:
        """Return the weight of this name; `start` says how training begins: 'he', 'head', 'zeros', 'ones', 'rare'."""

    def record_statistics(self, scope: str, mean: tf.Tensor, variance: tf.Tensor) -> None:
        """Take a training batch's mean and variance [C] of one BatchNorm."""


def anchors() -> np.ndarray:
    """Return all anchors [A, 4] float32: centre y, centre x, height, width, as fractions of the input."""
    rows = []
    stride = 2
    for index, (_, block_stride) in enumerate(_BOTTLENECKS):
        stride *= block_stride
        if index not in _HEADS:
            continue
        cells = INPUT_SIDE_PX // stride
        centres = (np.arange(cells) + 0.5) / cells
        sizes = [
            (_HEADS[index] * step / np.sqrt(ratio), _HEADS[index] * step * np.sqrt(ratio))
            for step in _SCALE_STEPS
            for ratio in _ASPECT_RATIOS
        ]
        rows += [(y, x, height, width) for y in centres for x in centres for height, width in sizes]
    return np.array(rows, np.float32)


def encode(boxes: tf.Tensor) -> tf.Tensor:
    """Turn boxes [..., A, 4] (ymin xmin ymax xmax) into offsets from the anchors [..., A, 4]."""
    anchor_y, anchor_x, anchor_height, anchor_width = anchors().T
    y_min, x_min, y_max, x_max = tf.unstack(boxes, axis=-1)
    height, width = tf.maximum(y_max - y_min, 1e-4), tf.maximum(x_max - x_min, 1e-4)
    return tf.stack(
        [
            _CENTRE_SCALE * ((y_min + y_max) / 2 - anchor_y) / anchor_height,
            _CENTRE_SCALE * ((x_min + x_max) / 2 - anchor_x) / anchor_width,
            _SIZE_SCALE * tf.math.log(height / anchor_height),
            _SIZE_SCALE * tf.math.log(width / anchor_width),
        ],
        axis=-1,
    )


def decode(encodings: tf.Tensor) -> tf.Tensor:
    """Turn offsets [N, A, 4] back into boxes [N, A, 4], ymin xmin ymax xmax."""
    anchor = anchors()
    centres = encodings[..., :2] * (anchor[:, 2:] / _CENTRE_SCALE) + anchor[:, :2]
    halves = tf.exp(encodings[..., 2:] / _SIZE_SCALE) * (anchor[:, 2:] / 2)
    return tf.concat([centres - halves, centres + halves], axis=-1)


def preprocess(images: tf.Tensor) -> tf.Tensor:
    """Scale uint8 images [N, H, W, 3] of any size to [N, INPUT_SIDE_PX, INPUT_SIDE_PX, 3] float32 in -1..1."""
    with tf.name_scope("Preprocessor"):
        pixels = tf.cast(images, tf.float32, name="ToFloat")
        pixels = tf.raw_ops.ResizeBilinear(
            images=pixels, size=[INPUT_SIDE_PX, INPUT_SIDE_PX], half_pixel_centers=True, name="ResizeBilinear"
        )
        return tf.subtract(tf.multiply(pixels, 2 / 255, name="mul"), 1.0, name="sub")


def predict(pixels: tf.Tensor, weights: Weights) -> tuple[tf.Tensor, tf.Tensor]:
    """Return box encodings [N, A, 4] and class logits [N, A, CLASS_COUNT] of preprocessed pixels."""
    encodings, logits = [], []
    for number, feature in enumerate(list(_extract_features(pixels, weights))):
        scope = f"BoxPredictor_{number}"
        encodings.append(_predict_per_anchor(feature, 4, f"{scope}/BoxEncodingPredictor", "zeros", weights))
        logits.append(_predict_per_anchor(feature, CLASS_COUNT, f"{scope}/ClassPredictor", "rare", weights))
    return tf.concat(encodings, axis=1, name="concat"), tf.concat(logits, axis=1, name="concat_1")


def postprocess(encodings: tf.Tensor, logits: tf.Tensor, category_ids: Iterable[int]) -> dict[str, tf.Tensor]:
    """Decode, keep the best boxes of each class by NMS, and name the outputs as the Object Detection API does."""
    with tf.name_scope("Postprocessor"):
        with tf.name_scope("Decode"):
            boxes = tf.expand_dims(decode(encodings), axis=2)
        kept_boxes, scores, classes, count = tf.image.combined_non_max_suppression(
            boxes,
            tf.sigmoid(logits, name="convert_scores"),
            max_output_size_per_class=MAX_DETECTIONS,
            max_total_size=MAX_DETECTIONS,
            iou_threshold=0.6,
            score_threshold=0.01,
            name="CombinedNonMaxSuppression",
        )
        class_indices = tf.cast(classes, tf.int32, name="ToInt32")
        category_table = tf.constant(list(category_ids), tf.float32, name="category_ids")
    return {
        "detection_boxes": tf.identity(kept_boxes, name="detection_boxes"),
        "detection_scores": tf.identity(scores, name="detection_scores"),
        "detection_classes": tf.gather(category_table, class_indices, name="detection_classes"),
        "num_detections": tf.cast(count, tf.float32, name="num_detections"),
    }


def freeze(values: dict[str, np.ndarray], category_ids: Iterable[int]) -> tf.compat.v1.GraphDef:
    """Return the inference graph with the trained values as constants; input `image_tensor`, uint8 [N, H, W, 3]."""
    with tf.Graph().as_default() as graph:
        images = tf.compat.v1.placeholder(tf.uint8, [None, None, None, 3], name="image_tensor")
        encodings, logits = predict(preprocess(images), _Constants(values))
        postprocess(encodings, logits, category_ids)
        return graph.as_graph_def()


class _Constants:
    training = False

    def __init__(self, values: dict[str, np.ndarray]) -> None:
        self._values = values

    def get(self, name: str, shape: tuple[int, ...], start: str) -> tf.Tensor:
        # A scope that ends in a slash is taken as it is: the constant's name is the weight's name.
        scope, _, leaf = name.rpartition("/")
        with tf.name_scope(f"{scope}/"):
            return tf.constant(self._values[name], tf.float32, shape, name=leaf)

    def record_statistics(self, scope: str, mean: tf.Tensor, variance: tf.Tensor) -> None:
        raise AssertionError("a frozen graph has no training batch")


def _extract_features(pixels: tf.Tensor, weights: Weights) -> Iterable[tf.Tensor]:
    net = "FeatureExtractor/MobilenetV2"
    feature = _conv(pixels, _STEM_CHANNELS, f"{net}/Conv", weights, side=3, stride=2)
    feature = _relu6(_normalise(feature, f"{net}/Conv", weights), f"{net}/Conv")
    for index, (channels, stride) in enumerate(_BOTTLENECKS):
        scope = f"{net}/expanded_conv" + (f"_{index}" if index else "")
        block_input = feature
        if index:
            expand = f"{scope}/expand"
            feature = _conv(feature, _EXPANSION * feature.shape[-1], expand, weights)
            feature = _relu6(_normalise(feature, expand, weights), expand)
        feature = _depthwise(feature, stride, f"{scope}/depthwise", weights)
        project = f"{scope}/project"
        feature = _normalise(_conv(feature, channels, project, weights), project, weights)
        if feature.shape[1:] == block_input.shape[1:]:
            feature = tf.raw_ops.AddV2(x=feature, y=block_input, name=f"{scope}/add")
        if index in _HEADS:
            yield feature


def _predict_per_anchor(feature: tf.Tensor, depth: int, scope: str, bias: str, weights: Weights) -> tf.Tensor:
    cells = feature.shape[1] * feature.shape[2]
    feature = _depthwise(feature, 1, f"{scope}_depthwise", weights)
    feature = _conv(feature, ANCHORS_PER_CELL * depth, scope, weights, start="head")
    biases = weights.get(f"{scope}/biases", (ANCHORS_PER_CELL * depth,), bias)
    feature = tf.nn.bias_add(feature, biases, name=f"{scope}/BiasAdd")
    return tf.reshape(feature, [-1, cells * ANCHORS_PER_CELL, depth], name=f"{scope}/Reshape")


def _conv(
    feature: tf.Tensor,
    channels: int,
    scope: str,
    weights: Weights,
    *,
    side: int = 1,
    stride: int = 1,
    start: str = "he",
) -> tf.Tensor:
    kernel = weights.get(f"{scope}/weights", (side, side, feature.shape[-1], channels), start)
    return tf.nn.conv2d(feature, kernel, stride, "SAME", name=f"{scope}/Conv2D")


def _depthwise(feature: tf.Tensor, stride: int, scope: str, weights: Weights) -> tf.Tensor:
    kernel = weights.get(f"{scope}/depthwise_weights", (3, 3, feature.shape[-1], 1), "he")
    feature = tf.raw_ops.DepthwiseConv2dNative(
        input=feature, filter=kernel, strides=[1, stride, stride, 1], padding="SAME", name=f"{scope}/depthwise"
    )
    return _relu6(_normalise(feature, scope, weights), scope)


def _normalise(feature: tf.Tensor, scope: str, weights: Weights) -> tf.Tensor:
    channels = (feature.shape[-1],)
    scale, offset = (weights.get(f"{scope}/BatchNorm/{leaf}", channels, start) for leaf, start in _SCALE_AND_OFFSET)
    name = f"{scope}/BatchNorm/FusedBatchNormV3"
    if weights.training:
        normal, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=feature, scale=scale, offset=offset, mean=[], variance=[], epsilon=_BATCH_NORM_EPSILON, name=name
        )
        weights.record_statistics(f"{scope}/BatchNorm", mean, variance)
        return normal
    mean = weights.get(f"{scope}/BatchNorm/moving_mean", channels, "zeros")
    variance = weights.get(f"{scope}/BatchNorm/moving_variance", channels, "ones")
    normal, *_ = tf.raw_ops.FusedBatchNormV3(
        x=feature,
        scale=scale,
        offset=offset,
        mean=mean,
        variance=variance,
        epsilon=_BATCH_NORM_EPSILON,
        is_training=False,
        name=name,
    )
    return normal


_SCALE_AND_OFFSET = (("gamma", "ones"), ("beta", "zeros"))


def _relu6(feature: tf.Tensor, scope: str) -> tf.Tensor:
    return tf.nn.relu6(feature, name=f"{scope}/Relu6")
