"""Rounding each weight up or down so that a convolution's result, not the weight, is least disturbed."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tuner.errors import QuantizationError
from tuner.model.detection_model import DetectionModel
from tuner.model.runner import ModelRunner
from tuner.precision import PrecisionPlan
from tuner.quantization.corrections.parameters import Parameters, with_parameters
from tuner.quantization.lowering.codes import QuantizedConvolution, decide_codes
from tuner.quantization.lowering.convolutions import Convolution, find_convolutions
from tuner.quantization.lowering.scales import SIGNED_LEVELS
from tuner.quantization.lowering.shared_weights import find_shared_weights
from tuner.quantization.ranges import Ranges

# Inputs of one result, above which an op stays as it is: the matrix of their moments grows with the square.
MOST_INPUTS = 1200
POSITIONS_PER_IMAGE = 512
MOST_SWEEPS = 20
# Of the mean second moment, added to every input's own: flips have to pay on more than chance.
DAMPING = 0.01


def round_weights(
    model: DetectionModel, plan: PrecisionPlan, ranges: Ranges, images: Iterable[NDArray[np.generic]]
) -> DetectionModel:
    """The model with the weights of int8 ops on their codes' grid, each at the code below or above its value.

    Nagel et al. 2020, "Up or down? Adaptive rounding for post-training quantization", arXiv:2004.10568: the squared
    error of a result is e' * M * e, with e the rounding errors of the weights and M = E[x x'] the second moments of the
    inputs over images and positions (equation 13). It is brought down by coordinate descent from the nearest codes:
    each weight in turn takes its other neighbour where that lowers the error. Inputs are taken from the float graph.
    model: float, BatchNorm folded. images: each [1, H, W, 3]. The weight of the highest code of each channel stays, so
    that the lowering finds the same scale again, and with it the same codes. Left alone: MatMuls, weights that several
    convolutions share, which are stored once, and those of very many inputs.
    Raises QuantizationError when there are no images.
    """
    shared = find_shared_weights(find_convolutions(model.graph)[0])
    kernels = {
        name: kernel
        for name, kernel in decide_codes(model.graph, plan, ranges).kernels.items()
        if name not in shared and not kernel.convolution.is_matmul_node and _Layout.of(kernel).inputs <= MOST_INPUTS
    }
    moments = _second_moments(model, kernels, images)
    changed = {name: Parameters(weights=_rounded(kernel, moments[name])) for name, kernel in kernels.items()}
    convolutions = {name: kernel.convolution for name, kernel in kernels.items()}
    return model.with_graph(with_parameters(model.graph, convolutions, changed).graph_def)


def least_error_codes(
    exact: NDArray[np.float64], steps: NDArray[np.float64], moments: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Codes next to `exact` for which the error sum_g,o e[g,:,o]' * moments[g] * e[g,:,o] is (locally) least.

    exact: [groups, inputs, outputs], weights in units of `steps`, which broadcasts against it: the value of one code.
    moments: [groups, inputs, inputs]. e = (codes - exact) * steps. Codes at +-127 stay there.
    """
    codes = np.rint(exact)
    # Where the exact value is a whole number, both neighbours are as bad as can be.
    others = np.where(codes > exact, codes - 1, codes + 1)
    fixed = (np.abs(codes) >= SIGNED_LEVELS) | (np.abs(others) > SIGNED_LEVELS)
    steps = np.broadcast_to(steps, exact.shape)
    slopes = moments @ ((codes - exact) * steps)
    for _ in range(MOST_SWEEPS):
        flipped = False
        for index in range(exact.shape[1]):
            change = (others[:, index] - codes[:, index]) * steps[:, index]
            gain = 2 * change * slopes[:, index] + change**2 * moments[:, index, index, np.newaxis]
            flips = (gain < 0) & ~fixed[:, index]
            if not flips.any():
                continue
            flipped = True
            slopes += moments[:, :, index, np.newaxis] * np.where(flips, change, 0)[:, np.newaxis]
            codes[:, index], others[:, index] = (
                np.where(flips, others[:, index], codes[:, index]),
                np.where(flips, codes[:, index], others[:, index]),
            )
        if not flipped:
            break
    return codes


@dataclass(frozen=True)
class _Layout:
    """Weights [kh, kw, in, out] as matrices: [groups, inputs, outputs], where the inputs are taps times channels."""

    taps: int
    groups: int
    inputs: int
    outputs: int

    @classmethod
    def of(cls, kernel: QuantizedConvolution) -> "_Layout":
        height, width, channels, results = kernel.weights.shape
        if kernel.convolution.is_depthwise:
            return cls(height * width, channels, height * width, 1)
        groups = len(kernel.scale.peaks) // channels
        return cls(height * width, groups, height * width * channels, results // groups)

    def grouped(self, weights: NDArray[np.float32]) -> NDArray[np.float64]:
        return weights.astype(np.float64).reshape(self.inputs, self.groups, self.outputs).transpose(1, 0, 2)

    def steps(self, kernel: QuantizedConvolution) -> NDArray[np.float64]:
        """The value of one code of each weight, in the float graph's unit: [groups, inputs, outputs]."""
        made = kernel.weight_peaks.astype(np.float64) / SIGNED_LEVELS
        if kernel.output is not None:
            made = made * kernel.output.peaks
        read = np.tile(kernel.scale.peaks.astype(np.float64).reshape(self.groups, -1), self.taps)
        return made.reshape(self.groups, 1, self.outputs) / read[:, :, np.newaxis]

    def moments(self, kernel: QuantizedConvolution, values: NDArray[np.float32]) -> NDArray[np.float64]:
        """Mean products of inputs over some positions of one image: [groups, inputs, inputs]. values: [1, H, W, C]."""
        patches = _patches(kernel.convolution, values).reshape(-1, self.taps, self.groups, self.inputs // self.taps)
        patches = patches[:: max(1, len(patches) // POSITIONS_PER_IMAGE)].transpose(2, 0, 1, 3)
        inputs = patches.reshape(self.groups, -1, self.inputs).astype(np.float64)
        return np.asarray(inputs.transpose(0, 2, 1) @ inputs / inputs.shape[1])


def _patches(convolution: Convolution, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The inputs of every position, [1, H out, W out, kh * kw * channels]."""
    attributes = convolution.node.attr
    padding = attributes["padding"].s.decode()
    if convolution.pad is not None:
        values = np.pad(values, convolution.pads)
    if padding == "EXPLICIT":
        values = np.pad(values, np.array(attributes["explicit_paddings"].list.i).reshape(4, 2))
        padding = "VALID"
    patches: NDArray[np.float32] = tf.image.extract_patches(
        values,
        [1, *convolution.weights.shape[:2], 1],
        list(attributes["strides"].list.i),
        list(attributes["dilations"].list.i) or [1, 1, 1, 1],
        padding,
    ).numpy()
    return patches


def _second_moments(
    model: DetectionModel, kernels: Mapping[str, QuantizedConvolution], images: Iterable[NDArray[np.generic]]
) -> dict[str, NDArray[np.float64]]:
    """The mean products of each op's inputs over images: [groups, inputs, inputs]."""
    totals: dict[str, NDArray[np.float64]] = {}
    tensors = sorted({kernel.convolution.input for kernel in kernels.values()})
    with ModelRunner(model) as runner:
        for image in images:
            values = dict(zip(tensors, runner.fetch([_fetched(one) for one in tensors], image), strict=True))
            for name, kernel in kernels.items():
                moments = _Layout.of(kernel).moments(kernel, values[kernel.convolution.input])
                totals[name] = totals[name] + moments if name in totals else moments
    if kernels and not totals:
        raise QuantizationError("no calibration images: at least one is needed to round weights")
    return totals


def _fetched(tensor: str) -> str:
    return tensor if ":" in tensor else f"{tensor}:0"


def _rounded(kernel: QuantizedConvolution, moments: NDArray[np.float64]) -> NDArray[np.float32]:
    """The weights, each a whole number of its steps."""
    layout, weights = _Layout.of(kernel), kernel.convolution.weights
    steps = layout.steps(kernel)
    own = np.trace(moments, axis1=1, axis2=2).mean() / layout.inputs
    codes = least_error_codes(layout.grouped(weights) / steps, steps, moments + DAMPING * own * np.eye(layout.inputs))
    return np.asarray((codes * steps).transpose(1, 0, 2).reshape(weights.shape), np.float32)
