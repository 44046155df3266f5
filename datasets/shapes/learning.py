"""How the shapes detector learns: targets, loss, augmentation, Adam with a cosine schedule."""

import math
import time
from collections.abc import Iterable, Iterator

import network
import numpy as np
import tensorflow as tf
from scenes import CATEGORIES, JPEG_QUALITY, MOST_OBJECTS, Scene

_PEAK_LEARNING_RATE = 4e-3
_WARM_UP_STEPS = 200
_WEIGHT_DECAY = 1e-3
_GRADIENT_NORM_LIMIT = 5.0
_STATISTICS_MOMENTUM = 0.98
_ADAM_DECAYS = (0.9, 0.999)
_MATCH_IOU = 0.5
_IGNORE_IOU = 0.4
_FOCAL_ALPHA, _FOCAL_GAMMA = 0.4, 2.0
_SMOOTH_L1_KNEE = 0.3
_PRIOR = 0.01

# Images, boxes, class indices, as `make_examples` returns them.
Examples = tuple[np.ndarray, np.ndarray, np.ndarray]
Tensors = tuple[tf.Tensor, tf.Tensor, tf.Tensor]


class _Variables:
    """Weights in training: made at first use, and the running statistics of every BatchNorm."""

    training = True

    def __init__(self, seed: int) -> None:
        self.trained: dict[str, tf.Variable] = {}
        self.statistics: dict[str, tf.Variable] = {}
        self._rng = np.random.default_rng(seed)

    def get(self, name: str, shape: tuple[int, ...], start: str) -> tf.Variable:
        """Return the variable of this name, made on first use."""
        if name not in self.trained:
            with tf.init_scope():
                self.trained[name] = tf.Variable(self._first_value(shape, start), dtype=tf.float32)
        return self.trained[name]

    def record_statistics(self, scope: str, mean: tf.Tensor, variance: tf.Tensor) -> None:
        """Move the running mean and variance of one BatchNorm towards this batch's."""
        for leaf, value, first in (("moving_mean", mean, tf.zeros), ("moving_variance", variance, tf.ones)):
            name = f"{scope}/{leaf}"
            if name not in self.statistics:
                with tf.init_scope():
                    self.statistics[name] = tf.Variable(first(value.shape))
            running = self.statistics[name]
            running.assign_sub((1 - _STATISTICS_MOMENTUM) * (running - value))

    def values(self) -> dict[str, np.ndarray]:
        """Return every weight and statistic by name."""
        return {name: variable.numpy() for name, variable in (self.trained | self.statistics).items()}

    def _first_value(self, shape: tuple[int, ...], start: str) -> np.ndarray:
        if start == "zeros":
            return np.zeros(shape)
        if start == "ones":
            return np.ones(shape)
        if start == "rare":  # every anchor begins by saying that objects are rare
            return np.full(shape, -math.log((1 - _PRIOR) / _PRIOR))
        if start == "head":
            return self._rng.normal(0, 0.01, shape)
        fan_in = shape[0] * shape[1] * (shape[2] if shape[3] > 1 else 1)
        return self._rng.normal(0, math.sqrt(2 / fan_in), shape)


def make_examples(scenes: Iterable[Scene]) -> Examples:
    """Return images [S, side, side, 3] uint8, boxes [S, MOST_OBJECTS, 4] float32 and class indices [S, MOST_OBJECTS].

    The images went through JPEG and the network's own resizing. Padding: boxes of zeros, class -1.
    """
    class_indices = {category_id: index for index, category_id in enumerate(CATEGORIES)}
    images, boxes, classes = [], [], []
    for scene in scenes:
        images.append(_shrink(tf.constant(scene.image)).numpy())
        padding = MOST_OBJECTS - len(scene.category_ids)
        boxes.append(np.pad(scene.boxes, ((0, padding), (0, 0))))
        classes.append([class_indices[i] for i in scene.category_ids.tolist()] + [-1] * padding)
    return np.stack(images), np.array(boxes, np.float32), np.array(classes, np.int32)


@tf.function(input_signature=[tf.TensorSpec([None, None, 3], tf.uint8)])
def _shrink(image: tf.Tensor) -> tf.Tensor:
    image = tf.io.decode_jpeg(tf.io.encode_jpeg(image, quality=JPEG_QUALITY))
    pixels = network.preprocess(image[None])[0]
    return tf.cast(tf.round((pixels + 1) * 127.5), tf.uint8)


def train(examples: Examples, steps: int, batch: int, seed: int) -> dict[str, np.ndarray]:
    """Return the weights and BatchNorm statistics by name after `steps` batches, printing the loss every 100."""
    tf.random.set_seed(seed)
    variables = _Variables(seed)
    moments: list[tuple[tf.Variable, tf.Variable]] = []

    @tf.function
    def step(examples: Tensors, rate: tf.Tensor, first_decay: tf.Tensor, second_decay: tf.Tensor) -> tf.Tensor:
        images, boxes, classes = examples
        with tf.GradientTape() as tape:
            encodings, logits = network.predict(_jitter(images), variables)
            losses = _losses(encodings, logits, *_match(boxes, classes))
            total = tf.add_n(losses)
        trained = list(variables.trained.values())
        gradients, _ = tf.clip_by_global_norm(tape.gradient(total, trained), _GRADIENT_NORM_LIMIT)
        if not moments:
            with tf.init_scope():
                moments.extend((tf.Variable(tf.zeros_like(v)), tf.Variable(tf.zeros_like(v))) for v in trained)
        for variable, (first, second), gradient in zip(trained, moments, gradients, strict=True):
            if variable.shape.rank == 4:
                variable.assign_sub(rate * _WEIGHT_DECAY * variable)
            tf.raw_ops.ResourceApplyAdam(
                var=variable.handle,
                m=first.handle,
                v=second.handle,
                beta1_power=first_decay,
                beta2_power=second_decay,
                lr=rate,
                beta1=_ADAM_DECAYS[0],
                beta2=_ADAM_DECAYS[1],
                epsilon=1e-7,
                grad=gradient,
            )
        return tf.stack(losses)

    started = time.monotonic()
    recent = []
    for number, chosen in enumerate(_batches(examples, batch, seed).take(steps), start=1):
        decays = (tf.constant(decay**number) for decay in _ADAM_DECAYS)
        recent.append(step(chosen, tf.constant(_learning_rate(number, steps)), *decays).numpy())
        if number % 100 == 0 or number == steps:
            class_loss, box_loss = np.mean(recent, axis=0)
            elapsed_s = time.monotonic() - started
            print(f"step {number}/{steps}: class {class_loss:.3f}, box {box_loss:.3f}, {elapsed_s:.0f} s", flush=True)
            recent.clear()
    return variables.values()


def _learning_rate(step: int, steps: int) -> float:
    """Rise over the warm-up, then fall along a cosine to a hundredth of the peak."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return _PEAK_LEARNING_RATE * min(1.0, step / _WARM_UP_STEPS) * (0.01 + 0.99 * cosine)


def _batches(examples: Examples, batch: int, seed: int) -> tf.data.Dataset:
    """Batches without end, each flipped or turned into one of the square's eight symmetries, its colours exchanged."""
    images, boxes, classes = examples

    def draw() -> Iterator[Examples]:
        rng = np.random.default_rng(seed)
        while True:
            order = rng.permutation(len(images))
            for start in range(0, len(order) - batch + 1, batch):
                chosen = order[start : start + batch]
                yield *_turn(rng, images[chosen], boxes[chosen]), classes[chosen]

    side = network.INPUT_SIDE_PX
    signature = (
        tf.TensorSpec([batch, side, side, 3], tf.uint8),
        tf.TensorSpec([batch, MOST_OBJECTS, 4], tf.float32),
        tf.TensorSpec([batch, MOST_OBJECTS], tf.int32),
    )
    return tf.data.Dataset.from_generator(draw, output_signature=signature).prefetch(3)


def _turn(rng: np.random.Generator, images: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flip, transpose and exchange colour channels at random, which changes no object's category."""
    y_min, x_min, y_max, x_max = np.moveaxis(boxes, -1, 0)
    if rng.random() < 0.5:
        images, y_min, y_max = images[:, ::-1], 1 - y_max, 1 - y_min
    if rng.random() < 0.5:
        images, x_min, x_max = images[:, :, ::-1], 1 - x_max, 1 - x_min
    if rng.random() < 0.5:
        images, y_min, x_min, y_max, x_max = images.transpose(0, 2, 1, 3), x_min, y_min, x_max, y_max
    return images[..., rng.permutation(3)], np.stack([y_min, x_min, y_max, x_max], axis=-1)


def _jitter(images: tf.Tensor) -> tf.Tensor:
    """Bring uint8 images to the network's -1..1, with contrast and brightness changed at random."""
    pixels = tf.cast(images, tf.float32) * (2 / 255) - 1
    per_image = [tf.shape(images)[0], 1, 1, 1]
    contrast = tf.random.uniform(per_image, 0.8, 1.2)
    brightness = tf.random.uniform(per_image, -0.15, 0.15)
    return tf.clip_by_value(pixels * contrast + brightness, -1, 1)


def _match(boxes: tf.Tensor, classes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Give each anchor its object: matched boxes [N, A, 4] and class index [N, A] (-1 background, -2 ignored)."""
    anchors = network.anchors()
    anchor_low, anchor_high = anchors[:, :2] - anchors[:, 2:] / 2, anchors[:, :2] + anchors[:, 2:] / 2
    low = tf.maximum(boxes[:, :, None, :2], anchor_low)
    high = tf.minimum(boxes[:, :, None, 2:], anchor_high)
    shared = tf.reduce_prod(tf.maximum(high - low, 0), axis=-1)
    areas = tf.reduce_prod(boxes[..., 2:] - boxes[..., :2], axis=-1)[:, :, None]
    iou = shared / (areas + anchors[:, 2] * anchors[:, 3] - shared)  # [N, G, A]
    # The best anchors of each object are its own even below the threshold.
    best = (iou >= tf.math.top_k(iou, 2).values[..., -1:]) & (iou > 0.1)
    rank = iou + tf.cast(best, tf.float32)
    owner = tf.argmax(rank, axis=1, output_type=tf.int32)  # [N, A]
    strength = tf.reduce_max(rank, axis=1)
    class_targets = tf.gather(classes, owner, batch_dims=1)
    class_targets = tf.where(strength >= _MATCH_IOU, class_targets, tf.where(strength >= _IGNORE_IOU, -2, -1))
    return tf.gather(boxes, owner, batch_dims=1), class_targets


def _losses(
    encodings: tf.Tensor, logits: tf.Tensor, box_targets: tf.Tensor, class_targets: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Focal loss of the classes and smooth L1 loss of the box encodings, both per matched anchor."""
    matched = tf.cast(class_targets >= 0, tf.float32)
    matches = tf.maximum(tf.reduce_sum(matched), 1.0)
    wanted = tf.one_hot(class_targets, network.CLASS_COUNT)
    entropy = tf.nn.sigmoid_cross_entropy_with_logits(wanted, logits)
    probability = tf.sigmoid(logits)
    miss = tf.abs(wanted - probability)
    alpha = wanted * _FOCAL_ALPHA + (1 - wanted) * (1 - _FOCAL_ALPHA)
    focal = alpha * tf.pow(miss, _FOCAL_GAMMA) * entropy
    considered = tf.cast(class_targets > -2, tf.float32)
    class_loss = tf.reduce_sum(focal * considered[..., None]) / matches

    error = tf.abs(encodings - network.encode(box_targets))
    knee = _SMOOTH_L1_KNEE
    smooth = tf.where(error < knee, error * error / (2 * knee), error - knee / 2)
    box_loss = tf.reduce_sum(tf.where(matched[..., None] > 0, smooth, 0.0)) / matches
    return class_loss, box_loss
