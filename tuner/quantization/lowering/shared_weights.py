"""Weights that several convolutions share, as levels of a feature pyramid do, even with a BatchNorm of each folded."""

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from tuner.quantization.lowering.convolutions import Convolution

# Folding rounds the weights of each level anew, to 2**-24 of their size.
ROUNDING = 1e-5


def find_shared_weights(convolutions: Mapping[str, Convolution]) -> dict[str, str]:
    """For every convolution whose weights are another's up to one factor for each output channel: the first such one.

    Factors are positive. Depthwise convolutions, which have few weights, are left out.
    """
    found: dict[str, str] = {}
    firsts: dict[tuple[bool, tuple[int, ...]], list[str]] = defaultdict(list)
    for name, convolution in convolutions.items():
        if convolution.is_depthwise:
            continue
        # The two kinds of kernels want them in different shapes.
        alike = firsts[convolution.is_pointwise, convolution.weights.shape]
        first = next((other for other in alike if _are_alike(convolution.weights, convolutions[other].weights)), None)
        if first is None:
            alike.append(name)
        else:
            found[name] = found[first] = first
    return found


def _are_alike(weights: NDArray[np.float32], others: NDArray[np.float32]) -> bool:
    # Most pairs of one shape differ in the first pixel and input channel already.
    return _are_scaled(weights[:1, :1, :4], others[:1, :1, :4]) and _are_scaled(weights, others)


def _are_scaled(weights: NDArray[np.float32], others: NDArray[np.float32]) -> bool:
    peaks, other_peaks = (np.abs(values).max((0, 1, 2)) for values in (weights, others))
    return bool(np.all(np.abs(weights * other_peaks - others * peaks) <= ROUNDING * peaks * other_peaks))
