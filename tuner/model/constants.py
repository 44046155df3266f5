"""Constants of a file that cannot be what they say, found before TensorFlow allocates them or reads beyond them."""

import itertools
import math
from collections.abc import Iterator

import tensorflow as tf
from tensorflow.core.framework.tensor_pb2 import TensorProto

from tuner.errors import ModelError

# What the constants of a graph may take beyond the bytes that the file holds of them: one value can stand for any
# number of equal ones, and a few bytes for terabytes.
MOST_REPEATED_BYTES = 512 * 2**20
MOST_SIDES = 254  # TensorFlow's own limit


def check_constants(graph_def: tf.compat.v1.GraphDef) -> None:
    """Raise ModelError for a constant of negative size, without the values of its shape, or of one value huge times.

    TensorFlow checks few of these when it imports a graph. It ends the process at some, and fails at others long
    after the file was read.
    """
    repeated_bytes = 0
    for name, tensor in _constants(graph_def):
        sizes = [side.size for side in tensor.tensor_shape.dim]
        if tensor.tensor_shape.unknown_rank or len(sizes) > MOST_SIDES or min(sizes, default=0) < 0:
            shown = f"{sizes[:8]}{' ...' if len(sizes) > 8 else ''}"
            raise ModelError(f"constant {name!r} has the shape {shown}, which no constant can have")
        try:
            item_bytes = tf.as_dtype(tensor.dtype).size
        except TypeError:
            raise ModelError(f"constant {name!r} is of the unknown type {tensor.dtype}") from None
        count = math.prod(sizes)
        content_bytes = len(tensor.tensor_content)
        given = max((len(value) for field, value in tensor.ListFields() if field.name.endswith("_val")), default=0)
        if (content_bytes and item_bytes and content_bytes != count * item_bytes) or given > 2 * count:
            raise ModelError(f"constant {name!r} does not hold the {count} values of its shape {sizes}")
        if not content_bytes:
            repeated_bytes += max(count - given, 0) * max(item_bytes or 0, 1)
        if repeated_bytes > MOST_REPEATED_BYTES:
            raise ModelError(
                f"constant {name!r} of shape {sizes} repeats one value: with those before it "
                f"{repeated_bytes / 1e6:,.0f} MB; expected at most {MOST_REPEATED_BYTES / 1e6:,.0f}"
            )


def _constants(graph_def: tf.compat.v1.GraphDef) -> Iterator[tuple[str, TensorProto]]:
    functions = (function.node_def for function in graph_def.library.function)
    for node in itertools.chain(graph_def.node, *functions):
        if node.op in ("Const", "HostConst") and "value" in node.attr:
            yield node.name, node.attr["value"].tensor
