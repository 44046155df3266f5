"""Ask TensorFlow which types its CPU kernels of data-moving ops take: docs/kernels.md has the answers as a table."""

from functools import cache

import tensorflow as tf
from tensorflow.python.framework import kernels, op_def_registry

# Registered for every type, but they refuse the quantised ones when they run.
REFUSE_QUANTIZED = ("Tile",)


@cache
def takes(op: str, dtype: tf.DType) -> bool:
    """Whether an op's CPU kernel takes tensors of a type, as its result's type: asked of TensorFlow's registry."""
    if dtype.is_quantized and op in REFUSE_QUANTIZED:
        return False
    attribute = op_def_registry.get(op).output_arg[0].type_attr
    for kernel in kernels.get_registered_kernels_for_op(op).kernel:
        limits = [constraint for constraint in kernel.constraint if constraint.name == attribute]
        if kernel.device_type == "CPU" and all(
            dtype.as_datatype_enum in limit.allowed_values.list.type for limit in limits
        ):
            return True
    return False
