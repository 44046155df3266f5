"""The corrections in their order: what the lowering is then given in the place of the float model and its ranges."""

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from tuner.model.detection_model import DetectionModel
from tuner.precision import Correction, PrecisionPlan
from tuner.quantization.corrections.bias_correction import correct_biases
from tuner.quantization.corrections.equalize import equalize
from tuner.quantization.corrections.outlier_channels import split_outlier_channels
from tuner.quantization.corrections.weight_rounding import round_weights
from tuner.quantization.ranges import Ranges

# More change the figures by less than another choice of images does.
MOST_IMAGES = 16


def apply_corrections(
    prepared: DetectionModel,
    plan: PrecisionPlan,
    ranges: Ranges,
    images: Sequence[NDArray[np.generic]],
    wanted: Collection[Correction],
) -> tuple[DetectionModel, Ranges]:
    """The float model and the ranges to lower `plan` from, corrected for what this plan rounds.

    images: for calibration, each [1, H, W, 3]; the first 16 are run. Only the lowering is to see the result: accuracy
    and sensitivity are measured against `prepared`. Raises QuantizationError as the single corrections do.
    """
    model, images = prepared, images[:MOST_IMAGES]
    if Correction.EQUALIZATION in wanted:
        graph, ranges = equalize(model.graph, ranges)
        model = model.with_graph(graph.graph_def)
    if Correction.SPLITTING in wanted:
        graph, ranges = split_outlier_channels(model.graph, ranges)
        model = model.with_graph(graph.graph_def)
    exact = model
    if Correction.ROUNDING in wanted:
        model = round_weights(model, plan, ranges, images)
    if Correction.BIAS in wanted:
        model = correct_biases(model, plan, ranges, images, exact)
    return model, ranges
