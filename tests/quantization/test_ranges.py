from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tuner.cache import Cache
from tuner.errors import QuantizationError
from tuner.quantization.histogram import BINS, spans
from tuner.quantization.range_cache import load_ranges, save_ranges
from tuner.quantization.ranges import TensorRange, collect_ranges, first_images

IMAGES = [np.random.default_rng(seed).normal(0, 1, (1, 5 + seed, 6, 8)).astype(np.float32) for seed in range(3)]


@pytest.fixture
def ranges() -> dict[str, TensorRange]:
    lows = np.array([[-1, 0], [-3, 0.5], [0, 0]], np.float32)
    highs = np.array([[1, 2], [0, 1], [9, 0.25]], np.float32)
    counts = np.zeros((3, BINS), np.uint8)
    counts[:, 7] = [1, 2, 4]
    return {
        "scope/a": TensorRange(lows, highs, counts, (1, 3, 4, 2)),
        "b:1": TensorRange(highs, 2 * highs, 2 * counts, (2,)),
    }


def test_extremes_of_every_image_and_channel(float_graph: Any) -> None:
    sketch = float_graph()
    sketch.named(sketch.convolve(sketch.x, "conv", activation="Relu"), "out")
    found = collect_ranges(sketch.model(), ["x", "conv/activation"], IMAGES)
    assert list(found) == ["x", "conv/activation"]
    np.testing.assert_array_equal(found["x"].lows, np.stack([image.min((0, 1, 2)) for image in IMAGES]))
    np.testing.assert_array_equal(found["x"].highs, np.stack([image.max((0, 1, 2)) for image in IMAGES]))
    assert found["conv/activation"].lows.shape == (3, 12)
    assert found["conv/activation"].low == 0
    assert found["x"].low == min(image.min() for image in IMAGES)
    assert found["x"].high == max(image.max() for image in IMAGES)


@pytest.mark.parametrize("activation", [None, "Relu"])
def test_every_value_is_counted_in_its_bin(activation: str | None, float_graph: Any, run: Any) -> None:
    sketch = float_graph()
    sketch.named(sketch.convolve(sketch.x, "conv", activation=activation), "out")
    found = collect_ranges(sketch.model(), ["out"], IMAGES)["out"]
    assert found.shape == (1, 5, 6, 12)
    for count, image in zip(found.counts, IMAGES, strict=True):
        values = run(sketch.view(), image)[0].ravel()
        zero = 1024 if activation is None else 0
        span = spans(values.min(keepdims=True), values.max(keepdims=True))[0]
        bins = np.floor(values * ((BINS - zero) / span)) + zero
        # Adding 1024 rounds a value that lies a float's last bit below a bin's end up to it.
        np.testing.assert_allclose(np.cumsum(count), np.cumsum(np.bincount(bins.astype(int), minlength=BINS)), atol=2)
        assert count.sum() == values.size
    assert found.histogram.counts.sum() == found.counts.sum() == 12 * 6 * (5 + 6 + 7)
    assert found.first(1).histogram.counts.sum() == 12 * 6 * 5


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 2.0**-130, 3e38, -3e38, np.nextafter(np.float32(8), 0)])
def test_constant_tensors_are_counted(value: float, float_graph: Any) -> None:
    sketch = float_graph()
    with sketch.graph.as_default():
        tf.add(sketch.x * 0, np.float32(value), name="constant")
    found = collect_ranges(sketch.model("constant"), ["constant"], IMAGES)["constant"]
    assert found.counts.sum(1).tolist() == [image.size for image in IMAGES]
    assert np.count_nonzero(found.histogram.counts) == 1
    histogram = found.histogram
    position = np.flatnonzero(histogram.counts)[0] - histogram.zero
    assert position * histogram.width <= value <= (position + 1) * histogram.width


def test_images_are_run_once_and_one_at_a_time(float_graph: Any) -> None:
    given = iter(IMAGES)
    sketch = float_graph()
    sketch.named(sketch.x, "out")
    assert collect_ranges(sketch.model(), ["x"], given)["x"].lows.shape[0] == len(IMAGES)
    assert next(given, None) is None


def test_tensors_of_any_rank(float_graph: Any) -> None:
    sketch = float_graph()
    with sketch.graph.as_default():
        tf.reshape(sketch.x, [-1, 2], name="out")
    found = collect_ranges(sketch.model(), ["out"], IMAGES[:1])
    assert found["out"].highs.tolist() == [IMAGES[0].reshape(-1, 2).max(0).tolist()]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_no_number_names_its_tensor(value: float, float_graph: Any) -> None:
    sketch = float_graph()
    with sketch.graph.as_default():
        tf.multiply(sketch.x, np.array([1] * 7 + [value], np.float32), name="scaled")
    kind = "NaN" if np.isnan(value) else "an infinite value"
    with pytest.raises(QuantizationError, match=rf"^scaled: holds {kind} in calibration image 1 of 3, "):
        collect_ranges(sketch.model("scaled"), ["x", "scaled"], IMAGES)


def test_one_nan_among_many_values(float_graph: Any) -> None:
    """Min and Max of a tensor with one NaN must not be those of the rest."""
    sketch = float_graph()
    sketch.named(sketch.x, "out")
    images = [image.copy() for image in IMAGES]
    images[1][0, 2, 3, 4] = np.nan
    with pytest.raises(QuantizationError, match=r"^x: holds NaN in calibration image 2 of 3, "):
        collect_ranges(sketch.model(), ["x"], images)


def test_the_first_tensor_that_is_no_number_is_named(float_graph: Any) -> None:
    sketch = float_graph()
    sketch.named(sketch.convolve(sketch.x, "conv", activation="Relu"), "out")
    images = [np.full_like(IMAGES[0], np.inf)]
    with pytest.raises(QuantizationError, match=r"^x: holds an infinite value in calibration image 1 of 1, "):
        collect_ranges(sketch.model(), ["out", "conv/activation", "x", "conv"], images)


def test_an_image_without_proposals_is_stood_for_by_the_next(float_graph: Any) -> None:
    sketch = float_graph()
    with sketch.graph.as_default():
        rows = tf.reshape(sketch.x, [-1, 8])
        name = tf.boolean_mask(rows, rows[:, 0] > 0).op.name
    few = [image.copy() for image in IMAGES]
    few[0][..., 0] = few[2][..., 0] = -1
    found = collect_ranges(sketch.model(name), [name], few)[name]
    rows = few[1].reshape(-1, 8)
    np.testing.assert_array_equal(found.highs, [rows[rows[:, 0] > 0].max(0)] * 3)
    proposals = np.count_nonzero(rows[:, 0] > 0)
    assert found.shape == (proposals, 8)
    assert found.counts.sum(1).tolist() == [8 * proposals] * 3
    with pytest.raises(QuantizationError, match=f"^{name}: the tensor is empty in every calibration image$"):
        collect_ranges(sketch.model(name), [name], few[:1])


def test_no_images(float_graph: Any) -> None:
    sketch = float_graph()
    sketch.named(sketch.x, "out")
    with pytest.raises(QuantizationError, match="no calibration images"):
        collect_ranges(sketch.model(), ["x"], [])


@pytest.mark.parametrize(
    ("lows", "highs"),
    [
        (np.zeros((2, 3)), np.zeros((2, 4))),
        (np.zeros(3), np.ones(3)),
        (np.zeros((0, 3)), np.ones((0, 3))),
        (np.ones((1, 1)), np.zeros((1, 1))),
    ],
)
def test_ranges_that_cannot_be(lows: Any, highs: Any) -> None:
    with pytest.raises(QuantizationError, match=r"^range "):
        TensorRange(lows.astype(np.float32), highs.astype(np.float32))


@pytest.mark.parametrize("shape", [(2, BINS), (1, BINS), (3, 7), (BINS,)])
def test_counts_that_cannot_be(shape: tuple[int, ...]) -> None:
    with pytest.raises(QuantizationError, match=r"^range needs counts of \[3, 2048\], got "):
        TensorRange(np.zeros((3, 2), np.float32), np.ones((3, 2), np.float32), np.zeros(shape, np.uint32))


def test_first_images(ranges: dict[str, TensorRange]) -> None:
    found = first_images(ranges, 2)
    assert found["scope/a"].highs.tolist() == [[1, 2], [0, 1]]
    assert (found["scope/a"].low, found["scope/a"].high) == (-3, 2)
    assert found["scope/a"].counts[:, 7].tolist() == [1, 2]
    assert first_images(ranges, 100)["b:1"].highs.shape == (3, 2)


def test_ranges_come_back_from_disk_bit_for_bit(ranges: dict[str, TensorRange], tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    save_ranges(cache, ["model", "images"], ranges)
    found = load_ranges(cache, ["model", "images"], ranges)
    assert found is not None
    assert list(found) == list(ranges)
    for name, observed in ranges.items():
        np.testing.assert_array_equal(found[name].lows, observed.lows)
        np.testing.assert_array_equal(found[name].highs, observed.highs)
        np.testing.assert_array_equal(found[name].counts, observed.counts)
        assert found[name].shape == observed.shape
        assert (found[name].lows.dtype, found[name].counts.dtype) == (np.float32, observed.counts.dtype)


def test_ranges_that_lack_a_tensor_or_are_absent(ranges: dict[str, TensorRange], tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    assert load_ranges(cache, ["model"], ranges) is None
    save_ranges(cache, ["model"], ranges)
    assert load_ranges(cache, ["model"], [*ranges, "another"]) is None
    assert load_ranges(cache, ["another"], ranges) is None
