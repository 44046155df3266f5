"""What turns proposals into graphs in this run: what may be tried, the ranges, and the chosen engine."""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from numpy.typing import NDArray

from tuner.cache import Cache
from tuner.config import Objective, TuningConfig, resolve_op_rules
from tuner.errors import ConfigError, ModelError, QuantizationError, TunerError
from tuner.graph.postprocess import OPTIMIZATION_IMAGES, Optimization, optimize_postprocess
from tuner.model.detection_model import DetectionModel
from tuner.model.tensorflow_error import first_line
from tuner.precision import FP32, Correction, Dtype, OpPrecision, PrecisionPlan, RangeAlgorithm
from tuner.quantization.audit import read_plan
from tuner.quantization.child import Limits
from tuner.quantization.corrections.apply import apply_corrections
from tuner.quantization.cpu import CpuFeatures
from tuner.quantization.inc_adapter import applied_by_inc, quantize_with_inc
from tuner.quantization.lowering.codes import NO_MATMUL_KERNEL
from tuner.quantization.profit import find_unprofitable
from tuner.quantization.quantize import QuantizableOps, quantize
from tuner.quantization.range_cache import load_ranges, save_ranges
from tuner.quantization.ranges import Observe, Ranges, collect_ranges, first_images, observe
from tuner.search.space import SearchSpace
from tuner.trial import Proposal

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Engine:
    """quantize: makes the graph of a proposal. read_plan: what a graph really holds.

    source: what graphs are made from; None where the same proposal need not give the same graph.

    Whatever goes wrong in either is a TunerError: one plan, for which nothing else need stop.
    """

    quantize: Callable[[Proposal], DetectionModel]
    read_plan: Callable[[DetectionModel], PrecisionPlan]
    source: "LoweringSource | None" = None


@dataclass(frozen=True)
class LoweringSource:
    """All that the engine `lowering` makes graphs from, but for a plan. images: for corrections of weights."""

    prepared: DetectionModel
    ranges: Ranges
    matmul_kernel: bool
    images: Sequence[NDArray[Any]] = ()

    def lower(self, proposal: Proposal) -> DetectionModel:
        """The graph of a proposal: the same bit for bit wherever it is made. Raises QuantizationError."""
        count, plan = proposal.calibration_images, proposal.plan
        observed = first_images(self.ranges, count)
        corrected, observed = apply_corrections(
            self.prepared, plan, observed, self.images[:count], proposal.corrections
        )
        return quantize(corrected, plan, observed, matmul_kernel=self.matmul_kernel)


@contextmanager
def as_failure() -> Iterator[None]:
    """What a mistake of ours raises becomes a QuantizationError, "KeyError: 'conv'"; its traceback goes to the log.

    For all that is done about one plan while others wait. A MemoryError is among it: what numpy or TensorFlow is denied
    was for this plan, and nothing else is lost with it. Left alone are TunerErrors, and Ctrl-C.
    """
    try:
        yield
    except TunerError:
        raise
    except Exception as error:
        _log.debug("a plan met a mistake of the tuner", exc_info=True)
        told = dict.fromkeys((type(error).__name__, first_line(error)))
        raise QuantizationError(": ".join(told)) from error


def optimized_model(config: TuningConfig, model: DetectionModel, images: Sequence[NDArray[Any]]) -> Optimization:
    """The model with its post-processing rewritten, as far as the settings want it and the detections stay the same."""
    if not config.quantization.optimize_postprocess:
        return Optimization(model)
    return optimize_postprocess(model, images[:OPTIMIZATION_IMAGES])


def search_space(
    config: TuningConfig, model: DetectionModel, ops: QuantizableOps, features: CpuFeatures | None, images: int
) -> SearchSpace:
    """What the settings allow. images: how many there are for calibration. features: None where they are unknown.

    bf16 is among the decisions where the CPU multiplies it or a rule names it. A rule may name any operator of the
    model, as LPOT's files do; one that cannot be int8 has to be allowed float. MatMuls cannot where the settings want a
    graph for a TensorFlow without their kernel. Raises ConfigError for a rule that matches no operator or asks for what
    cannot be, ModelError for a model with nothing to quantise.
    """
    if not ops.names:
        reasons = "; ".join(sorted(set(ops.refused.values()))) or "it has no convolutions or MatMuls in float32"
        raise ModelError(f"nothing in the model can be int8: {reasons}")
    settings = config.quantization
    rules, every_op = settings.op_wise, [node.name for node in model.graph_def.node]
    without_kernel = _without_kernel(config, model, ops.names)
    refused = {**ops.refused, **without_kernel}
    for op, allowed in resolve_op_rules(rules, every_op).items():
        has_bfloat16 = op in without_kernel and any(one.dtype is Dtype.BF16 for one in allowed)
        if (op in refused or op not in ops.names) and FP32 not in allowed and not has_bfloat16:
            reason = refused.get(op, "only convolutions and MatMuls can")
            raise ConfigError(f"quantization.op_wise: {op} has to be int8, which it cannot be: {reason}")
    dtypes: tuple[Dtype, ...] = (Dtype.INT8, Dtype.FP32)
    algorithms: tuple[RangeAlgorithm, ...] = (RangeAlgorithm.MINMAX,)
    optional: tuple[Correction, ...] = ()
    if settings.engine == "lowering":
        algorithms, optional = tuple(RangeAlgorithm), (Correction.BIAS, Correction.EQUALIZATION)
        if features is not None and features.has_bfloat16 and not settings.int8_only:
            dtypes = tuple(Dtype)
    decisions = resolve_op_rules(rules, every_op, settings.model_wise, unnamed=dtypes, unnamed_algorithms=algorithms)
    sizes = dict.fromkeys(min(size, images) for size in settings.calibration.sampling_sizes)
    choices = {op: _without_int8(decisions[op]) if op in without_kernel else decisions[op] for op in ops.names}
    return SearchSpace(choices, tuple(sizes), settings.corrections, optional)


def _without_kernel(config: TuningConfig, model: DetectionModel, ops: Collection[str]) -> dict[str, str]:
    """The MatMuls among `ops`, with the reason, where the settings want a TensorFlow without the kernel for them."""
    if config.quantization.has_matmul_kernel:
        return {}
    matmuls = {node.name for node in model.graph_def.node if node.op == "MatMul"}
    return {op: NO_MATMUL_KERNEL for op in ops if op in matmuls}


def _without_int8(allowed: Sequence[OpPrecision]) -> tuple[OpPrecision, ...]:
    return tuple(one for one in allowed if one.dtype is not Dtype.INT8) or (FP32,)


def calibrated_ranges(
    cache: Cache,
    prepared: DetectionModel,
    ops: QuantizableOps,
    images: Sequence[NDArray[Any]],
    images_sha256: str,
    *,
    observe: Observe = observe,
) -> tuple[Ranges, int]:
    """The ranges over the calibration images, and how often they were collected just now: 0 where they were kept.

    observe: who runs the model.
    """
    dependencies = [prepared.sha256, images_sha256]
    kept = load_ranges(cache, dependencies, ops.tensors)
    if kept is not None:
        return kept, 0
    ranges = collect_ranges(prepared, ops.tensors, images, observe)
    save_ranges(cache, dependencies, ranges)
    return ranges, 1


def worthwhile_space(
    config: TuningConfig, space: SearchSpace, prepared: DetectionModel, ranges: Ranges
) -> tuple[SearchSpace, Mapping[str, str]]:
    """The space without int8 where that gains nothing and float is allowed.

    Settings that want int8 only, or do not ask for speed, and the engine `inc`, keep the whole space. Returns also the
    operators that are kept from int8, here or for want of a kernel, with why.
    """
    without_kernel = _without_kernel(config, prepared, space.choices)
    wants_speed = Objective.PERFORMANCE in config.tuning.weights
    if config.quantization.engine == "inc" or config.quantization.int8_only or not wants_speed:
        return space, without_kernel
    preferred = next(iter(space.anchors().values()))
    found: Mapping[str, str] = {}
    try:
        with as_failure():
            found = find_unprofitable(prepared, preferred, ranges, matmul_kernel=config.quantization.has_matmul_kernel)
    except QuantizationError as error:
        _log.warning("where int8 gains nothing is not known: %s", error)
    reasons = {op: why for op, why in found.items() if FP32 in space.choices[op]}
    without_int8 = {op: _without_int8(space.choices[op]) for op in reasons}
    return replace(space, choices={**space.choices, **without_int8}), {**reasons, **without_kernel}


def make_engine(
    config: TuningConfig,
    model: DetectionModel,
    prepared: DetectionModel,
    *,
    ops: QuantizableOps,
    ranges: Ranges,
    images: Sequence[NDArray[Any]],
) -> Engine:
    """The engine that the settings choose."""
    settings = config.quantization
    if settings.engine == "inc":
        limits = Limits(settings.converter_timeout_s, settings.converter_memory_mb)
        return _contained(
            lambda proposal: quantize_with_inc(model, proposal.plan, images[: proposal.calibration_images], limits),
            lambda graph: applied_by_inc(graph.graph_def, ops.names),
        )
    source = LoweringSource(prepared, ranges, settings.has_matmul_kernel, images)
    return replace(_contained(source.lower, partial(read_plan, ops=ops.names)), source=source)


def _contained(make: Callable[[Proposal], DetectionModel], read: Callable[[DetectionModel], PrecisionPlan]) -> Engine:
    return Engine(as_failure()(make), as_failure()(read))
