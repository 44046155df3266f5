"""Which values the inputs of the convolutions take: collected once, over the calibration images, in this process."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.core.framework.graph_pb2 import GraphDef

from tuner.errors import QuantizationError
from tuner.model.detection_model import DetectionModel
from tuner.model.runner import ModelRunner
from tuner.quantization.nodes import const_node, op_node


@dataclass(frozen=True, slots=True)
class TensorRange:
    """The extremes of one tensor, kept apart for every calibration image and channel (its last axis).

    lows, highs: [images, channels] float32, in the tensor's own unit, finite, lows <= highs.
    """

    lows: NDArray[np.float32]
    highs: NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.lows.ndim != 2 or self.lows.shape != self.highs.shape or not self.lows.size:
            raise QuantizationError(
                "range needs lows and highs of one shape [images, channels], "
                f"got {self.lows.shape} and {self.highs.shape}"
            )
        if not (np.isfinite(self.lows).all() and np.isfinite(self.highs).all() and (self.lows <= self.highs).all()):
            raise QuantizationError("range must be finite with low <= high")

    @property
    def low(self) -> float:
        """The smallest value over all images and channels."""
        return float(self.lows.min())

    @property
    def high(self) -> float:
        """The largest value over all images and channels."""
        return float(self.highs.max())

    @property
    def channels(self) -> int:
        """Length of the tensor's last axis."""
        return int(self.lows.shape[1])

    def first(self, images: int) -> "TensorRange":
        """What would have been observed over the first `images` images only."""
        return TensorRange(self.lows[:images], self.highs[:images])


Ranges = Mapping[str, TensorRange]


def first_images(ranges: Ranges, images: int) -> Ranges:
    """The ranges as a calibration over the first `images` images would have found them."""
    return {tensor: observed.first(images) for tensor, observed in ranges.items()}


def collect_ranges(model: DetectionModel, tensors: Sequence[str], images: Iterable[NDArray[np.generic]]) -> Ranges:
    """Run the float graph once over the calibration images and keep the extremes of `tensors`.

    tensors: names of float tensors with the channels last. images: each [1, H, W, 3], as the model takes them.
    An image in which a tensor is empty (no proposals for a second stage) tells nothing about it: the next image that
    does stands in for it. Raises QuantizationError, naming the tensor, when a value is NaN or infinite or the tensor is
    empty in every image, and when there are no images.
    """
    probed, low_names, high_names = _with_extremes(model, tensors)
    lows: list[list[NDArray[np.float32]]] = []
    highs: list[list[NDArray[np.float32]]] = []
    with ModelRunner(probed) as runner:
        for image in images:
            values = runner.run(image)
            lows.append([values[name] for name in low_names])
            highs.append([values[name] for name in high_names])
    if not lows:
        raise QuantizationError("no calibration images: at least one is needed to collect ranges")
    ranges: dict[str, TensorRange] = {}
    for index, tensor in enumerate(tensors):
        try:
            ranges[tensor] = _observed(
                np.stack([low[index] for low in lows]), np.stack([high[index] for high in highs])
            )
        except QuantizationError as error:
            raise QuantizationError(f"{tensor}: {error}") from None
    return ranges


def _observed(lows: NDArray[np.float32], highs: NDArray[np.float32]) -> TensorRange:
    """The range of [images, channels] extremes; the Min of an empty tensor is +inf, its Max -inf."""
    empty = (lows == np.inf).all(1) & (highs == -np.inf).all(1)
    if empty.all():
        raise QuantizationError("the tensor is empty in every calibration image")
    count = len(empty)
    told_by = [next(i % count for i in range(index, index + count) if not empty[i % count]) for index in range(count)]
    return TensorRange(lows[told_by], highs[told_by])


def _with_extremes(model: DetectionModel, tensors: Sequence[str]) -> tuple[DetectionModel, list[str], list[str]]:
    """The model with a Min and a Max over all axes but the last for each tensor, as its only outputs."""
    graph_def = GraphDef()
    graph_def.CopyFrom(model.graph_def)
    # Range(0, Rank - 1) and not [0, 1, 2]: the tensors of a second stage need not have four axes.
    graph_def.node.extend([const_node("calibration/zero", np.int32(0)), const_node("calibration/one", np.int32(1))])
    outputs: dict[str, list[str]] = {"Min": [], "Max": []}
    for index, tensor in enumerate(tensors):
        scope = f"calibration/{index}"
        graph_def.node.extend(
            [
                op_node("Rank", f"{scope}/rank", [tensor], T=tf.float32),
                op_node("Sub", f"{scope}/last", [f"{scope}/rank", "calibration/one"], T=tf.int32),
                op_node(
                    "Range", f"{scope}/axes", ["calibration/zero", f"{scope}/last", "calibration/one"], Tidx=tf.int32
                ),
            ]
        )
        for op, names in outputs.items():
            name = f"{scope}/{op}"
            graph_def.node.append(
                op_node(op, name, [tensor, f"{scope}/axes"], T=tf.float32, Tidx=tf.int32, keep_dims=False)
            )
            names.append(f"{name}:0")
    probed = replace(model, graph_def=graph_def, outputs=(*outputs["Min"], *outputs["Max"]))
    return probed, outputs["Min"], outputs["Max"]
