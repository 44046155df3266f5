"""Histograms that grow in powers of two, against counting all values at once."""

import numpy as np
import pytest
from numpy.typing import NDArray

from tuner.quantization.histogram import BINS, LEAST_PEAK, Histogram, add_histograms, spans


def counted(values: NDArray[np.float32], span: float, *, negative: bool) -> NDArray[np.int64]:
    """By definition: whole bins from zero, 2048 up to the span, or 1024 on either side."""
    zero = BINS // 2 if negative else 0
    bins = np.floor(values.astype(np.float64) * (BINS - zero) / span).astype(int) + zero
    return np.bincount(bins, minlength=BINS)


@pytest.mark.parametrize(
    ("low", "high", "span"),
    [(0, 1, 2), (0, 0.999, 1), (-3, 1, 4), (-4, 0, 8), (0, 6, 8), (1e-6, 1e-5, 2.0**-16), (0, 0, 2 * LEAST_PEAK)],
)
def test_the_span_is_the_least_power_of_two_above_every_magnitude(low: float, high: float, span: float) -> None:
    assert spans(np.array([low], np.float32), np.array([high], np.float32)).tolist() == [span]


@pytest.mark.parametrize(
    "scales",
    [[1], [1, 1, 1], [1, 100, 0.001], [0.3, 0.7, 2.9, 543]],
)
@pytest.mark.parametrize("signs", ["positive", "signed", "mixed"])
def test_adding_images_is_counting_them_together(scales: list[float], signs: str) -> None:
    random = np.random.default_rng(0)
    images = [random.normal(0, scale, 5000).astype(np.float32) for scale in scales]
    if signs != "signed":
        images = [np.abs(image) if signs == "positive" or index else image for index, image in enumerate(images)]
    lows, highs = np.array([image.min() for image in images]), np.array([image.max() for image in images])
    counts = [
        counted(image, float(span), negative=bool(low < 0))
        for image, span, low in zip(images, spans(lows, highs), lows, strict=True)
    ]
    found = add_histograms(np.stack(counts).astype(np.uint32), lows, highs)

    everything = np.concatenate(images)
    span = spans(everything.min(keepdims=True), everything.max(keepdims=True))[0]
    assert found.zero == (0 if signs == "positive" else BINS // 2)
    assert found.width == span / (BINS - found.zero)
    np.testing.assert_array_equal(found.counts, counted(everything, span, negative=signs != "positive"))
    assert found.counts.sum() == 5000 * len(scales)


def test_magnitudes_put_both_sides_together() -> None:
    counts = np.zeros(BINS, np.int64)
    counts[[1024, 1025, 1023, 1021]] = [1, 2, 4, 8]
    assert Histogram(counts, 0.5, 1024).magnitudes[:4].tolist() == [5, 2, 8, 0]
    assert Histogram(counts, 0.5, 0).magnitudes is counts
