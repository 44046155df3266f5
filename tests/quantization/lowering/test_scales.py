import numpy as np
import pytest

from tuner.precision import Granularity
from tuner.quantization.lowering.scales import (
    LARGEST_BIAS_CODE,
    balanced_scales,
    channel_scales,
    tensor_scale,
    weight_codes,
    weight_peaks,
)
from tuner.quantization.ranges import TensorRange


def observed(lows: list[list[float]], highs: list[list[float]]) -> TensorRange:
    return TensorRange(np.array(lows, np.float32), np.array(highs, np.float32))


@pytest.mark.parametrize(
    ("lows", "highs", "peak", "is_unsigned"),
    [
        ([[0, 0], [0, 1]], [[2, 3], [4, 1]], 4, True),
        ([[0, -0.5], [0, 1]], [[2, 3], [4, 1]], 4, False),
        ([[-7, 0]], [[2, 3]], 7, False),
        ([[-7, -2]], [[-3, -1]], 7, False),
        ([[0, 0]], [[0, 0]], 1, True),
    ],
)
def test_one_scale_for_a_tensor(
    lows: list[list[float]], highs: list[list[float]], peak: float, is_unsigned: bool
) -> None:
    scale = tensor_scale(observed(lows, highs))
    assert scale.peaks.shape == ()
    assert (scale.peaks, scale.is_unsigned) == (peak, is_unsigned)
    assert scale.levels == (255 if is_unsigned else 127)
    assert scale.step == pytest.approx(peak / scale.levels)


@pytest.mark.parametrize(
    ("lows", "from_quantize", "from_kernel"), [([[0.0]], 0, 0), ([[-1.0]], -127, -128)], ids=["unsigned", "signed"]
)
def test_lowest_codes(lows: list[list[float]], from_quantize: int, from_kernel: int) -> None:
    scale = tensor_scale(observed(lows, [[1.0]]))
    assert scale.lowest_code(from_kernel=False) == from_quantize
    assert scale.lowest_code(from_kernel=True) == from_kernel


def test_one_scale_for_each_channel() -> None:
    scale = channel_scales(observed([[-1, 0, 0], [-5, 0, 0]], [[2, 0.25, 10], [1, 0.5, 8]]))
    assert scale.peaks.tolist() == [5, 0.5, 10]
    assert not scale.is_unsigned


def test_silent_channels_take_the_median_scale() -> None:
    scale = channel_scales(observed([[0, 0, 0, 0]], [[1, 0, 3, 8]]))
    assert scale.peaks.tolist() == [1, 3, 3, 8]
    assert channel_scales(observed([[0, 0]], [[0, 0]])).peaks.tolist() == [1, 1]


def test_balanced_scales_lie_halfway_between_channel_and_tensor() -> None:
    scale = balanced_scales(observed([[0, 0, 0]], [[4, 1, 16]]))
    np.testing.assert_allclose(scale.peaks, [8, 4, 16])
    assert scale.is_unsigned
    np.testing.assert_array_equal(balanced_scales(observed([[0, 0]], [[0, 0]])).peaks, [1, 1])


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
