"""Choose the scale of every channel that travels as codes, from who makes it and who reads it."""

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from tuner.precision import Granularity, PrecisionPlan, RangeAlgorithm
from tuner.quantization.lowering.convolutions import Convolution
from tuner.quantization.lowering.regions import Regions
from tuner.quantization.lowering.scales import ActivationScale, balanced_peaks, channel_peaks, tensor_peak
from tuner.quantization.range_estimators import estimate
from tuner.quantization.ranges import Ranges


def choose_scales(
    regions: Regions,
    chosen: Mapping[str, Convolution],
    plan: PrecisionPlan,
    ranges: Ranges,
    shared_weights: Collection[str],
) -> dict[str, ActivationScale]:
    """The scale of every tensor of codes in `regions`.

    Codes that a kernel makes have a scale for each channel, which costs nothing: the channel's own where only depthwise
    convolutions read it, else the balanced one. Codes that QuantizeV2 makes have one scale unless depthwise
    convolutions read them, for which the Mul in front of it is worth its time. One scale have also the codes that are
    added, those read by weights that are shared (stored once, they cannot absorb the scales of each reader), and those
    read or made by weights with one scale, which would lose more than the activations gain.
    shared_weights: names of readers that share their weights.
    """
    total = len(regions.group)
    depthwise, mixed, uniform = (np.zeros(total, bool) for _ in range(3))
    algorithms = [RangeAlgorithm.MINMAX] * total
    for name, convolution in chosen.items():
        channels = regions.channels[convolution.input]
        (depthwise if convolution.is_depthwise else mixed)[channels] = True
        for channel in channels:
            algorithms[channel] = plan[name].activation_algorithm
        uniform[channels] |= plan[name].weight_granularity is Granularity.PER_TENSOR or name in shared_weights
        if convolution.summand is not None:
            uniform[regions.channels[convolution.summand]] = True
            uniform[regions.channels[convolution.output]] = True

    peaks, is_signed = np.ones(total, np.float32), np.zeros(total, bool)
    for source in regions.sources.values():
        span, maker = source.span, source.kernel
        observed = estimate(ranges[source.tensor], algorithms[source.first_channel])
        is_signed[span] = observed.low < 0
        if maker is None:
            has_one_scale = not depthwise[span].any()
        else:
            has_one_scale = plan[maker].weight_granularity is Granularity.PER_TENSOR
        if has_one_scale or uniform[span].any():
            peaks[span] = tensor_peak(observed)
        else:
            own = depthwise[span] & ~mixed[span]
            peaks[span] = np.where(own, channel_peaks(observed), balanced_peaks(observed))
    signed_groups = np.unique(regions.group[is_signed])
    is_unsigned: NDArray[np.bool_] = ~np.isin(regions.group, signed_groups)
    return {
        tensor: ActivationScale(peaks[channels], bool(is_unsigned[channels].all()))
        for tensor, channels in regions.channels.items()
    }
