"""Questions about a float model: its form to lower, which operators can be int8, and its graph under a plan."""

from collections.abc import Mapping
from dataclasses import dataclass

from tuner.model.detection_model import DetectionModel
from tuner.model.fold_batch_norm import fold_batch_norm
from tuner.model.skip_identities import skip_identities
from tuner.precision import Dtype, PrecisionPlan
from tuner.quantization.lowering.bfloat16 import to_bfloat16
from tuner.quantization.lowering.convolutions import find_convolutions
from tuner.quantization.lowering.fold_channel_shuffles import fold_channel_shuffles
from tuner.quantization.lowering.lower import lower
from tuner.quantization.lowering.regions import possible_sources
from tuner.quantization.ranges import Ranges


@dataclass(frozen=True)
class QuantizableOps:
    """The operators of a prepared model that a plan may decide about, and those that it may not.

    names: in the graph's order. refused: op name -> why it stays float.
    tensors: those whose ranges int8 graphs need.
    """

    names: tuple[str, ...]
    refused: Mapping[str, str]
    tensors: tuple[str, ...]


def prepare(model: DetectionModel) -> DetectionModel:
    """The same detector in the form that is calibrated and lowered: what does not depend on a plan, done once."""
    graph = fold_channel_shuffles(fold_batch_norm(skip_identities(model.graph)))
    return model.with_graph(graph.graph_def)


def find_quantizable_ops(prepared: DetectionModel) -> QuantizableOps:
    """List the convolutions of a prepared model that can be int8 and, with the reason, those that cannot."""
    found, refused = find_convolutions(prepared.graph)
    return QuantizableOps(tuple(found), refused, possible_sources(prepared.graph, found))


def quantize(
    prepared: DetectionModel,
    plan: PrecisionPlan,
    ranges: Ranges,
    *,
    matmul_kernel: bool = True,
    full_names: bool = False,
) -> DetectionModel:
    """A prepared model under a plan, in int8, bf16 and float: no image is run and nothing is measured here.

    ranges: of the tensors in `QuantizableOps.tensors`. matmul_kernel: whether oneDNN's matrix product may be written,
    which TensorFlow has from 2.17 on: it is faster than the convolution, and without it a MatMul cannot be int8.
    full_names: whether nodes are called after what they stand for, alike under every plan; a file is smaller without.
    Raises QuantizationError for a plan that cannot be lowered.
    """
    lowered = lower(prepared.graph, plan, ranges, matmul_kernel=matmul_kernel, full_names=full_names)
    bfloat16_ops = [op for op, precision in plan.items() if precision.dtype is Dtype.BF16]
    return prepared.with_graph(to_bfloat16(lowered, bfloat16_ops).graph_def)
