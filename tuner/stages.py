"""What the stages of a run are made of; their order is the pipeline's."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from tuner.config import ComputeConfig, TuningConfig, resolve_op_rules
from tuner.data.dataset import DetectionDataset
from tuner.errors import ModelError, TunerError
from tuner.evaluation.evaluator import CocoEvaluator, Evaluator, FunctionEvaluator
from tuner.evaluation.latency import measure_models
from tuner.inputs import Inputs
from tuner.model.detection_model import DetectionModel
from tuner.precision import OpPrecision, PrecisionPlan
from tuner.progress import Progress
from tuner.quantization.audit import read_plan
from tuner.quantization.inc_adapter import applied_by_inc, quantize_with_inc
from tuner.quantization.quantize import QuantizableOps, quantize
from tuner.quantization.range_cache import load_ranges, range_file, save_ranges
from tuner.quantization.ranges import Ranges, collect_ranges, first_images
from tuner.trial import CompletedTrial, Measurement

# The float and the best graph are timed side by side for about so long, from at least and at most so many runs each.
COMPARISON_S = 10.0
FEWEST_RUNS, MOST_RUNS = 5, 100

Image = NDArray[Any]
Quantize = Callable[[PrecisionPlan, int], DetectionModel]
ReadPlan = Callable[[DetectionModel], PrecisionPlan]


def storage_url(workspace: Path, storage: str | None) -> str:
    """The SQLAlchemy URL of the study: `storage`, or `study.db` in the workspace, whose folder is made.

    Raises TunerError when the folder cannot be made.
    """
    if storage is not None:
        return storage
    try:
        workspace.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TunerError(f"{workspace}: the workspace cannot be made: {error.strerror or error}") from error
    return f"sqlite:///{workspace.resolve() / 'study.db'}"


def identity(config: TuningConfig, model: DetectionModel, inputs: Inputs) -> dict[str, str]:
    """What has to be equal for the measurements of two sessions to be comparable."""
    return {
        "model": model.sha256,
        "evaluation set": inputs.evaluation_identity,
        "calibration set": inputs.calibration_identity,
        "engine": str(config.quantization.engine),
    }


def allowed_decisions(config: TuningConfig, ops: QuantizableOps) -> Mapping[str, Sequence[OpPrecision]]:
    """The decisions that the settings allow for each operator that can be int8, the preferred one first.

    Raises ConfigError for a rule that matches no convolution, ModelError for a model without one to quantise.
    """
    if not ops.inputs:
        reasons = "; ".join(sorted(set(ops.refused.values()))) or "it has no convolutions"
        raise ModelError(f"nothing in the model can be int8: {reasons}")
    rules = resolve_op_rules(config.quantization.op_wise, [*ops.inputs, *ops.refused], config.quantization.model_wise)
    return {op: rules[op] for op in ops.inputs}


def calibrated_ranges(
    workspace: Path, model: DetectionModel, ops: QuantizableOps, inputs: Inputs, images: Sequence[Image]
) -> tuple[Ranges, int]:
    """The ranges over the calibration images, and how often they were collected just now.

    That is 0 where the workspace has them from an earlier run; the images of a user's own loader cannot be told apart
    from those of another, so theirs are always collected.
    """
    tensors = sorted(set(ops.inputs.values()))
    path = range_file(workspace / "ranges", [model.sha256, inputs.calibration_identity, str(len(images))])
    kept = load_ranges(path, tensors) if isinstance(inputs.calibration, DetectionDataset) else None
    if kept is not None:
        return kept, 0
    ranges = collect_ranges(model, tensors, images)
    save_ranges(path, ranges)
    return ranges, 1


def make_evaluator(config: TuningConfig, inputs: Inputs, image: Image, progress: Progress) -> Evaluator:
    """What measures graphs: the user's eval_func, or COCO mAP on the evaluation set. image: to take latency on."""
    threads = apply_compute(config.evaluation.accuracy.configs)
    if inputs.eval_func is not None:
        return FunctionEvaluator(inputs.eval_func, image, *threads)
    if inputs.evaluation is None:
        raise ValueError("inputs have neither an evaluation set nor an eval_func")
    return CocoEvaluator(inputs.evaluation, progress, *threads)


def make_engine(
    config: TuningConfig, model: DetectionModel, ops: QuantizableOps, ranges: Ranges, images: Sequence[Image]
) -> tuple[Quantize, ReadPlan]:
    """The two functions of the chosen engine: (plan, number of calibration images) -> graph, and graph -> plan."""
    if config.quantization.engine == "inc":
        return (
            lambda plan, count: quantize_with_inc(model, plan, images[:count]),
            lambda graph: applied_by_inc(graph.graph_def, list(ops.inputs)),
        )
    return (
        lambda plan, count: quantize(model, plan, first_images(ranges, count)),
        partial(read_plan, ops=list(ops.inputs)),
    )


def timed_in_turns(
    config: TuningConfig,
    graphs: tuple[DetectionModel, DetectionModel],
    image: Image,
    baseline: Measurement,
    best: CompletedTrial,
) -> tuple[Measurement, CompletedTrial]:
    """Baseline and best with latencies measured in turns, so that a busy machine meets both alike.

    graphs: the float and the best one. image: [1, H, W, 3].
    """
    performance = config.evaluation.performance
    runs = int(COMPARISON_S * 1000 / (baseline.latency_ms + best.measurement.latency_ms))
    before, after = measure_models(
        graphs,
        image,
        threads=performance.configs.cores_per_instance or 0,
        warmup=performance.warmup,
        iterations=performance.iteration if performance.iteration > 0 else min(max(runs, FEWEST_RUNS), MOST_RUNS),
    )
    return (
        replace(baseline, latency_ms=before.median_ms, latency_p90_ms=before.p90_ms),
        replace(
            best,
            measurement=replace(best.measurement, latency_ms=after.median_ms, latency_p90_ms=after.p90_ms),
        ),
    )


def apply_compute(compute: ComputeConfig) -> tuple[int, int]:
    """Threads inside one operator and for independent ones, 0 for TensorFlow's own choice.

    kmp_blocktime goes to the process environment, where an OpenMP build of oneDNN reads it.
    """
    if compute.kmp_blocktime is not None:
        os.environ["KMP_BLOCKTIME"] = str(compute.kmp_blocktime)
    return compute.intra_num_of_threads or compute.cores_per_instance or 0, compute.inter_num_of_threads or 0
