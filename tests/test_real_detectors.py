"""The contract of the lowering on detectors trained by others: int8 graph and simulation, side by side on real images.

They compute the same codes op for op. What sets them apart is a float op that rounds a tie the other way; behind tens
of convolutions such a difference of one code has spread. So both are run as they are written: what TensorFlow's graph
optimisers make of the one and of the other differs in last bits.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from tuner.data.calibration import calibration_images
from tuner.data.dataset import DetectionDataset, open_dataset
from tuner.evaluation.coco_map import ImageTruth, coco_metrics
from tuner.model.detection_model import DetectionModel
from tuner.model.loading import load_model
from tuner.model.runner import ModelRunner
from tuner.precision import INT8, Dtype, PrecisionPlan
from tuner.quantization.audit import read_plan
from tuner.quantization.lowering.codes import QuantizedConvolution, quantize_convolutions
from tuner.quantization.lowering.fold_batch_norm import fold_batch_norm
from tuner.quantization.quantize import find_quantizable_ops, quantize, view
from tuner.quantization.ranges import collect_ranges
from tuner.quantization.simulation import simulate

SAME_MAP = 0.001
SHARE_KEPT = 0.9
# As a share of a kernel's results.
TIES = 0.002

SSD = "od_api/ssd_mobilenet_v1_depth05/frozen_inference_graph.pb"
FLOAT_MAP = {
    "detectors/fastestdet.pb": 0.163,
    "detectors/yolo_fastestv2_bn.pb": 0.148,
    "detectors/nanodet_plus_m_320.pb": 0.298,
    "detectors/picodet_s_320.pb": 0.301,
    SSD: 0.9135,
}


@dataclass(frozen=True)
class Quantized:
    """A detector with every convolution in int8. convolutions: what its kernels were written from."""

    model: DetectionModel
    int8: DetectionModel
    simulation: DetectionModel
    convolutions: list[QuantizedConvolution]
    dataset: DetectionDataset


@pytest.fixture(scope="module")
def val(assets: Path) -> DetectionDataset:
    return open_dataset(assets / "coco_val/instances_with_masks.json")


@pytest.fixture(scope="module", params=FLOAT_MAP)
def quantized(assets: Path, request: pytest.FixtureRequest) -> Quantized:
    if request.param == SSD:
        dataset = calibration = open_dataset(assets / "od_api/ssd_mobilenet_v1_depth05/fit/instances.json")
    else:
        dataset = request.getfixturevalue("val")
        calibration = open_dataset(assets / "coco_train/instances.json", cache_mb=0)
    model = load_model(assets / request.param)
    ops = find_quantizable_ops(model)
    ranges = collect_ranges(model, sorted(set(ops.inputs.values())), calibration_images(calibration, 60))
    plan = PrecisionPlan(dict.fromkeys(ops.inputs, INT8))
    int8 = quantize(model, plan, ranges)
    assert read_plan(int8, ops.inputs).count()[Dtype.INT8] == len(ops.inputs)
    folded = fold_batch_norm(view(model))
    simulation = model.with_graph(simulate(folded, plan, ranges).graph_def)
    return Quantized(model, int8, simulation, quantize_convolutions(folded, plan, ranges), dataset)


def test_int8_graph_and_simulation_agree_and_keep_the_accuracy(
    quantized: Quantized, request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.params["quantized"]
    graphs = (quantized.model, quantized.int8, quantized.simulation)
    before, after, simulated = (mean_average_precision(graph, quantized.dataset) for graph in graphs)

    print(f"{name}: float {before:.4f}, int8 {after:.4f}, simulation {simulated:.4f}, apart {after - simulated:+.4f}")
    assert before == pytest.approx(FLOAT_MAP[name], abs=0.001)
    assert abs(after - simulated) <= SAME_MAP
    assert after >= SHARE_KEPT * before


def test_every_kernel_computes_its_codes(quantized: Quantized) -> None:
    """Each kernel by itself, on the codes that it really met: at most one code apart, and that rarely.

    Of 32-bit sums, of which many make a code: at most one apart, and what float32 cannot tell apart.
    """
    kernels = {node.name: node for node in quantized.int8.graph_def.node}
    names = [f"{one.convolution.name}/int8" for one in quantized.convolutions]
    tensors = [tensor for name in names for tensor in (kernels[name].input[0], name)]
    with ModelRunner(quantized.int8) as runner:
        values = runner.fetch([f"{tensor}:0" for tensor in tensors], quantized.dataset.first_image[np.newaxis])
    for index, one in enumerate(quantized.convolutions):
        codes, result = (value.astype(np.float64) for value in values[2 * index : 2 * index + 2])
        expected = expected_result(one, codes)
        difference = np.abs(result - expected)
        if one.output is None:
            assert np.all(difference <= 1 + 2**-22 * np.abs(expected)), names[index]
        else:
            assert difference.max() <= 1, names[index]
            assert difference.mean() <= TIES, names[index]


def expected_result(one: QuantizedConvolution, codes: NDArray[np.float64]) -> NDArray[np.float64]:
    """The codes of a convolution's result, or its 32-bit sums, in float64: exact but for the last rounding."""
    node, weights = one.convolution.node, one.weights.astype(np.float64)
    op = tf.raw_ops.DepthwiseConv2dNative if one.convolution.is_depthwise else tf.raw_ops.Conv2D
    sums = op(
        input=codes,
        filter=weights,
        strides=list(node.attr["strides"].list.i),
        padding=node.attr["padding"].s.decode(),
        explicit_paddings=list(node.attr["explicit_paddings"].list.i),
        dilations=list(node.attr["dilations"].list.i) or [1, 1, 1, 1],
    ).numpy()
    units = one.units.astype(np.float64)
    if one.output is None:
        # Sums stay whole numbers.
        sums += 0 if one.bias is None else np.round(one.bias / units)
        return np.maximum(sums, 0) if one.convolution.activation == "Relu" else sums
    values = sums * units + (0 if one.bias is None else one.bias)
    if one.convolution.activation is not None:
        values = np.maximum(values, 0)
    # A kernel makes a result with scales per channel as -1..1.
    peak = 1 if one.output.peaks.ndim else float(one.output.peaks)
    lowest = one.output.lowest_code(from_kernel=True)
    return np.clip(np.round(values * one.output.levels / peak), lowest, one.output.levels)


def mean_average_precision(model: DetectionModel, dataset: DetectionDataset) -> float:
    truths = [ImageTruth(entry.image_id, entry.height, entry.width, entry.ground_truth) for entry in dataset.entries]
    with ModelRunner(model, as_written=True) as runner:
        return coco_metrics(truths, [runner.detect(sample.image) for sample in dataset]).figures["mAP"]
