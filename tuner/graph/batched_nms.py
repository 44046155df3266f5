"""Multi-class non-max suppression of a whole batch in a few ops, with the same result as one kernel for each class."""

from dataclasses import dataclass

import tensorflow as tf
from tensorflow.core.framework.node_def_pb2 import NodeDef

from tuner.graph.clipped_first import ClippedFirstReader
from tuner.graph.map_loop import find_map_loops, resolve
from tuner.graph.multi_class_nms import MultiClassNms, Suppression
from tuner.graph.nms_reader import NmsReader
from tuner.graph.splice import Source, replace_nodes
from tuner.model.graph_view import GraphView

# So many pairs of a box and a class for each detection, the best of the image, are looked at first. Suppression leaves
# one of two on the detectors at hand; where it leaves fewer than one of five, every pair is looked at.
CANDIDATES_PER_DETECTION = 5


def batch_multi_class_nms(graph: GraphView) -> GraphView:
    """Rewrite every map loop of the Object Detection API's multi-class suppression; its results keep their names.

    Raises NotRecognisedError for a loop that suppresses in a way that is not known.
    """
    for loop in find_map_loops(graph):
        # V4 is what is written here, for the pairs beyond the best: a graph can be rewritten already.
        kernels = [node for node in loop.body(graph).values() if _is_kernel(node)]
        if kernels:
            compares_raw_boxes = resolve(graph, kernels[0].input[0]).op == "Unpack"
            reader = NmsReader if compares_raw_boxes else ClippedFirstReader
            graph = _rewritten(graph, reader(graph, loop, kernels).read())
    return graph


def _is_kernel(node: NodeDef) -> bool:
    return str(node.op).startswith("NonMaxSuppression") and node.op != "NonMaxSuppressionV4"


def _rewritten(graph: GraphView, nms: MultiClassNms) -> GraphView:
    how = nms.suppression
    inputs: dict[str, Source] = {
        "boxes": (how.boxes, tf.float32, [None, None, how.boxes_per_anchor, 4]),
        "scores": (how.scores, tf.float32, [None, None, how.classes]),
        "window": (nms.window, tf.float32, [4] if nms.window_is_shared else [None, 4]),
        "valid": (how.valid, tf.int32, [None]),
        **{gather: (source, tf.float32, [None, None, None]) for gather, source in nms.attributes.items()},
    }
    return replace_nodes(graph, f"{nms.scope}/batched", inputs, lambda given: _results(nms, given))


@dataclass(frozen=True)
class _Pairs:
    """Boxes with a class, the best of each image first.

    boxes, classes: [batch, n] int32, row of the box and its class. scores: [batch, n], -1 where there is no pair.
    """

    boxes: tf.Tensor
    classes: tf.Tensor
    scores: tf.Tensor


def _results(nms: MultiClassNms, given: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """The value of every result of the suppression, by the name of its node."""
    how, boxes, scores, window = nms.suppression, given["boxes"], given["scores"], given["window"]
    if nms.window_is_shared:
        window = tf.tile(window[tf.newaxis], [tf.shape(scores)[0], 1])
    if nms.clipped_first:
        boxes, scores = _clipped_first(nms, boxes, scores, window)
        boxes = tf.reshape(boxes, [-1, tf.shape(scores)[1], how.boxes_per_anchor, 4])
    counted = tf.range(tf.shape(scores)[1])[tf.newaxis] < given["valid"][:, tf.newaxis]
    among_best, complete = _best_pairs(how, CANDIDATES_PER_DETECTION * nms.max_total, scores, counted)
    quick = _visible(nms, _suppressed(how, boxes, among_best), boxes, window)
    enough = tf.reduce_all(complete | tf.equal(quick[-1], nms.max_total))
    # The overlap of two infinite areas is no number: the kernel for one class suppresses one, the combined one neither.
    enough &= tf.reduce_all(tf.math.is_finite(_area(boxes)))
    kept_boxes, kept_classes, kept_scores, count = tf.compat.v1.cond(
        enough,
        lambda: quick,
        lambda: _visible(nms, _suppressed_by_class(how, boxes, scores, counted), boxes, window),
    )
    is_row = tf.range(nms.max_total)[tf.newaxis] < count[:, tf.newaxis]

    def padded(rows: tf.Tensor) -> tf.Tensor:
        """Zeros in the rows after the last detection."""
        return tf.where(is_row[..., tf.newaxis] if rows.shape.rank == 3 else is_row, rows, tf.zeros((), rows.dtype))

    clipped = _gather_boxes(boxes, kept_boxes, kept_classes)
    if not nms.clipped_first:
        clipped = _clip(clipped, window)
        if nms.relative_to_window:
            clipped = _into(clipped, window)
    results: dict[str | None, tf.Tensor] = {
        nms.boxes_out: padded(clipped),
        nms.scores_out: padded(kept_scores),
        nms.classes_out: padded(tf.cast(kept_classes, tf.float32)),
        nms.count_out: count,
        **{gather: padded(tf.gather(given[gather], kept_boxes, batch_dims=1)) for gather in nms.attributes},
    }
    return {name: value for name, value in results.items() if name is not None}


def _best_pairs(how: Suppression, candidates: int, scores: tf.Tensor, counted: tf.Tensor) -> tuple[_Pairs, tf.Tensor]:
    """The `candidates` pairs of highest scores, and for each image whether no other pair can be a detection.

    Pairs of equal scores stand in the order of their class, then of their row. Those at the lowest score are left out,
    since some of their equals may not be here.
    """
    rows = tf.shape(scores)[1]
    # A box that is in one of the best n pairs is one of the n boxes of highest best score.
    best = tf.where(counted, tf.reduce_max(scores, 2), -1.0)
    near = tf.math.top_k(best, tf.minimum(candidates, rows)).indices
    near = tf.sort(near, axis=1)
    near_scores = tf.where(
        tf.gather(counted, near, batch_dims=1)[..., tf.newaxis], tf.gather(scores, near, batch_dims=1), -1.0
    )
    near_rows = tf.shape(near)[1]
    by_class = tf.reshape(tf.transpose(near_scores, [0, 2, 1]), [-1, how.classes * near_rows])
    pairs = tf.math.top_k(by_class, tf.minimum(candidates, how.classes * near_rows))
    is_all = tf.equal(tf.shape(pairs.indices)[1], how.classes * rows)
    lowest = tf.where(is_all, -1.0, pairs.values[:, -1])
    threshold = tf.maximum(lowest, how.score_threshold)[:, tf.newaxis]
    found = _Pairs(
        tf.gather(near, pairs.indices % near_rows, batch_dims=1),
        pairs.indices // near_rows,
        tf.where(pairs.values > threshold, pairs.values, -1.0),
    )
    return found, lowest <= how.score_threshold


def _suppressed(how: Suppression, boxes: tf.Tensor, pairs: _Pairs) -> _Pairs:
    """The pairs that no better pair of their class suppresses, by one kernel for all classes.

    The kernel does not say which boxes it keeps and leaves the order of equal scores open, so it is given the pairs'
    ranks for scores.
    """
    count = tf.shape(pairs.scores)[1]
    ranks = tf.where(pairs.scores >= 0, tf.cast(tf.range(count, 0, -1), tf.float32)[tf.newaxis], 0.0)
    # Most of the kernel's time goes by the number of classes, of which a picture has few.
    present, renumbered = tf.unique(tf.reshape(pairs.classes, [-1]))
    of_class = tf.one_hot(tf.reshape(renumbered, tf.shape(pairs.classes)), tf.size(present))
    kept_ranks = tf.image.combined_non_max_suppression(
        _gather_boxes(boxes, pairs.boxes, pairs.classes)[:, :, tf.newaxis],
        of_class * ranks[..., tf.newaxis],
        max_output_size_per_class=how.max_per_class,
        max_total_size=count,
        iou_threshold=how.iou_threshold,
        score_threshold=0.5,
        clip_boxes=False,
    ).nmsed_scores
    position = tf.minimum(count - tf.cast(kept_ranks, tf.int32), count - 1)
    return _Pairs(
        tf.gather(pairs.boxes, position, batch_dims=1),
        tf.gather(pairs.classes, position, batch_dims=1),
        tf.where(kept_ranks > 0, tf.gather(pairs.scores, position, batch_dims=1), -1.0),
    )


def _suppressed_by_class(how: Suppression, boxes: tf.Tensor, scores: tf.Tensor, counted: tf.Tensor) -> _Pairs:
    """The same from all pairs, class after class."""
    rows = tf.shape(scores)[1]
    of_classes = tf.reshape(tf.transpose(tf.where(counted[..., tf.newaxis], scores, -1.0), [0, 2, 1]), [-1, rows])
    limit = tf.minimum(how.max_per_class, rows)

    def kept(number: tf.Tensor) -> tf.Tensor:
        of_class = 0 if how.boxes_per_anchor == 1 else number % how.classes
        selected, valid = tf.raw_ops.NonMaxSuppressionV4(
            boxes=boxes[number // how.classes, :, of_class],
            scores=of_classes[number],
            max_output_size=limit,
            iou_threshold=how.iou_threshold,
            score_threshold=how.score_threshold,
            pad_to_max_output_size=True,
        )
        return tf.where(tf.range(limit) < valid, selected, -1)

    selected = tf.map_fn(kept, tf.range(tf.shape(of_classes)[0]), fn_output_signature=tf.int32)
    values = tf.where(selected >= 0, tf.gather(of_classes, tf.maximum(selected, 0), batch_dims=1), -1.0)
    ordered = tf.math.top_k(tf.reshape(values, [-1, how.classes * limit]), how.classes * limit)
    return _Pairs(
        tf.maximum(tf.gather(tf.reshape(selected, [-1, how.classes * limit]), ordered.indices, batch_dims=1), 0),
        ordered.indices // limit,
        ordered.values,
    )


def _visible(
    nms: MultiClassNms, pairs: _Pairs, boxes: tf.Tensor, window: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Boxes, classes and scores of the first pairs in the window, each [batch, max_total], and their number."""
    is_visible = pairs.scores >= 0
    if not nms.clipped_first:
        is_visible &= _area(_clip(_gather_boxes(boxes, pairs.boxes, pairs.classes), window)) > 0
    count = tf.shape(pairs.scores)[1]
    ranks = tf.where(is_visible, tf.range(count, 0, -1)[tf.newaxis], 0)
    first = tf.math.top_k(ranks, tf.minimum(nms.max_total, count)).indices
    first = tf.reshape(tf.pad(first, [[0, 0], [0, nms.max_total - tf.shape(first)[1]]]), [-1, nms.max_total])
    chosen = (tf.gather(values, first, batch_dims=1) for values in (pairs.boxes, pairs.classes, pairs.scores))
    number = tf.reduce_sum(tf.cast(is_visible, tf.int32), 1)
    return (*chosen, tf.minimum(number, nms.max_total))


def _gather_boxes(boxes: tf.Tensor, rows: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
    """[batch, n, 4]: the boxes in these rows, of these classes where each class has its own."""
    if boxes.shape[2] == 1:
        return tf.gather(boxes[:, :, 0], rows, batch_dims=1)
    return tf.gather_nd(boxes, tf.stack([rows, classes], 2), batch_dims=1)


def _clipped_first(
    nms: MultiClassNms, boxes: tf.Tensor, scores: tf.Tensor, window: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Boxes clipped to the window, and scores with -1 for those outside."""
    flat = _clip(tf.reshape(boxes, [tf.shape(boxes)[0], -1, 4]), window)
    areas = tf.reshape(_area(flat), tf.shape(boxes)[:3])
    if nms.relative_to_window:
        flat = _into(flat, window)
    return tf.reshape(flat, tf.shape(boxes)), tf.where(areas > 0, scores, -1.0)


def _area(boxes: tf.Tensor) -> tf.Tensor:
    sides = boxes[..., 2:] - boxes[..., :2]
    return sides[..., 0] * sides[..., 1]


def _into(boxes: tf.Tensor, window: tf.Tensor) -> tf.Tensor:
    """Boxes [batch, n, 4] in the coordinates of the window [batch, 4], which are 0 to 1."""
    low, high = window[:, tf.newaxis, :2], window[:, tf.newaxis, 2:]
    return tf.tile(1.0 / (high - low), [1, 1, 2]) * (boxes - tf.tile(low, [1, 1, 2]))


def _clip(boxes: tf.Tensor, window: tf.Tensor) -> tf.Tensor:
    """Boxes [batch, n, 4] with their corners moved into the window [batch, 4]."""
    low, high = (tf.tile(window[:, tf.newaxis, part], [1, 1, 2]) for part in (slice(0, 2), slice(2, 4)))
    return tf.maximum(tf.minimum(boxes, high), low)
