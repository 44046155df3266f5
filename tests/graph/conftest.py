"""Detectors of a few nodes whose loops and suppression are written as the Object Detection API writes them in TF1."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework.graph_pb2 import GraphDef

from tuner.model.detection_model import DetectionModel, ModelFormat
from tuner.model.endpoints import prune
from tuner.model.graph_view import GraphView

tf1 = tf.compat.v1


@dataclass(frozen=True)
class Nms:
    """How the graph of a test suppresses. kernel: version of NonMaxSuppression."""

    classes: int = 3
    own_boxes: bool = False
    score_threshold: float = 1e-8
    iou_threshold: float = 0.6
    max_per_class: int = 4
    max_total: int = 6
    relative: bool = False
    attribute: bool = False
    kernel: int = 5
    sigma: float = 0.0
    class_offset: float = 0.0
    pad: int | None = None
    clipped_first: bool = False
    shared_window: bool = False


@contextmanager
def tf1_graph() -> Iterator[tf.Graph]:
    """A graph whose loops are TF1's."""
    tf1.disable_control_flow_v2()
    try:
        with tf.Graph().as_default() as graph:
            yield graph
    finally:
        tf1.enable_control_flow_v2()


def view(graph_def: GraphDef, outputs: list[str]) -> GraphView:
    return GraphView(prune(graph_def, outputs), frozenset(outputs))


@pytest.fixture(scope="session")
def nms_graph() -> Callable[[Nms], GraphView]:
    """A graph from placeholders boxes, scores, window, valid and extra to the results of a batched suppression."""

    def make(how: Nms) -> GraphView:
        with tf1_graph() as graph:
            width = how.classes if how.own_boxes else 1
            boxes = tf1.placeholder(tf.float32, [None, None, width, 4], name="boxes")
            scores = tf1.placeholder(tf.float32, [None, None, how.classes], name="scores")
            window = tf1.placeholder(tf.float32, [None, 4], name="window")
            valid = tf1.placeholder(tf.int32, [None], name="valid")
            extra = tf1.placeholder(tf.float32, [None, None, 2], name="extra")
            names = suppress(how, boxes, scores, window, valid, extra)
        return view(graph.as_graph_def(), names)

    return make


@pytest.fixture(scope="session")
def detector() -> Callable[..., DetectionModel]:
    """Images in; resized in a loop, one convolution for boxes and scores, suppressed in a loop."""

    def make(how: Nms, resize: str = "fixed") -> DetectionModel:
        with tf1_graph() as graph:
            image = tf1.placeholder(tf.uint8, [None, None, None, 3], name="image_tensor")
            images, shapes = resized(tf.cast(image, tf.float32), resize)
            kernel = np.random.default_rng(1).normal(0, 1 / 900, (5, 5, 3, 4 + how.classes)).astype(np.float32)
            features = tf.nn.conv2d(images, kernel, 4, "SAME")
            rows = tf.reshape(features, [tf.shape(features)[0], -1, 1, 4 + how.classes])
            corner = tf.sigmoid(rows[..., :2]) * 1.4 - 0.2
            boxes = tf.concat([corner, corner + tf.sigmoid(rows[..., 2:4]) * 0.4], 3)
            height, width = tf.shape(features)[1], tf.shape(features)[2]
            # Anchors as a detector makes them: from the size of its features.
            steps = tf.meshgrid(tf.range(height), tf.range(width), indexing="ij")
            shift = tf.reshape(tf.cast(tf.stack(2 * steps, 2), tf.float32), [1, -1, 1, 4]) / 100
            scores = tf.sigmoid(rows[:, :, 0, 4:])
            sizes = tf.cast(shapes[:, :2], tf.float32)
            window = tf.concat([tf.zeros_like(sizes), sizes / tf.reduce_max(sizes)], 1)
            valid = tf.fill([tf.shape(boxes)[0]], tf.shape(boxes)[1])
            names = suppress(how, boxes + shift, scores, window, valid, scores)
            outputs = ("detection_boxes", "detection_scores", "detection_classes", "num_detections")
            for name, output in zip(names, outputs, strict=False):
                value = graph.get_tensor_by_name(f"{name}:0")
                tf.identity(tf.cast(value, tf.float32) if output == "num_detections" else value, name=output)
            tensors = tuple(f"{output}:0" for output in outputs)
            graph_def = graph.as_graph_def()
        graph_def = prune(graph_def, tensors)
        return DetectionModel(graph_def, ("image_tensor:0",), tensors, Path("made.pb"), ModelFormat.FROZEN_GRAPH)

    return make


def resized(images: tf.Tensor, resize: str) -> tuple[tf.Tensor, tf.Tensor]:
    """Each image resized, and its new shape, in a loop over the images."""

    def fixed(image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        batch = tf1.image.resize_bilinear(tf.expand_dims(image, 0), [24, 32])
        return tf.squeeze(batch, [0]), tf.constant([24, 32, 3])

    def by_side(image: tf.Tensor, height: int, width: int) -> tf.Tensor:
        batch = tf.expand_dims(image, 0)
        sizes = tf.unstack(tf.shape(batch))
        scale = tf.minimum(height / sizes[1], width / sizes[2])
        size = tf.stack([tf.cast(tf.round(scale * tf.cast(side, tf.float64)), tf.int32) for side in sizes[1:3]])
        return tf.squeeze(tf1.image.resize_bilinear(batch, size), [0])

    def keep_ratio(image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        shape = tf.shape(image)
        new = tf1.cond(shape[0] < shape[1], lambda: by_side(image, 24, 40), lambda: by_side(image, 40, 24))
        return new, tf.shape(new)

    def padded(image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        new = by_side(image, 24, 32)
        room = [32, 32] - tf.shape(new)[:2]
        batch = tf.pad(tf.expand_dims(new, 0), [[0, 0], [0, room[0]], [0, room[1]], [0, 0]])
        return tf.squeeze(batch, [0]), tf.shape(new)

    def brightened(image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        new, shape = fixed(image)
        return new + tf.reduce_max(new), shape

    kinds = {"fixed": fixed, "keep_ratio": keep_ratio, "padded": padded, "brightened": brightened}
    with tf1.name_scope("Preprocessor"):
        if resize == "none":
            return images, tf.tile([tf.shape(images)[1:]], [tf.shape(images)[0], 1])
        new, shapes = tf.map_fn(kinds[resize], images, fn_output_signature=(tf.float32, tf.int32))
    if resize == "fixed":
        new.set_shape([None, 24, 32, 3])
    return new, shapes


def suppress(how: Nms, *inputs: tf.Tensor, scope: str = "Postprocessor/BatchMultiClassNonMaxSuppression") -> list[str]:
    """A loop over images; the names of the nodes with boxes, scores, classes, count and, if asked for, extra rows.

    inputs: boxes, scores, window, valid and extra, each of the whole batch.
    """

    def one_image(parts: Any) -> Any:
        boxes, scores, window, valid, extra = parts
        boxes = tf.reshape(tf.slice(boxes, [0, 0, 0], tf.stack([valid, -1, -1])), [-1, boxes.shape[1], 4])
        scores = tf.reshape(tf.slice(scores, [0, 0], tf.stack([valid, -1])), [-1, how.classes])
        extra = tf.reshape(tf.slice(extra, [0, 0], tf.stack([valid, -1])), [-1, extra.shape[1]])
        by_class = tf.unstack(boxes, axis=1)
        if how.clipped_first:
            return one_image_clipped_first(how, by_class, scores, shared if how.shared_window else window)
        kept = [
            keep(how, by_class[index if how.own_boxes else 0], scores, extra, index) for index in range(how.classes)
        ]
        rows = {key: tf.concat([one[key] for one in kept], 0) for key in kept[0]}
        return one_image_of(how, rows, window)

    shared = tf.constant([0.1, 0.2, 0.8, 0.9])
    with tf1.name_scope(scope):
        dtypes = [tf.float32, tf.float32, tf.float32, tf.int32] + [tf.float32] * how.attribute
        results = tf.map_fn(one_image, inputs, fn_output_signature=dtypes)
    return [result.op.name for result in results]


def keep(how: Nms, boxes: Any, scores: Any, extra: Any, index: int) -> dict[str, Any]:
    """The boxes of one class that stay, filled up to their greatest number with the first box at a score of -1."""
    of_class = tf.reshape(tf.slice(scores, [0, index], tf.stack([tf.shape(scores)[0], 1])), [-1])
    most = tf.minimum(how.max_per_class, tf.shape(boxes)[0])
    limits = (most, how.iou_threshold, how.score_threshold)
    if how.kernel == 5:
        selected, found = tf.image.non_max_suppression_with_scores(boxes, of_class, *limits, soft_nms_sigma=how.sigma)
    else:
        selected, found = tf.image.non_max_suppression(boxes, of_class, *limits), None
    count = tf.shape(selected)[0]
    selected = tf.concat([selected, tf.zeros(most - count, tf.int32)], 0)
    if found is None:
        found = tf.gather(of_class, selected)
    else:
        found = tf.concat([found, tf.zeros(most - count, tf.float32)], -1)
    marked = tf1.where(tf.range(most) < count, found, -1 * tf.ones(most))
    return {
        "boxes": tf.gather(boxes, selected),
        "scores": marked,
        "classes": tf.zeros_like(marked) + (index + how.class_offset),
        "extra": tf.gather(extra, selected),
    }


def one_image_of(how: Nms, rows: dict[str, Any], window: Any) -> list[Any]:
    """Sorted, clipped, without empty boxes, cut and filled up."""
    order = tf.math.top_k(rows["scores"], tf.shape(rows["scores"])[0]).indices
    rows = {key: tf.gather(value, order) for key, value in rows.items()}
    rows["boxes"], area = clipped(rows["boxes"], window)
    seen = tf.cast(tf.reshape(tf.where(tf.greater(area, 0.0)), [-1]), tf.int32)
    rows = {key: tf.gather(value, seen) for key, value in rows.items()}
    top, left, bottom, right = tf.split(rows["boxes"], 4, axis=1)
    area = tf.squeeze((bottom - top) * (right - left), [1])
    rows["scores"] = tf1.where(tf.cast(area, tf.bool), rows["scores"], -1 * tf.ones(tf.shape(area)[0]))
    number = tf.reduce_sum(tf.cast(tf.greater_equal(rows["scores"], 0), tf.int32))
    order = tf.math.top_k(rows["scores"], tf.shape(rows["scores"])[0]).indices
    rows = {key: tf.gather(value, order) for key, value in rows.items()}
    if how.relative:
        rows["boxes"] = moved_into(rows["boxes"], window)
    most = tf.minimum(how.max_total, tf.shape(rows["boxes"])[0])
    count = tf1.where(tf.greater(most, number), number, most)
    rows = {key: tf.gather(tf.gather(value, tf.range(most)), tf.range(count)) for key, value in rows.items()}
    size = how.max_total if how.pad is None else how.pad
    keys = ["boxes", "scores", "classes"]
    filled = [filled_up(rows[key], size) for key in keys]
    return [*filled, count, *([filled_up(rows["extra"], size)] if how.attribute else [])]


def one_image_clipped_first(how: Nms, by_class: Any, scores: Any, window: Any) -> list[Any]:
    """What the first releases did: low scores left out, clipped, compared, sorted, cut and filled up."""
    kept = []
    for index in range(how.classes):
        of_class = tf.reshape(tf.slice(scores, [0, index], tf.stack([tf.shape(scores)[0], 1])), [-1])
        high = tf.cast(tf.reshape(tf.where(tf.greater(of_class, how.score_threshold)), [-1]), tf.int32)
        boxes = tf.gather(by_class[index if how.own_boxes else 0], high)
        boxes, area = clipped(boxes, window)
        seen = tf.cast(tf.reshape(tf.where(tf.greater(area, 0.0)), [-1]), tf.int32)
        boxes, found = tf.gather(boxes, seen), tf.gather(tf.gather(of_class, high), seen)
        if how.relative:
            boxes = moved_into(boxes, window)
        most = tf.minimum(how.max_per_class, tf.shape(boxes)[0])
        selected = tf.image.non_max_suppression(boxes, found, most, how.iou_threshold)
        found = tf.gather(found, selected)
        kept.append([tf.gather(boxes, selected), found, tf.zeros_like(found) + (index + how.class_offset)])
    rows = [tf.concat(parts, 0) for parts in zip(*kept, strict=True)]
    order = tf.math.top_k(rows[1], tf.shape(rows[1])[0]).indices
    rows = [tf.gather(part, order) for part in rows]
    most = tf.minimum(how.max_total, tf.shape(rows[0])[0])
    rows = [tf.gather(part, tf.range(most)) for part in rows]
    size = how.max_total if how.pad is None else how.pad
    return [*(filled_up(part, size) for part in rows), tf.shape(rows[0])[0]]


def clipped(boxes: Any, window: Any) -> tuple[Any, Any]:
    corners = tf.unstack(window)
    ends, starts = [corners[2], corners[3]] * 2, corners[:2] * 2
    sides = [
        tf.maximum(tf.minimum(side, end), start)
        for side, end, start in zip(tf.split(boxes, 4, axis=1), ends, starts, strict=True)
    ]
    boxes = tf.concat(sides, 1)
    top, left, bottom, right = tf.split(boxes, 4, axis=1)
    return boxes, tf.squeeze((bottom - top) * (right - left), [1])


def moved_into(boxes: Any, window: Any) -> Any:
    low, high = tf.unstack(window)[:2], tf.unstack(window)[2:]
    moved = tf.split(boxes - tf.stack([*low, *low]), 4, axis=1)
    scales = [1.0 / (high[0] - low[0]), 1.0 / (high[1] - low[1])] * 2
    return tf.concat([scale * side for scale, side in zip(scales, moved, strict=True)], 1)


def filled_up(rows: Any, size: int) -> Any:
    """Rows cut or filled with zeros to `size`."""
    too_many = tf1.where(tf.shape(rows)[0] - size > 0, size, -1)
    sizes = [too_many] if rows.shape.rank == 1 else [too_many, -1]
    cut = tf.slice(rows, tf.zeros([rows.shape.rank], tf.int32), tf.stack(sizes))
    missing = [size - tf.shape(cut)[0]] if rows.shape.rank == 1 else [size - tf.shape(cut)[0], 0]
    return tf.pad(cut, tf.stack([tf.zeros([rows.shape.rank], tf.int32), tf.stack(missing)], 1))
