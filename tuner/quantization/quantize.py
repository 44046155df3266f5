"""The two questions about a float model: which operators can be int8, and what is its int8 graph under a plan."""

from collections.abc import Mapping
from dataclasses import dataclass

from tuner.model.detection_model import DetectionModel
from tuner.model.graph_view import GraphView, node_name
from tuner.precision import PrecisionPlan
from tuner.quantization.lowering.convolutions import find_convolutions
from tuner.quantization.lowering.fold_batch_norm import fold_batch_norm
from tuner.quantization.lowering.lower import lower
from tuner.quantization.ranges import Ranges


@dataclass(frozen=True)
class QuantizableOps:
    """The operators of a model that a plan may decide about, and those that it may not.

    inputs: op name -> the tensor whose range its int8 form needs, in the graph's order.
    refused: op name -> why it stays float.
    """

    inputs: Mapping[str, str]
    refused: Mapping[str, str]


def find_quantizable_ops(model: DetectionModel) -> QuantizableOps:
    """List the convolutions of a float model that can be int8 and, with the reason, those that cannot."""
    found, refused = find_convolutions(view(model))
    return QuantizableOps({name: convolution.input for name, convolution in found.items()}, refused)


def quantize(model: DetectionModel, plan: PrecisionPlan, ranges: Ranges) -> DetectionModel:
    """The int8 form of a float model under a plan: no image is run and nothing is measured here.

    ranges: of the tensors in `QuantizableOps.inputs`. Raises QuantizationError for a plan that cannot be lowered.
    """
    return model.with_graph(lower(fold_batch_norm(view(model)), plan, ranges).graph_def)


def view(model: DetectionModel) -> GraphView:
    """The model's graph, with its outputs as what is read from outside."""
    return GraphView(model.graph_def, frozenset(map(node_name, model.outputs)))
