"""Which values the weights and inputs of each operator take, and which of them its codes span."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.model.detection_model import DetectionModel
from tuner.precision import Dtype, PrecisionPlan
from tuner.quantization.lowering.convolutions import find_convolutions
from tuner.quantization.range_estimators import estimate
from tuner.quantization.ranges import Ranges, TensorRange

BINS = 64


def op_values(prepared: DetectionModel, plan: PrecisionPlan, ranges: Ranges) -> dict[str, dict[str, Any]]:
    """Of each operator of a plan its values, as JSON has them.

    weights: {"low", "high", "counts"}, 64 bins from low to high, of the float weights, no corrections made.
    input: the same of the tensor that it reads over the calibration images, and "chosen": the ends of the range that
    its codes span under its range algorithm, those that it would have in int8 where it is float. Left out where the
    tensor's range was not collected.
    """
    convolutions, _ = find_convolutions(prepared.graph)
    found: dict[str, dict[str, Any]] = {}
    for op, precision in plan.items():
        if op not in convolutions:
            continue
        weights = convolutions[op].weights
        found[op] = {"weights": _binned(weights.ravel(), np.ones(weights.size), weights.min(), weights.max())}
        observed = ranges.get(convolutions[op].input)
        if observed is not None and len(observed.counts):
            chosen = estimate(observed, precision.activation_algorithm) if precision.dtype is Dtype.INT8 else observed
            found[op]["input"] = {**_observed(observed), "chosen": [chosen.low, chosen.high]}
    return found


def _observed(observed: TensorRange) -> Mapping[str, Any]:
    histogram = observed.histogram
    middles = (np.arange(len(histogram.counts)) - histogram.zero + 0.5) * histogram.width
    used = histogram.counts > 0
    return _binned(middles[used], histogram.counts[used], float(observed.lows.min()), float(observed.highs.max()))


def _binned(values: NDArray[Any], counts: NDArray[Any], low: float, high: float) -> dict[str, Any]:
    low, high = float(low), float(high)
    inside = np.clip(values, low, high)
    binned, _ = np.histogram(inside, BINS, (low, high if high > low else low + 1.0), weights=counts)
    return {"low": low, "high": high, "counts": [int(count) for count in binned]}
