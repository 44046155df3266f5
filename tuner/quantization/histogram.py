"""Counts of values over a range that is not known in advance: bins that grow in powers of two, without error."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 2048
# Below any activation that matters, and far above the smallest float32.
LEAST_PEAK = 2.0**-100


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many values of a tensor lie where.

    counts: [2048] int64. width: of a bin, a power of two. Bin i holds the values from (i - zero) * width up to the next
    one's first; zero is 0 where no value is negative, else 1024.
    Every bin so begins at a whole multiple of a power of two. Bins of twice the width are two of these side by side,
    which is why histograms of several images can be added without spreading a count over bins.
    """

    counts: NDArray[np.int64]
    width: float
    zero: int

    @property
    def magnitudes(self) -> NDArray[np.int64]:
        """The counts of |value|, from 0 up in steps of `width`: [2048], or [1024] where there are negative values."""
        return self.counts[self.zero :] + self.counts[: self.zero][::-1] if self.zero else self.counts


def add_histograms(
    counts: NDArray[np.unsignedinteger[Any]], lows: NDArray[np.float32], highs: NDArray[np.float32]
) -> Histogram:
    """One histogram of several images, each counted between the ends that follow from its own extremes.

    counts: [images, 2048], as `spans` and the sign of `lows` lay out the bins. lows, highs: [images].
    """
    spans_of_images, negative = spans(lows, highs), lows < 0
    span, zero = spans_of_images.max(), BINS // 2 if negative.any() else 0
    width = span / (BINS - zero)
    total = np.zeros(BINS, np.int64)
    for image_span, image_zero in set(zip(spans_of_images, np.where(negative, BINS // 2, 0), strict=True)):
        alike = (spans_of_images == image_span) & (negative == bool(image_zero))
        narrower = int(np.log2(width * (BINS - image_zero) / image_span))
        bins = ((np.arange(BINS) - image_zero) >> narrower) + zero
        np.add.at(total, bins, counts[alike].sum(0, dtype=np.int64))
    return Histogram(total, float(width), zero)


def spans(lows: NDArray[np.float32], highs: NDArray[np.float32]) -> NDArray[np.float64]:
    """The least power of two above every |value|, for each of several images."""
    peaks = np.maximum(np.maximum(-lows.astype(np.float64), highs), LEAST_PEAK)
    return np.ldexp(1.0, np.frexp(peaks)[1])
