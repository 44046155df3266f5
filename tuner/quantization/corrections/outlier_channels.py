"""Outlier channel splitting: a channel of huge range becomes two of half the range, so that one scale serves all."""

import math

import numpy as np
from numpy.typing import NDArray

from tuner.model.graph_view import GraphView
from tuner.quantization.corrections.pairs import find_pairs
from tuner.quantization.corrections.parameters import Parameters, with_parameters
from tuner.quantization.lowering.convolutions import find_convolutions
from tuner.quantization.ranges import Ranges, TensorRange


def split_outlier_channels(graph: GraphView, ranges: Ranges, share: float = 0.02) -> tuple[GraphView, Ranges]:
    """Split the channels of the largest activations, adding `share` of a tensor's channels and at least one.

    Zhao et al. 2019, "Improving neural network quantization without retraining using outlier channel splitting",
    arXiv:1901.09504: x * w = (x / 2) * w + (x / 2) * w. The convolution that makes the channel makes it twice with half
    the weights, those that read it have its weights twice; halves are exact, sums are taken in another order.
    Left alone: results of depthwise convolutions, which would need their inputs twice, and those that one reads, which
    has a scale for each channel already. Returns the graph and the ranges of its tensors; those of split ones have no
    histogram any more.
    """
    convolutions, _ = find_convolutions(graph)
    weights = {name: one.weights for name, one in convolutions.items()}
    biases = {name: one.bias for name, one in convolutions.items()}
    split_ranges = dict(ranges)
    changed: set[str] = set()
    for name, readers in find_pairs(graph, convolutions).items():
        observed = ranges.get(convolutions[name].output)
        if observed is None or any(convolutions[op].is_depthwise for op in (name, *readers)):
            continue
        origins, parts = _splits(observed, math.ceil(share * observed.channels))
        weights[name] = weights[name][..., origins] * parts
        bias = biases[name]
        biases[name] = None if bias is None else bias[origins] * parts
        for reader in readers:
            weights[reader] = weights[reader][:, :, origins]
        changed.update((name, *readers))
        split_ranges[convolutions[name].output] = TensorRange(
            observed.lows[:, origins] * parts,
            observed.highs[:, origins] * parts,
            shape=(*observed.shape[:-1], len(origins)) if observed.shape else (),
        )
    parameters = {name: Parameters(weights[name], biases[name]) for name in changed}
    return with_parameters(graph, convolutions, parameters), split_ranges


def _splits(observed: TensorRange, count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Of which channel each new channel is a part, and how much of it: [channels + count] both."""
    peaks = list(np.maximum(np.abs(observed.lows), np.abs(observed.highs)).max(0))
    origins, parts = list(range(len(peaks))), [1.0] * len(peaks)
    for _ in range(count):
        largest = int(np.argmax(peaks))
        peaks[largest] /= 2
        parts[largest] /= 2
        origins.append(origins[largest])
        parts.append(parts[largest])
        peaks.append(peaks[largest])
    return np.array(origins), np.array(parts, np.float32)
