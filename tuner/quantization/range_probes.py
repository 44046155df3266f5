"""Ops that observe tensors from inside a graph: what is fetched is small, however large the tensors are."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike
from tensorflow.core.framework.graph_pb2 import GraphDef
from tensorflow.core.framework.node_def_pb2 import NodeDef

from tuner.model.detection_model import DetectionModel
from tuner.model.nodes import Attribute, const_node, op_node
from tuner.quantization.histogram import BINS, LEAST_PEAK

_SCOPE = "calibration"


@dataclass(frozen=True, slots=True)
class Probe:
    """The outputs that tell about one tensor of an image.

    lows, highs: [channels] float32, the extremes over all axes but the last. shape: [rank] int32.
    counts: [2049] int32, laid out as a `Histogram` from the image's own extremes; the last one belongs to the bin
    before it (values just below the highest end, rounded up to it).
    """

    lows: str
    highs: str
    counts: str
    shape: str


def with_probes(model: DetectionModel, tensors: Sequence[str]) -> DetectionModel:
    """The model with probes of `tensors` (float, channels last) as its only outputs."""
    graph_def = GraphDef()
    graph_def.CopyFrom(model.graph_def)
    graph_def.node.extend(_constants())
    for index, tensor in enumerate(tensors):
        graph_def.node.extend([*_extremes(tensor, _scope(index)), *_counts(tensor, _scope(index))])
    outputs = tuple(output for one in probes_of(tensors) for output in (one.lows, one.highs, one.counts, one.shape))
    return replace(model, graph_def=graph_def, outputs=outputs)


def probes_of(tensors: Sequence[str]) -> list[Probe]:
    """Those that `with_probes` adds for `tensors`."""
    parts = ("lows", "highs", "counts", "shape")
    return [Probe(*(f"{_scope(index)}/{part}:0" for part in parts)) for index in range(len(tensors))]


def _scope(index: int) -> str:
    return f"{_SCOPE}/{index}"


def _constants() -> list[NodeDef]:
    values: dict[str, ArrayLike] = {
        "zero": np.int32(0),
        "one": np.int32(1),
        "exponent_bits": np.int32(0x7F800000),
        "least_peak": np.float32(LEAST_PEAK),
        "no_bins": np.float32(0),
        "quarter_of_bins": np.float32(BINS // 4),
        "half_of_bins": np.float32(BINS // 2),
        "bins_and_end": np.int32(BINS + 1),
        "unweighted": np.zeros(0, np.int32),
    }
    return [const_node(f"{_SCOPE}/{name}", value) for name, value in values.items()]


def _extremes(tensor: str, scope: str) -> list[NodeDef]:
    reduction: dict[str, Attribute] = {"T": tf.float32, "Tidx": tf.int32, "keep_dims": False}
    return [
        op_node("Shape", f"{scope}/shape", [tensor], T=tf.float32, out_type=tf.int32),
        # Range(0, Rank - 1) and not [0, 1, 2]: the tensors of a second stage need not have four axes.
        op_node("Rank", f"{scope}/rank", [tensor], T=tf.float32),
        op_node("Sub", f"{scope}/last", [f"{scope}/rank", f"{_SCOPE}/one"], T=tf.int32),
        op_node("Range", f"{scope}/axes", [f"{_SCOPE}/zero", f"{scope}/last", f"{_SCOPE}/one"], Tidx=tf.int32),
        op_node("Min", f"{scope}/lows", [tensor, f"{scope}/axes"], **reduction),
        op_node("Max", f"{scope}/highs", [tensor, f"{scope}/axes"], **reduction),
        op_node("Min", f"{scope}/low", [f"{scope}/lows", f"{_SCOPE}/zero"], **reduction),
        op_node("Max", f"{scope}/high", [f"{scope}/highs", f"{_SCOPE}/zero"], **reduction),
    ]


def _counts(tensor: str, scope: str) -> list[NodeDef]:
    """Bins between 0, or minus the span, and the span: the least power of two above every magnitude of the image.

    The exponent bits of the peak are half of the span. Bincount on the bins' numbers runs on all threads, and unlike
    HistogramFixedWidth it does not fail the whole run for one NaN, which the extremes tell about by name.
    """
    return [
        op_node("Neg", f"{scope}/minus_low", [f"{scope}/low"], T=tf.float32),
        op_node("Maximum", f"{scope}/observed_peak", [f"{scope}/high", f"{scope}/minus_low"], T=tf.float32),
        op_node("Maximum", f"{scope}/peak", [f"{scope}/observed_peak", f"{_SCOPE}/least_peak"], T=tf.float32),
        op_node("Bitcast", f"{scope}/bits", [f"{scope}/peak"], T=tf.float32, type=tf.int32),
        op_node("BitwiseAnd", f"{scope}/exponent", [f"{scope}/bits", f"{_SCOPE}/exponent_bits"], T=tf.int32),
        op_node("Bitcast", f"{scope}/half_span", [f"{scope}/exponent"], T=tf.int32, type=tf.float32),
        op_node("Less", f"{scope}/has_negative", [f"{scope}/low", f"{_SCOPE}/no_bins"], T=tf.float32),
        op_node(
            "SelectV2",
            f"{scope}/bins_of_half_span",
            [f"{scope}/has_negative", f"{_SCOPE}/quarter_of_bins", f"{_SCOPE}/half_of_bins"],
            T=tf.float32,
        ),
        op_node(
            "SelectV2",
            f"{scope}/zero_bin",
            [f"{scope}/has_negative", f"{_SCOPE}/half_of_bins", f"{_SCOPE}/no_bins"],
            T=tf.float32,
        ),
        op_node("RealDiv", f"{scope}/per_unit", [f"{scope}/bins_of_half_span", f"{scope}/half_span"], T=tf.float32),
        op_node("Mul", f"{scope}/bins_from_zero", [tensor, f"{scope}/per_unit"], T=tf.float32),
        op_node("AddV2", f"{scope}/bins", [f"{scope}/bins_from_zero", f"{scope}/zero_bin"], T=tf.float32),
        op_node("Cast", f"{scope}/whole_bins", [f"{scope}/bins"], SrcT=tf.float32, DstT=tf.int32, Truncate=False),
        # What is no number becomes a negative one, which Bincount refuses.
        op_node("Maximum", f"{scope}/valid_bins", [f"{scope}/whole_bins", f"{_SCOPE}/zero"], T=tf.int32),
        op_node(
            "Bincount",
            f"{scope}/counts",
            [f"{scope}/valid_bins", f"{_SCOPE}/bins_and_end", f"{_SCOPE}/unweighted"],
            T=tf.int32,
        ),
    ]
