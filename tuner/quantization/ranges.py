"""Which values the inputs of the convolutions take: collected once, over the calibration images, in this process."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.errors import QuantizationError
from tuner.model.detection_model import DetectionModel
from tuner.model.graph_view import node_name
from tuner.model.runner import ModelRunner
from tuner.quantization.histogram import BINS, Histogram, add_histograms
from tuner.quantization.range_probes import Probe, probes_of, with_probes


@dataclass(frozen=True, slots=True)
class TensorRange:
    """The values of one tensor, kept apart for every calibration image and, but for the counts, channel (last axis).

    lows, highs: [images, channels] float32, in the tensor's own unit, finite, lows <= highs.
    counts: [images, 2048], read through `histogram`; [0, 2048] where nothing was counted. An unsigned type wide enough:
        4 KiB for an image of most tensors.
    shape: of the tensor in the first image that it was not empty in; () where it was not recorded.
    ends: the range of the whole tensor, where an estimator has chosen another one than from extreme to extreme.
    """

    lows: NDArray[np.float32]
    highs: NDArray[np.float32]
    counts: NDArray[np.unsignedinteger[Any]] = field(default_factory=lambda: np.zeros((0, BINS), np.uint8))
    shape: tuple[int, ...] = ()
    ends: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.lows.ndim != 2 or self.lows.shape != self.highs.shape or not self.lows.size:
            raise QuantizationError(
                "range needs lows and highs of one shape [images, channels], "
                f"got {self.lows.shape} and {self.highs.shape}"
            )
        if not (np.isfinite(self.lows).all() and np.isfinite(self.highs).all() and (self.lows <= self.highs).all()):
            raise QuantizationError("range must be finite with low <= high")
        if self.counts.shape not in ((0, BINS), (len(self.lows), BINS)):
            raise QuantizationError(f"range needs counts of [{len(self.lows)}, {BINS}], got {self.counts.shape}")

    @property
    def low(self) -> float:
        """The smallest value over all images and channels."""
        return float(self.lows.min()) if self.ends is None else self.ends[0]

    @property
    def high(self) -> float:
        """The largest value over all images and channels."""
        return float(self.highs.max()) if self.ends is None else self.ends[1]

    @property
    def channels(self) -> int:
        """Length of the tensor's last axis."""
        return int(self.lows.shape[1])

    @property
    def histogram(self) -> Histogram:
        """The counts of all images and channels together. Raises QuantizationError where nothing was counted."""
        if not len(self.counts):
            raise QuantizationError("range has no histogram: its values were not counted")
        return add_histograms(self.counts, self.lows.min(1), self.highs.max(1))

    def first(self, images: int) -> "TensorRange":
        """What would have been observed over the first `images` images only."""
        return replace(self, lows=self.lows[:images], highs=self.highs[:images], counts=self.counts[:images])


Ranges = Mapping[str, TensorRange]
Observation = dict[str, NDArray[Any]]


def first_images(ranges: Ranges, images: int) -> Ranges:
    """The ranges as a calibration over the first `images` images would have found them."""
    return {tensor: observed.first(images) for tensor, observed in ranges.items()}


Observe = Callable[[DetectionModel, Sequence[str], Iterable[NDArray[np.generic]]], list[Observation]]


def observe(
    model: DetectionModel, tensors: Sequence[str], images: Iterable[NDArray[np.generic]], /
) -> list[Observation]:
    """Run the float graph on each image, [1, H, W, 3]; what its probes of `tensors` tell, one for each image."""
    probed = with_probes(model, tensors)
    # Little can be fused between probes, and to look for it takes gigabytes with large weights.
    with ModelRunner(probed, as_written=True) as runner:
        return [runner.run(image) for image in images]


def collect_ranges(
    model: DetectionModel,
    tensors: Sequence[str],
    images: Iterable[NDArray[np.generic]],
    observe: Observe = observe,
) -> Ranges:
    """Run the float graph once over the calibration images; keep the extremes and a histogram of each of `tensors`.

    tensors: names of float tensors with the channels last. images: each [1, H, W, 3], as the model takes them.
    observe: who runs it.
    An image in which a tensor is empty (no proposals for a second stage) tells nothing about it: the next image that
    does stands in for it. Raises QuantizationError, naming the first such tensor of the graph, when a value is NaN or
    infinite or the tensor is empty in every image, and when there are no images.
    """
    observations = observe(model, tensors, images)
    if not observations:
        raise QuantizationError("no calibration images: at least one is needed to collect ranges")
    ranges: dict[str, TensorRange] = {}
    # What is wrong with one tensor is wrong with all that are computed from it.
    position = {node.name: index for index, node in enumerate(model.graph_def.node)}
    probes = zip(tensors, probes_of(tensors), strict=True)
    for tensor, probe in sorted(probes, key=lambda pair: position[node_name(pair[0])]):
        try:
            ranges[tensor] = _observed(probe, observations)
        except QuantizationError as error:
            raise QuantizationError(f"{tensor}: {error}") from None
    return {tensor: ranges[tensor] for tensor in tensors}


def _observed(probe: Probe, observations: Sequence[dict[str, NDArray[Any]]]) -> TensorRange:
    """What a probe saw in each image; the Min of an empty tensor is +inf, its Max -inf."""
    lows = np.stack([values[probe.lows] for values in observations])
    highs = np.stack([values[probe.highs] for values in observations])
    empty = (lows == np.inf).all(1) & (highs == -np.inf).all(1)
    if empty.all():
        raise QuantizationError("the tensor is empty in every calibration image")
    count = len(empty)
    is_number = np.isfinite(lows).all(1) & np.isfinite(highs).all(1) | empty
    if not is_number.all():
        image = int(np.argmin(is_number))
        kind = "NaN" if np.isnan(lows[image]).any() or np.isnan(highs[image]).any() else "an infinite value"
        raise QuantizationError(
            f"holds {kind} in calibration image {image + 1} of {count}, for which int8 has no code; leave the image "
            "out, or mend the model"
        )
    told_by = [next(i % count for i in range(index, index + count) if not empty[i % count]) for index in range(count)]
    # Popped, so that counts are in memory once.
    counts = np.stack([values.pop(probe.counts) for values in observations])
    counts[:, -2] += counts[:, -1]
    counts = counts.astype(np.min_scalar_type(counts.max()))
    shape = tuple(observations[told_by[0]][probe.shape].tolist())
    return TensorRange(lows[told_by], highs[told_by], counts[told_by, :-1], shape)
