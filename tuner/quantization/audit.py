"""What was really applied: a plan read back from the graph, to hold against the plan that was asked for."""

from collections.abc import Iterable

import tensorflow as tf
from tensorflow.python.framework import tensor_util

from tuner.errors import QuantizationError
from tuner.model.detection_model import DetectionModel
from tuner.precision import FP32, Dtype, Granularity, OpPrecision, PrecisionPlan
from tuner.quantization.lowering.kernels import KERNEL_OPS, KERNEL_SUFFIX

_DECISIONS = {tf.float32.as_datatype_enum: FP32, tf.bfloat16.as_datatype_enum: OpPrecision(Dtype.BF16)}


def read_plan(quantized: DetectionModel, ops: Iterable[str]) -> PrecisionPlan:
    """The decision that a lowered graph holds about each of `ops` (names of convolutions of the float graph).

    Raises QuantizationError for an op that the graph computes neither in float nor in int8.
    """
    nodes = {node.name: node for node in quantized.graph_def.node}
    found: dict[str, OpPrecision] = {}
    for op in ops:
        kernel = nodes.get(op + KERNEL_SUFFIX)
        if kernel is not None and kernel.op in KERNEL_OPS:
            # Weights with one scale per channel show in the kernel's weight range, or, where the result is read as
            # float, in the units of its sums.
            units = nodes.get(f"{kernel.name}/units") or nodes[f"{kernel.name}/weights_high"]
            per_channel = tensor_util.MakeNdarray(units.attr["value"].tensor).size > 1
            found[op] = OpPrecision(Dtype.INT8, Granularity.PER_CHANNEL if per_channel else Granularity.PER_TENSOR)
        elif op in nodes and nodes[op].attr["T"].type in _DECISIONS:
            found[op] = _DECISIONS[nodes[op].attr["T"].type]
        else:
            raise QuantizationError(f"{op} is in the quantised graph neither as a float nor as an int8 convolution")
    return PrecisionPlan(found)
