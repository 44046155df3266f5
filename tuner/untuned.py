"""Quantisation as it was before there was tuning: one graph, by what is asked for, and no accuracy measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from tuner.config import TuningConfig
from tuner.data.calibration import calibration_images
from tuner.engine import make_engine, optimized_model, search_space, worthwhile_space
from tuner.errors import ModelError
from tuner.graph.inference import optimize_for_inference
from tuner.graph.store_weights import find_stored_weights, store_weights_in_8_bits
from tuner.inputs import open_inputs
from tuner.model.detection_model import DetectionModel
from tuner.precision import Dtype
from tuner.quantization.bfloat16_ops import float_products, quantize_to_bfloat16
from tuner.quantization.cpu import read_cpu_features, warn_without_vnni
from tuner.quantization.quantize import find_quantizable_ops, prepare
from tuner.quantization.ranges import collect_ranges
from tuner.trial import Proposal


@dataclass(frozen=True)
class Untuned:
    """A graph that was made without measuring what it loses.

    ops: how many operators compute in each precision. notes: what else was done, in one line each.
    left_in_float: op -> why, of those that stayed.
    """

    model: DetectionModel
    ops: Mapping[Dtype, int]
    notes: tuple[str, ...] = ()
    left_in_float: Mapping[str, str] = field(default_factory=dict)


def read_calibration_images(
    config: TuningConfig, model: DetectionModel, *, skip_bad_records: bool = False, allow_code: bool = False
) -> list[NDArray[Any]]:
    """The images that the settings name for calibration, else the first of the evaluation set, each [1, H, W, 3].

    As many as the largest `sampling_size`, with the settings' transforms. allow_code: as `open_inputs`.
    Raises ConfigError where no source is named, DatasetError for a bad one, ModelError where the model's input
    does not take what it gives.
    """
    calibration = config.quantization.calibration
    has_own = calibration.dataset is not None or calibration.q_dataloader is not None
    inputs = open_inputs(
        config,
        skip_bad_records=skip_bad_records,
        cache_mb=0,
        # Nothing is evaluated: where calibration has images of its own, the evaluation set need not be there.
        eval_func=(lambda graph: 0.0) if has_own or config.evaluation.accuracy.dataset is None else None,
        fed_to=model,
        allow_code=allow_code,
    )
    return list(calibration_images(inputs.calibration, max(calibration.sampling_sizes)))


def quantize_to_eight_bits(config: TuningConfig, model: DetectionModel, images: Sequence[NDArray[Any]]) -> Untuned:
    """The first plan that tuning with these settings would try: int8 wherever it is allowed and gains time.

    The settings of a finished run, its plan.yaml, allow one decision for each operator: with them and the same images
    this is that run's graph, bit for bit. images: each [1, H, W, 3], those of `read_calibration_images`.
    Raises ModelError for a model with nothing to quantise, ConfigError for rules that match nothing.
    """
    features = read_cpu_features()
    warn_without_vnni(features)
    optimized = optimized_model(config, model, images)
    prepared = prepare(optimized.model)
    ops = find_quantizable_ops(prepared)
    space = search_space(config, model, ops, features, len(images))
    ranges = collect_ranges(prepared, ops.tensors, images)
    space, unprofitable = worthwhile_space(config, space, prepared, ranges)
    engine = make_engine(config, optimized.model, prepared, ops=ops, ranges=ranges, images=images)
    plan = next(iter(space.anchors().values()))
    graph = engine.quantize(Proposal(plan, space.most_images, space.corrections))
    applied = engine.read_plan(graph)
    floats = {op: why for op, why in unprofitable.items() if applied[op].dtype is Dtype.FP32}
    notes = (f"ranges from {space.most_images} images", *optimized.notes)
    return Untuned(graph, applied.count(), notes, {**ops.refused, **floats})


def quantize_to_bf16(model: DetectionModel) -> Untuned:
    """Convolutions and matrix products in bfloat16, as far as that saves more time than Casts around them take.

    Raises ModelError where nothing can be.
    """
    found = quantize_to_bfloat16(prepare(model))
    if not found.names:
        reasons = "; ".join(set(found.refused.values())) or "it has no convolution or matrix product in float32"
        raise ModelError(f"{model.source}: nothing can be bf16: {reasons}")
    ops = {Dtype.BF16: len(found.names), Dtype.FP32: len(found.refused)}
    return Untuned(found.model, ops, left_in_float=found.refused)


def store_weights(model: DetectionModel) -> Untuned:
    """The model, optimised for inference, with its weights stored in 8 bits; all of it computes in float32.

    Raises ModelError where no weights would take less room, or where they are stored so already.
    """
    optimized = optimize_for_inference(model)
    stored = store_weights_in_8_bits(optimized.graph)
    if not stored.tensors and find_stored_weights(optimized.graph):
        raise ModelError(f"{model.source}: its weights are stored in 8 bits already")
    if not stored.tensors:
        raise ModelError(f"{model.source}: no weights in float32 that 8 bits would make smaller")
    graph = model.with_graph(stored.graph.graph_def)
    notes = (
        f"{stored.values} weights of {stored.tensors} tensors in 8 bits, {stored.kept_float} tensors as they were",
        f"largest error of a weight: {stored.largest_error:.2%} of the largest in {stored.worst}",
    )
    return Untuned(graph, {Dtype.FP32: len(float_products(graph.graph))}, notes)
