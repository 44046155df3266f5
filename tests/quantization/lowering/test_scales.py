from dataclasses import replace

import numpy as np
import pytest

from tuner.precision import Granularity
from tuner.quantization.lowering.scales import (
    LARGEST_BIAS_CODE,
    ActivationScale,
    balanced_peaks,
    channel_peaks,
    tensor_peak,
    weight_codes,
    weight_peaks,
)
from tuner.quantization.ranges import TensorRange


def observed(lows: list[list[float]], highs: list[list[float]]) -> TensorRange:
    return TensorRange(np.array(lows, np.float32), np.array(highs, np.float32))


@pytest.mark.parametrize(
    ("is_unsigned", "levels", "from_quantize", "from_kernel"), [(True, 255, 0, 0), (False, 127, -127, -128)]
)
def test_codes_of_a_scale(is_unsigned: bool, levels: int, from_quantize: int, from_kernel: int) -> None:
    scale = ActivationScale(np.array([3, 0.5], np.float32), is_unsigned)
    assert scale.levels == levels
    assert scale.lowest_code(from_kernel=False) == from_quantize
    assert scale.lowest_code(from_kernel=True) == from_kernel
    np.testing.assert_allclose(scale.steps, [3 / levels, 0.5 / levels], rtol=1e-6)
    assert scale.steps.dtype == np.float32
    assert not scale.is_uniform
    assert ActivationScale(np.array([3, 3], np.float32), is_unsigned).is_uniform


@pytest.mark.parametrize(
    ("lows", "highs", "peak"),
    [
        ([[0, 0], [0, 1]], [[2, 3], [4, 1]], 4),
        ([[0, -0.5], [0, 1]], [[2, 3], [4, 1]], 4),
        ([[-7, 0]], [[2, 3]], 7),
        ([[-7, -2]], [[-3, -1]], 7),
        ([[0, 0]], [[0, 0]], 1),
    ],
)
def test_one_peak_for_a_tensor(lows: list[list[float]], highs: list[list[float]], peak: float) -> None:
    assert tensor_peak(observed(lows, highs)) == peak


def test_one_peak_for_each_channel() -> None:
    peaks = channel_peaks(observed([[-1, 0, 0], [-5, 0, 0]], [[2, 0.25, 10], [1, 0.5, 8]]))
    assert peaks.tolist() == [5, 0.5, 10]
    assert peaks.dtype == np.float32


def test_silent_channels_take_the_median_peak() -> None:
    assert channel_peaks(observed([[0, 0, 0, 0]], [[1, 0, 3, 8]])).tolist() == [1, 3, 3, 8]
    assert channel_peaks(observed([[0, 0]], [[0, 0]])).tolist() == [1, 1]


def test_no_channel_goes_beyond_the_range_that_was_chosen() -> None:
    clipped = replace(observed([[0, 0, 0]], [[1, 3, 8]]), ends=(0.0, 5.0))
    assert channel_peaks(clipped).tolist() == [1, 3, 5]
    np.testing.assert_allclose(balanced_peaks(clipped), np.sqrt([5, 15, 25]))


def test_balanced_peaks_lie_halfway_between_channel_and_tensor() -> None:
    np.testing.assert_allclose(balanced_peaks(observed([[0, 0, 0]], [[4, 1, 16]])), [8, 4, 16])
    np.testing.assert_array_equal(balanced_peaks(observed([[0, 0]], [[0, 0]])), [1, 1])


WEIGHTS = np.array([[[[0.5, -2.0, 0.0], [-1.0, 1.0, 0.0]]]], np.float32)


@pytest.mark.parametrize(
    ("granularity", "peaks"),
    [(Granularity.PER_CHANNEL, [1, 2, np.finfo(np.float32).tiny]), (Granularity.PER_TENSOR, [2, 2, 2])],
)
def test_weight_peaks(granularity: Granularity, peaks: list[float]) -> None:
    found = weight_peaks(WEIGHTS, None, 0.01, granularity, is_depthwise=False)
    np.testing.assert_allclose(found, peaks)
    assert found.dtype == np.float32


def test_weight_peaks_of_depthwise_convolutions() -> None:
    weights = WEIGHTS.transpose(0, 1, 3, 2)[..., :1]
    peaks = weight_peaks(weights, None, 0.01, Granularity.PER_CHANNEL, is_depthwise=True)
    np.testing.assert_allclose(peaks, [0.5, 2, np.finfo(np.float32).tiny])


def test_a_bias_fits_the_accumulator_whatever_the_weights() -> None:
    weights = np.full((3, 3, 4, 3), 1e-12, np.float32)
    weights[..., 2] = 1
    bias = np.array([5, -5, 5], np.float32)
    step = 0.02
    peaks = weight_peaks(weights, bias, step, Granularity.PER_CHANNEL, is_depthwise=False)
    codes = np.abs(bias) / (step * peaks / 127)
    assert codes == pytest.approx([LARGEST_BIAS_CODE, LARGEST_BIAS_CODE, 5 / (step / 127)])
    assert peaks[2] == 1


def test_weight_codes() -> None:
    peaks = np.array([1, 2, 1], np.float32)
    assert weight_codes(WEIGHTS, peaks, is_depthwise=False)[0, 0].tolist() == [[64, -127, 0], [-127, 64, 0]]
    depthwise = WEIGHTS.transpose(0, 1, 3, 2)[..., :1]
    codes = weight_codes(depthwise, peaks, is_depthwise=True)
    assert codes.shape == (1, 1, 3, 1)
    assert codes[0, 0, :, 0].tolist() == [64, -127, 0]
    assert codes.dtype == np.int8
