"""Small detectors of two and three stages, with the structure and the names of the Object Detection API's exports.

They are trained on nothing: the weights are random, each variable's seeded by its name and scaled so that activations
keep their spread.
"""

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow.core.framework.graph_pb2 import GraphDef

from tests.graph.conftest import Nms, resized, suppress, tf1_graph

tf1 = tf.compat.v1

CLASSES = 8
PROPOSALS = 16
DETECTIONS = 6
MASK_SIDE = 15
CROP_SIDE = 6
STRIDE = 4
# Height and width of the anchors in pixels, one for each aspect ratio.
ANCHORS = [(8.0, 16.0), (11.0, 11.0), (16.0, 8.0)]

DETECTION_OUTPUTS = ("detection_boxes", "detection_scores", "detection_classes", "num_detections")
MASK_OUTPUTS = (*DETECTION_OUTPUTS, "detection_masks")


def write_export(folder: Path, *, masks: bool) -> None:
    """What `export_inference_graph` writes: `frozen_inference_graph.pb`, `model.ckpt.*` and `saved_model/`."""
    outputs = MASK_OUTPUTS if masks else DETECTION_OUTPUTS
    with tf1_graph() as graph, tf1.Session(graph=graph) as session:
        _detector(masks)
        session.run(tf1.global_variables_initializer())
        frozen: GraphDef = tf1.graph_util.convert_variables_to_constants(session, graph.as_graph_def(), list(outputs))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "frozen_inference_graph.pb").write_bytes(frozen.SerializeToString())
        tf1.train.Saver().save(session, str(folder / "model.ckpt"))
        tensors = {name: graph.get_tensor_by_name(f"{name}:0") for name in ("image_tensor", *outputs)}
        infos = {name: tf1.saved_model.build_tensor_info(tensor) for name, tensor in tensors.items()}
        signature = tf1.saved_model.build_signature_def(
            {"inputs": infos.pop("image_tensor")}, infos, "tensorflow/serving/predict"
        )
        builder = tf1.saved_model.Builder(str(folder / "saved_model"))
        builder.add_meta_graph_and_variables(session, ["serve"], {"serving_default": signature})
        builder.save()


def _detector(masks: bool) -> None:
    """Images in, detections out: each of `MASK_OUTPUTS` is a node of the graph, the last one if there are masks."""
    image = tf1.placeholder(tf.uint8, [None, None, None, 3], name="image_tensor")
    # Sides of 24 to 40 pixels, whichever way the picture lies.
    pixels, shapes = resized(tf.cast(image, tf.float32), "keep_ratio")
    with tf1.name_scope("Preprocessor/"):
        pixels = tf.subtract(tf.multiply(2.0 / 255.0, pixels, name="mul"), 1.0, name="sub")
    sizes = tf.cast(shapes[:, :2], tf.float32)
    features = _first_stage_features(pixels)
    proposals = _proposals(features, sizes)
    encodings, scores = _box_heads(_second_stage_features(_crops(features, _normalized(proposals, sizes))))
    boxes, scores, classes, number = _detections(proposals, encodings, scores, sizes)
    results = dict(zip(DETECTION_OUTPUTS, (boxes, scores, classes + 1.0, tf.cast(number, tf.float32)), strict=True))
    if masks:
        # The third stage has the second one's variables, under node names of its own.
        cropped = _second_stage_features(_crops(features, boxes))
        results["detection_masks"] = _masks(cropped, classes)
    for name, value in results.items():
        tf.identity(value, name=name)


def _first_stage_features(pixels: tf.Tensor) -> tf.Tensor:
    """A stem, two branches that meet, and a residual block: [N, H/4, W/4, 32]."""
    with _inside("FirstStageFeatureExtractor"):
        data = _convolve(pixels, "stem", 16, stride=2)
        data = tf1.nn.max_pool2d(data, 3, 2, "SAME", name="MaxPool")
        left = _convolve(data, "mixed/branch_0", 16, side=1)
        right = _convolve(_convolve(data, "mixed/branch_1a", 8, side=1), "mixed/branch_1b", 16)
        shortcut = tf.concat([left, right], 3, name="mixed/concat")
        data = _convolve(_convolve(shortcut, "unit/conv1", 16, side=1), "unit/conv2", 32, activation=False)
        return tf.nn.relu(tf.add(shortcut, data, name="unit/add"), name="unit/Relu")


def _second_stage_features(crops: tf.Tensor) -> tf.Tensor:
    """[N * proposals, side, side, 128]."""
    with _inside("SecondStageFeatureExtractor"):
        left = _convolve(crops, "mixed/branch_0", 24, side=1)
        right = _convolve(_convolve(crops, "mixed/branch_1a", 8, side=1), "mixed/branch_1b", 16)
        return _convolve(tf.concat([left, right], 3, name="mixed/concat"), "last", 128)


def _proposals(features: tf.Tensor, sizes: tf.Tensor) -> tf.Tensor:
    """What the first stage takes for objects: boxes in pixels, [N, proposals, 4]. sizes: of the images, [N, 2]."""
    head = tf.nn.relu6(_convolve_with_bias(features, "Conv", 24, side=3), name="Conv/Relu6")
    number = len(ANCHORS)
    with _inside("FirstStageBoxPredictor"):
        batch = tf.shape(head)[0]
        encodings = _convolve_with_bias(head, "BoxEncodingPredictor", 4 * number)
        encodings = tf.reshape(encodings, tf.stack([batch, -1, 1, 4]))
        scores = tf.reshape(_convolve_with_bias(head, "ClassPredictor", 2 * number), tf.stack([batch, -1, 2]))
    anchors = tf.tile(_anchors(tf.shape(features)), tf.stack([batch, 1]))
    boxes = _decoded(tf.reshape(tf.squeeze(encodings, [2]), [-1, 4]), anchors, "Decode")
    boxes = tf.reshape(boxes, tf.stack([batch, -1, 1, 4]))
    how = Nms(classes=1, max_per_class=PROPOSALS, max_total=PROPOSALS, iou_threshold=0.7, score_threshold=0.0)
    return _suppressed(how, boxes, tf.nn.softmax(scores)[:, :, 1:], sizes, "BatchMultiClassNonMaxSuppression")[0]


def _anchors(shape: tf.Tensor) -> tf.Tensor:
    """Of each place of the features and each aspect ratio, ymin xmin ymax xmax in pixels: [H * W * ratios, 4]."""
    with tf1.name_scope("GridAnchorGenerator"):
        rows, columns = tf.meshgrid(tf.range(shape[1]), tf.range(shape[2]), indexing="ij")
        centers = tf.reshape(tf.cast(tf.stack([rows, columns], 2), tf.float32) * STRIDE, [-1, 1, 2])
        sides = tf.constant(ANCHORS) / 2
        return tf.reshape(tf.concat([centers - sides, centers + sides], 2), [-1, 4])


def _decoded(encodings: tf.Tensor, anchors: tf.Tensor, scope: str) -> tf.Tensor:
    """Boxes [K, 4] from what the network says of each anchor: y, x, height, width, in units of the anchor's."""
    with tf1.name_scope(scope):
        top, left, bottom, right = tf.unstack(tf.transpose(anchors), 4)
        height, width = bottom - top, right - left
        y, x, h, w = tf.unstack(tf.transpose(encodings), 4)
        h, w = tf.exp(h / 5.0) * height, tf.exp(w / 5.0) * width
        y, x = y / 10.0 * height + (top + height / 2.0), x / 10.0 * width + (left + width / 2.0)
        return tf.transpose(tf.stack([y - h / 2.0, x - w / 2.0, y + h / 2.0, x + w / 2.0]))


def _suppressed(how: Nms, boxes: tf.Tensor, scores: tf.Tensor, sizes: tf.Tensor, scope: str) -> list[tf.Tensor]:
    """Boxes, scores, classes and numbers of what stays, image by image in a loop."""
    window = tf.concat([tf.zeros_like(sizes), sizes], 1)
    valid = tf.fill(tf.shape(boxes)[:1], tf.shape(boxes)[1])
    names = suppress(how, boxes, scores, window, valid, scores, scope=scope)
    return [tf1.get_default_graph().get_tensor_by_name(f"{name}:0") for name in names]


def _normalized(boxes: tf.Tensor, sizes: tf.Tensor) -> tf.Tensor:
    """Boxes [N, K, 4] as shares of the image, in a loop over the images."""

    def one(parts: Sequence[tf.Tensor]) -> tf.Tensor:
        return tf.stack([1.0 / parts[1][0], 1.0 / parts[1][1]] * 2) * parts[0]

    return tf.map_fn(one, (boxes, sizes), fn_output_signature=tf.float32)


def _crops(features: tf.Tensor, boxes: tf.Tensor) -> tf.Tensor:
    """The features in each box of [N, K, 4], resized and pooled: [N * K, side / 2, side / 2, channels]."""
    side = CROP_SIDE
    with tf1.name_scope("CropAndResize"):
        shape = tf.shape(boxes)
        images = tf.reshape(tf.ones(shape[:2], tf.int32) * tf.expand_dims(tf.range(shape[0]), 1), [-1])
        flat = tf.reshape(boxes, [-1, 4])
        crops = tf.image.crop_and_resize(features, flat, images, [side, side], name="CropAndResize")
        crops = tf.reshape(crops, tf.concat([shape[:2], tf.shape(crops)[1:]], 0))
    crops = tf.reshape(crops, tf.stack([-1, side, side, features.shape[-1]]))
    return tf1.nn.max_pool2d(crops, 2, 2, "SAME", name="MaxPool2D/MaxPool")


def _box_heads(features: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Box encodings [K, classes, 4], and what speaks for the background and each class, [K, classes + 1]."""
    with _inside("SecondStageBoxPredictor"):
        boxes = _connect(_flat_mean(features, "AvgPool"), "BoxEncodingPredictor", 4 * CLASSES)
        return tf.reshape(boxes, [-1, CLASSES, 4]), _connect(
            _flat_mean(features, "AvgPool_1"), "ClassPredictor", CLASSES + 1, gain=8.0
        )


def _detections(proposals: tf.Tensor, encodings: tf.Tensor, scores: tf.Tensor, sizes: tf.Tensor) -> list[tf.Tensor]:
    """Boxes as shares of the image [N, K, 4], scores [N, K], classes from 0 on [N, K] and numbers [N]."""
    anchors = tf.tile(tf.expand_dims(tf.reshape(proposals, [-1, 4]), 1), [1, CLASSES, 1])
    decoded = _decoded(tf.reshape(encodings, [-1, 4]), tf.reshape(anchors, [-1, 4]), "Decode_1")
    boxes = tf.reshape(decoded, [-1, PROPOSALS, CLASSES, 4])
    by_class = tf.reshape(tf.nn.softmax(scores)[:, 1:], [-1, PROPOSALS, CLASSES])
    how = Nms(
        classes=CLASSES, own_boxes=True, score_threshold=0.0, max_per_class=4, max_total=DETECTIONS, relative=True
    )
    return _suppressed(how, boxes, by_class, sizes, "BatchMultiClassNonMaxSuppression_1")


def _masks(features: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
    """The mask of each detection's own class, [N, K, 15, 15]. features: of each detection's crop."""
    with _inside("SecondStageBoxPredictor"):
        data = tf1.image.resize_bilinear(features, [MASK_SIDE, MASK_SIDE], align_corners=True, name="ResizeBilinear")
        data = tf.nn.relu(_convolve_with_bias(data, "Conv", 16, side=3), name="Conv/Relu")
        data = tf.transpose(_convolve_with_bias(data, "Conv_1", CLASSES, side=3), [0, 3, 1, 2])
    rows = tf.range(tf.size(classes)) * CLASSES + tf.cast(tf.reshape(classes, [-1]), tf.int32)
    own = tf.sigmoid(tf.gather(tf.reshape(data, [-1, MASK_SIDE, MASK_SIDE]), rows))
    return tf.reshape(own, tf.stack([tf.shape(classes)[0], -1, MASK_SIDE, MASK_SIDE]))


def _inside(scope: str) -> tf1.variable_scope:
    """A scope of variables, and of nodes: entered again the former are the same, the latter get a number."""
    return tf1.variable_scope(scope, reuse=tf1.AUTO_REUSE, use_resource=False)


def _variable(name: str, shape: Sequence[int], spread: float, center: float = 0.0) -> tf.Tensor:
    full_name = f"{tf1.get_variable_scope().name}/{name}"
    random = np.random.default_rng(zlib.crc32(full_name.encode()))
    return tf1.get_variable(name, initializer=(center + spread * random.normal(size=shape)).astype(np.float32))


def _convolve(
    data: tf.Tensor, name: str, out: int, *, side: int = 3, stride: int = 1, activation: bool = True
) -> tf.Tensor:
    """Convolution, BatchNorm with statistics of its own, and Relu6."""
    with _inside(name):
        fan_in = side * side * data.shape[-1]
        weights = _variable("weights", [side, side, data.shape[-1], out], (2 / fan_in) ** 0.5)
        data = tf1.nn.conv2d(data, weights, [1, stride, stride, 1], "SAME", name="Conv2D")
        with _inside("BatchNorm"):
            scale, offset = _variable("gamma", [out], 0.2, center=1.0), _variable("beta", [out], 0.1)
            mean, spread = _variable("moving_mean", [out], 0.1), _variable("moving_variance", [out], 0.05, center=1.0)
            data, *_ = tf1.nn.fused_batch_norm(
                data, scale, offset, mean, spread, epsilon=1e-3, is_training=False, name="FusedBatchNormV3"
            )
        return tf.nn.relu6(data, name="Relu6") if activation else data


def _convolve_with_bias(data: tf.Tensor, name: str, out: int, *, side: int = 1) -> tf.Tensor:
    with _inside(name):
        weights = _variable("weights", [side, side, data.shape[-1], out], (1 / (side * side * data.shape[-1])) ** 0.5)
        data = tf1.nn.conv2d(data, weights, [1, 1, 1, 1], "SAME", name="Conv2D")
        return tf.nn.bias_add(data, _variable("biases", [out], 0.1), name="BiasAdd")


def _connect(rows: tf.Tensor, name: str, out: int, *, gain: float = 1.0) -> tf.Tensor:
    """MatMul and bias. gain: how far from each other the results are."""
    with _inside(name):
        weights = _variable("weights", [rows.shape[-1], out], gain * rows.shape[-1] ** -0.5)
        return tf.nn.bias_add(tf.matmul(rows, weights, name="MatMul"), _variable("biases", [out], 0.1), name="BiasAdd")


def _flat_mean(features: tf.Tensor, name: str) -> tf.Tensor:
    """The mean over rows and columns, as one row for each crop."""
    mean = tf.reduce_mean(features, [1, 2], keepdims=True, name=name)
    with tf1.name_scope("Flatten/flatten"):
        return tf.reshape(mean, tf.stack([tf.shape(mean)[0], features.shape[-1]]))
