"""Which residual sums a kernel can make: it adds unsigned codes of one scale, which another kernel has made."""

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np

from tuner.model.graph_view import GraphView
from tuner.quantization.lowering.convolutions import Convolution
from tuner.quantization.lowering.regions import Regions, find_regions
from tuner.quantization.ranges import Ranges, TensorRange


def settle_sums(
    graph: GraphView, chosen: Mapping[str, Convolution], makes_codes: Collection[str], ranges: Ranges
) -> tuple[Regions, dict[str, Convolution], Ranges]:
    """Regions in which every convolution that still has a summand can add it; all other sums stay float ops.

    A summand with negative values, read by nothing but the sum, is raised by its lowest value, which the bias behind
    the sum takes off again: exact, and its codes are unsigned. So convolutions and ranges come back changed.
    makes_codes: the ops whose results may leave as codes.
    """
    settled, shifted = _one_for_each_sum(chosen), dict(ranges)
    while True:
        kernels = {name: settled[name] for name in settled if name in makes_codes}
        wanted = [tensor for kernel in settled.values() for tensor in (kernel.input, kernel.summand) if tensor]
        channels = {tensor: observed.channels for tensor, observed in ranges.items()}
        regions = find_regions(graph, wanted, kernels, channels)
        # What is added has one scale, which depthwise readers would pay for with most of their accuracy.
        sensitive = {kernel.input for kernel in settled.values() if kernel.is_depthwise}
        signed = _signed_sources(regions, ranges)
        refused = [
            kernel
            for kernel in settled.values()
            if kernel.summand is not None
            and not (
                sensitive.isdisjoint((kernel.summand, kernel.output))
                and _can_add(graph, settled, kernel, regions, signed)
            )
        ]
        if not refused:
            break
        for kernel in refused:
            if kernel.without_sum is not None:
                settled[kernel.name] = kernel.without_sum
    for name, kernel in settled.items():
        if kernel.summand is not None and ranges[kernel.summand].low < 0:
            lowest = ranges[kernel.summand].low
            maker = regions.sources[kernel.summand].kernel
            if maker is not None:
                settled[maker] = _raised(settled[maker], -lowest)
            settled[name] = _raised(kernel, lowest)
            shifted[kernel.summand] = _raised_range(ranges[kernel.summand], -lowest)
    return regions, settled, shifted


def _one_for_each_sum(chosen: Mapping[str, Convolution]) -> dict[str, Convolution]:
    """Of two convolutions that could both make a sum, the later one makes it."""
    makers = {kernel.output: name for name, kernel in chosen.items()}
    return {
        name: kernel if kernel.without_sum is None or makers[kernel.output] == name else kernel.without_sum
        for name, kernel in chosen.items()
    }


def _signed_sources(regions: Regions, ranges: Ranges) -> dict[int, set[str]]:
    """The tensors with negative values, by the group of channels that they belong to."""
    signed: dict[int, set[str]] = defaultdict(set)
    for source in regions.sources.values():
        if ranges[source.tensor].low < 0:
            signed[int(regions.group[source.first_channel])].add(source.tensor)
    return signed


def _can_add(
    graph: GraphView,
    settled: Mapping[str, Convolution],
    kernel: Convolution,
    regions: Regions,
    signed: Mapping[int, set[str]],
) -> bool:
    result, summand = regions.sources.get(kernel.output), regions.sources.get(kernel.summand or "")
    if result is None or result.kernel != kernel.name or summand is None or summand.kernel is None:
        return False
    joined = regions.group[[summand.first_channel, result.first_channel]]
    if any(signed.get(int(group), set()) - {summand.tensor} for group in joined):
        return False
    if summand.tensor not in signed.get(int(joined[0]), set()):
        return True
    # To be raised through the bias, it may have no other reader, and no activation, which would change what is added.
    return len(graph.consumers(summand.tensor)) == 1 and settled[summand.kernel].activation is None


def _raised(kernel: Convolution, amount: float) -> Convolution:
    channels = kernel.weights.shape[2] if kernel.is_depthwise else kernel.weights.shape[3]
    bias = np.zeros(channels, np.float32) if kernel.bias is None else kernel.bias
    return replace(kernel, bias=(bias + np.float32(amount)).astype(np.float32))


def _raised_range(observed: TensorRange, amount: float) -> TensorRange:
    raise_by = np.float32(amount)
    ends = None if observed.ends is None else (observed.ends[0] + amount, observed.ends[1] + amount)
    # The lowest value is 0 now, whatever the last bit of the difference says.
    lows = np.maximum(observed.lows + raise_by, 0)
    return replace(observed, lows=lows, highs=observed.highs + raise_by, counts=observed.counts[:0], ends=ends)
