"""Estimators against their definitions, computed the long way."""

import numpy as np
import pytest
from numpy.typing import NDArray

from tuner.errors import QuantizationError
from tuner.precision import RangeAlgorithm
from tuner.quantization.histogram import BINS, Histogram, add_histograms, spans
from tuner.quantization.range_estimators import estimate, kl_peak, mse_peak, percentile_peak
from tuner.quantization.ranges import TensorRange

RANDOM = np.random.default_rng(1)
VALUES = {
    "normal": RANDOM.normal(0, 1, 40_000),
    "relu": np.maximum(RANDOM.normal(-0.5, 1, 40_000), 0),
    "long tail": RANDOM.standard_t(3, 40_000),
    "one far away": np.append(RANDOM.uniform(0, 1, 40_000), 90.0),
    "few": RANDOM.normal(0, 1, 5),
    "spike": np.append(np.zeros(40_000), [1.0, 2.0]),
    "zeros": np.zeros(100),
}


def observe(values: NDArray[np.float64], images: int = 1) -> TensorRange:
    """A tensor of one channel that takes `values`, spread over images."""
    parts = np.array_split(values.astype(np.float32), images)
    lows, highs = np.array([part.min() for part in parts]), np.array([part.max() for part in parts])
    counts = []
    for part, low, span in zip(parts, lows, spans(lows, highs), strict=True):
        zero = BINS // 2 if low < 0 else 0
        counts.append(np.bincount(np.floor(part * (BINS - zero) / span).astype(int) + zero, minlength=BINS))
    return TensorRange(lows[:, np.newaxis], highs[:, np.newaxis], np.stack(counts).astype(np.uint32))


@pytest.fixture(params=VALUES)
def values(request: pytest.FixtureRequest) -> NDArray[np.float64]:
    return VALUES[request.param].astype(np.float32).astype(np.float64)


@pytest.fixture
def histogram(values: NDArray[np.float64]) -> Histogram:
    return observe(values).histogram


@pytest.mark.parametrize("percentile", [50, 99, 99.99, 100])
def test_percentile(values: NDArray[np.float64], histogram: Histogram, percentile: float) -> None:
    expected = np.percentile(np.abs(values), percentile, method="inverted_cdf")
    assert expected < percentile_peak(histogram, percentile) <= expected + histogram.width


def test_kl_is_the_least_divergence_of_the_slides(histogram: Histogram) -> None:
    """Bin by bin, as the pseudocode of the talk has it."""
    bins, levels = histogram.magnitudes.astype(float), 128 if histogram.zero else 256
    bins[0] = bins[1]
    if not bins.any():
        return
    divergences = {}
    for i in range(levels, len(bins) + 1):
        p = bins[:i].copy()
        p[-1] += bins[i:].sum()
        borders = np.array([round(i * level / levels) for level in range(levels + 1)])
        filled = np.add.reduceat(bins[:i] > 0, borders[:-1], dtype=int)
        share = np.add.reduceat(bins[:i], borders[:-1]) / np.maximum(filled, 1)
        q = np.repeat(share, np.diff(borders)) * (bins[:i] > 0)
        if (q.any() and q[-1] > 0) or p[-1] == 0:
            p, q = p / p.sum(), q / q.sum()
            divergences[i] = float(np.sum(p[p > 0] * np.log(p[p > 0] / q[p > 0])))
    found = round(kl_peak(histogram) / histogram.width)
    assert divergences[found] == pytest.approx(min(divergences.values()), abs=1e-9)


def test_mse_is_the_least_of_all_fractions_of_the_peak(values: NDArray[np.float64], histogram: Histogram) -> None:
    """On the values themselves: the histogram may choose another clipping point, but hardly a worse one."""
    steps, peak = 127 if histogram.zero else 255, np.abs(values).max() or 1.0

    def error(clipped_at: float) -> float:
        step = clipped_at / steps
        return float(np.mean((values - np.clip(np.rint(values / step), -steps, steps) * step) ** 2))

    least = min(error(peak * fraction / 128) for fraction in range(1, 129))
    assert error(mse_peak(histogram)) <= 1.02 * least + (histogram.width / 2) ** 2


@pytest.mark.parametrize("algorithm", RangeAlgorithm)
def test_an_estimate_stays_within_what_was_observed(algorithm: RangeAlgorithm, values: NDArray[np.float64]) -> None:
    observed = observe(values)
    found = estimate(observed, algorithm)
    assert observed.low <= found.low <= 0 <= found.high <= observed.high or values.min() > 0
    assert found.channels == observed.channels


def test_what_lies_far_away_is_clipped_by_those_that_clip() -> None:
    observed = observe(VALUES["one far away"])
    peaks = {algorithm: estimate(observed, algorithm).high for algorithm in RangeAlgorithm}
    assert peaks["minmax"] == peaks["mean"] == observed.high == 90
    assert peaks["percentile"] == 1
    assert peaks["mse"] < 90


def test_kl_clips_a_thin_tail_and_does_not_mind_how_many_zeros_there_are() -> None:
    values = np.maximum(VALUES["long tail"], 0)
    found = estimate(observe(values), RangeAlgorithm.KL).high
    assert 0.1 * values.max() < found < 0.9 * values.max()
    assert estimate(observe(np.append(values, np.zeros(400_000))), RangeAlgorithm.KL).high == found


def test_minmax_is_what_was_observed() -> None:
    observed = observe(VALUES["normal"])
    assert estimate(observed, RangeAlgorithm.MINMAX) is observed


def test_mean_over_images_of_their_extremes() -> None:
    lows, highs = np.array([[-1, 0], [-3, 0.5]], np.float32), np.array([[1, 2], [4, 1]], np.float32)
    found = estimate(TensorRange(lows, highs), RangeAlgorithm.MEAN)
    assert (found.low, found.high) == (-2, 3)
    assert (found.lows is lows) and (found.highs is highs)


def test_channels_keep_their_extremes_where_a_histogram_decides() -> None:
    lows, highs = np.array([[0, 0]], np.float32), np.array([[0.5, 90]], np.float32)
    counts = np.zeros((1, BINS), np.uint32)
    counts[0, [3, 1439]] = [100_000, 1]
    found = estimate(TensorRange(lows, highs, counts), RangeAlgorithm.PERCENTILE)
    assert found.high == 0.25
    assert found.highs.tolist() == [[0.5, 90]]


@pytest.mark.parametrize("algorithm", ["percentile", "kl", "mse"])
def test_images_count_together(algorithm: str) -> None:
    together, apart = observe(VALUES["long tail"]), observe(VALUES["long tail"], images=5)
    assert estimate(apart, RangeAlgorithm(algorithm)).ends == estimate(together, RangeAlgorithm(algorithm)).ends


@pytest.mark.parametrize("algorithm", ["percentile", "kl", "mse"])
def test_without_a_histogram(algorithm: str) -> None:
    observed = TensorRange(np.zeros((1, 1), np.float32), np.ones((1, 1), np.float32))
    with pytest.raises(QuantizationError, match=r"^range has no histogram: "):
        estimate(observed, RangeAlgorithm(algorithm))


def test_adding_is_what_the_estimators_see() -> None:
    observed = observe(VALUES["relu"], images=3)
    whole = add_histograms(observed.counts, observed.lows[:, 0], observed.highs[:, 0])
    np.testing.assert_array_equal(observed.histogram.counts, whole.counts)
