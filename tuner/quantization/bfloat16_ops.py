"""Which operators of a model can be bfloat16, and the model in which they all are."""

from collections.abc import Mapping
from dataclasses import dataclass

import tensorflow as tf

from tuner.model.detection_model import DetectionModel
from tuner.model.graph_view import GraphView
from tuner.precision import BF16, PrecisionPlan
from tuner.quantization.lowering.bfloat16 import OPS
from tuner.quantization.quantize import quantize

STAYS_FLOAT = "it reads the image, is an output, or its Casts would take longer than bf16 saves"


@dataclass(frozen=True)
class BFloat16Model:
    """A model with every operator in bfloat16 that gains by it. refused: op name -> why it stays float."""

    model: DetectionModel
    names: tuple[str, ...]
    refused: Mapping[str, str]


def quantize_to_bfloat16(prepared: DetectionModel) -> BFloat16Model:
    """Compute the convolutions and matrix products of a prepared model in bfloat16, where it is worth the Casts."""
    ops = [name for name in float_products(prepared.graph) if name not in prepared.graph.loop_body]
    graph = quantize(prepared, PrecisionPlan(dict.fromkeys(ops, BF16)), {})
    names = tuple(op for op in ops if graph.graph.nodes[op].attr["T"].type == tf.bfloat16)
    return BFloat16Model(graph, names, {op: STAYS_FLOAT for op in ops if op not in names})


def float_products(graph: GraphView) -> list[str]:
    """The convolutions and matrix products that compute in float32, in the graph's order."""
    return _products_in(graph, tf.float32)


def bfloat16_products(graph: GraphView) -> list[str]:
    """Those that compute in bfloat16."""
    return _products_in(graph, tf.bfloat16)


def _products_in(graph: GraphView, dtype: tf.DType) -> list[str]:
    return [node.name for node in graph.graph_def.node if node.op in OPS and node.attr["T"].type == dtype]
