"""How wide the range of an activation's codes should be: clip a little to round the rest more finely, or do not.

Estimators work on magnitudes, as the codes do: 255 steps up to the peak where no value is negative, else 127. They
never go beyond what was observed.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tuner.precision import RangeAlgorithm
from tuner.quantization.histogram import Histogram
from tuner.quantization.ranges import TensorRange

PERCENTILE = 99.99
# How many clipping points the search for the least squared error tries: fractions of the peak.
MSE_CANDIDATES = 128
_POSITIVE_STEPS, _SIGNED_STEPS = 255, 127


def estimate(observed: TensorRange, algorithm: RangeAlgorithm) -> TensorRange:
    """The range that codes of the whole tensor should span, `low` to `high`.

    `lows` and `highs` of the channels stay as observed: a scale for each channel is its own cure for channels of huge
    range, and to clip such channels on top of it costs more than it gains.
    Raises QuantizationError where a histogram is needed and the range has none.
    """
    if algorithm is RangeAlgorithm.MINMAX:
        return observed
    if algorithm is RangeAlgorithm.MEAN:
        # As OpenVINO's NNCF has them: "mean_min" and "mean_max" of the images.
        return replace(observed, ends=(float(observed.lows.min(1).mean()), float(observed.highs.max(1).mean())))
    peak = _ESTIMATORS[algorithm](observed.histogram)
    return replace(observed, ends=(max(observed.low, -peak), min(observed.high, peak)))


def percentile_peak(histogram: Histogram, percentile: float = PERCENTILE) -> float:
    """The least end of a bin with `percentile` of all magnitudes below it (Wu et al. 2020, arXiv:2004.09602)."""
    below = np.cumsum(histogram.magnitudes)
    return float(np.searchsorted(below, percentile / 100 * below[-1]) + 1) * histogram.width


def kl_peak(histogram: Histogram) -> float:
    """The clipping point at which the distribution of codes is nearest to that of the values, by relative entropy.

    Szymon Migacz, "8-bit inference with TensorRT", GTC 2017: for each i, P is the first i bins with all that lies
    beyond added to the last one, Q the first i bins merged into 128 levels and spread evenly over those bins of each
    level that are not empty; least is sum(P * log(P / Q)). Levels are 256 where no value is negative, for such tensors
    have as many codes; where levels do not divide i, their borders are the nearest ones between bins. The first bin
    counts as the second one does, as in NVIDIA's pytorch-quantization: behind a Relu it holds half of all values, and
    zero has a code however wide the range is.
    """
    counts = histogram.magnitudes.astype(np.float64)
    counts[0] = counts[1]
    if not counts.any():
        return histogram.width
    levels = _steps(histogram) + 1
    ends = np.arange(levels, len(counts) + 1)
    borders = np.rint(ends[:, np.newaxis] * np.arange(levels + 1) / levels).astype(np.int64)
    inside, outside = np.cumsum(counts)[ends - 1], counts.sum() - np.cumsum(counts)[ends - 1]
    # P equals the counts but for the last bin, so all sums over bins are differences of cumulative ones.
    level_counts = np.diff(_cumulative(counts)[borders])
    level_bins = np.diff(_cumulative(counts > 0)[borders])
    last = counts[ends - 1]
    p_log_p = _cumulative(_times_log(counts))[ends] - _times_log(last) + _times_log(last + outside)
    in_level = level_counts.copy()
    in_level[:, -1] += outside
    with np.errstate(divide="ignore", invalid="ignore"):
        p_log_q = np.where(level_bins > 0, in_level * np.log(level_counts / level_bins), 0).sum(1)
        divergence = (p_log_p - p_log_q) / counts.sum() - np.log(counts.sum()) + np.log(inside)
    # An empty last bin has nothing to represent what lies beyond with: infinitely far.
    divergence[((last == 0) & (outside > 0)) | (inside == 0)] = np.inf
    return float(ends[np.argmin(divergence)]) * histogram.width


def mse_peak(histogram: Histogram) -> float:
    """The clipping point of the least mean squared error between values and codes, out of 128 fractions of the peak.

    Nagel et al. 2021, "A white paper on neural network quantization", arXiv:2106.08295, on range setting; here by a
    search over the histogram, each bin taken at its middle.
    """
    counts = histogram.magnitudes
    used = int(np.flatnonzero(counts)[-1]) + 1
    values = (np.arange(used) + 0.5) * histogram.width
    peaks = np.arange(1, MSE_CANDIDATES + 1) / MSE_CANDIDATES * used * histogram.width
    steps = peaks[:, np.newaxis] / _steps(histogram)
    decoded = np.minimum(np.rint(values / steps), _steps(histogram)) * steps
    return float(peaks[np.argmin((counts[:used] * (values - decoded) ** 2).sum(1))])


def _steps(histogram: Histogram) -> int:
    return _SIGNED_STEPS if histogram.zero else _POSITIVE_STEPS


def _cumulative(values: NDArray[np.generic]) -> NDArray[np.float64]:
    return np.concatenate([np.zeros(1), np.cumsum(values, dtype=np.float64)])


def _times_log(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values * np.log(np.maximum(values, 1))


_ESTIMATORS: Mapping[RangeAlgorithm, Callable[[Histogram], float]] = {
    RangeAlgorithm.PERCENTILE: percentile_peak,
    RangeAlgorithm.KL: kl_peak,
    RangeAlgorithm.MSE: mse_peak,
}
