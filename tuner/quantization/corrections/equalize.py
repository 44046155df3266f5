"""Cross-layer equalisation: channels of two convolutions in a row get weights of like size, and results too."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tuner.model.graph_view import GraphView
from tuner.quantization.corrections.pairs import channels_made, find_pairs
from tuner.quantization.corrections.parameters import Parameters, with_parameters
from tuner.quantization.lowering.convolutions import Convolution, find_convolutions
from tuner.quantization.ranges import Ranges

# Long chains settle after a few: every round brings each pair into balance given its neighbours.
MOST_ROUNDS = 20


def equalize(graph: GraphView, ranges: Ranges) -> tuple[GraphView, Ranges]:
    """Divide channel i of a result by s_i and multiply the weights that read it by s_i = sqrt(r1_i / r2_i).

    Nagel et al. 2019, "Data-free quantization through weight equalization and bias correction", arXiv:1906.04721,
    equation 11; r1_i is the largest weight that makes channel i, r2_i the largest that reads it. Here s_i is rounded to
    a power of two, so that the float graph computes what it did to the last bit.
    Returns the graph and the ranges of its tensors; those of rescaled tensors have no histogram any more.
    """
    convolutions, _ = find_convolutions(graph)
    pairs = find_pairs(graph, convolutions)
    weights = {name: convolution.weights.astype(np.float64) for name, convolution in convolutions.items()}
    factors = {name: np.ones(channels_made(convolutions[name])) for name in pairs}
    for _ in range(MOST_ROUNDS):
        settled = True
        for name, readers in pairs.items():
            made = _peaks_made(convolutions[name], weights[name])
            read = np.max([np.abs(weights[reader]).max((0, 1, 3)) for reader in readers], axis=0)
            alive = (made > 0) & (read > 0)
            exponents = np.rint(np.log2(np.where(alive, made, 1) / np.where(alive, read, 1)) / 2)
            if not exponents.any():
                continue
            settled = False
            factor = np.exp2(exponents)
            factors[name] *= factor
            weights[name] /= _per_channel_made(convolutions[name], factor)
            for reader in readers:
                weights[reader] *= factor[:, np.newaxis]
        if settled:
            break
    biases = {name: convolution.bias for name, convolution in convolutions.items()}
    rescaled = dict(ranges)
    for name, factor in factors.items():
        bias, observed = biases[name], ranges.get(convolutions[name].output)
        biases[name] = None if bias is None else (bias / factor).astype(np.float32)
        if observed is not None and np.any(factor != 1):
            rescaled[convolutions[name].output] = replace(
                observed,
                lows=(observed.lows / factor).astype(np.float32),
                highs=(observed.highs / factor).astype(np.float32),
                counts=observed.counts[:0],
            )
    changed = {
        name: Parameters(values.astype(np.float32), biases[name])
        for name, values in weights.items()
        if np.any(values != convolutions[name].weights)
    }
    return with_parameters(graph, convolutions, changed), rescaled


def _peaks_made(convolution: Convolution, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The largest weight of each output channel: [channels out]."""
    peaks: NDArray[np.float64] = np.abs(weights).max((0, 1) if convolution.is_depthwise else (0, 1, 2)).reshape(-1)
    return peaks


def _per_channel_made(convolution: Convolution, factor: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shaped to broadcast against the weights that make the channels."""
    return factor[:, np.newaxis] if convolution.is_depthwise else factor
