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
    firsts: dict[tuple[bool, tuple[int, ...], int], list[str]] = defaultdict(list)
    for name, convolution in convolutions.items():
        if convolution.is_depthwise:
            continue
        # The two kinds of kernels want them in different shapes.
        kind, mark = (convolution.is_pointwise, convolution.weights.shape), _mark(convolution.weights)
        near = [other for close in (mark - 1, mark, mark + 1) for other in firsts.get((*kind, close), ())]
        first = next((other for other in near if _are_scaled(convolution.weights, convolutions[other].weights)), None)
        if first is None:
            firsts[*kind, mark].append(name)
        else:
            found[name] = found[first] = first
    return found


def _mark(weights: NDArray[np.float32]) -> int:
    """A number that differs by one at most where weights are alike, and mostly by more where they are not.

    It spares comparing all pairs of one shape. The first pixel and input channels tell weights apart well enough.
    """
    few = np.abs(weights[:1, :1, :4])
    peaks = few.max((0, 1, 2))
    return int(np.mean(few / np.where(peaks > 0, peaks, 1)) / (10 * ROUNDING))


def _are_scaled(weights: NDArray[np.float32], others: NDArray[np.float32]) -> bool:
    peaks, other_peaks = (np.abs(values).max((0, 1, 2)) for values in (weights, others))
    return bool(np.all(np.abs(weights * other_peaks - others * peaks) <= ROUNDING * peaks * other_peaks))
