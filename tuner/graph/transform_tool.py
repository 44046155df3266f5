"""The one door to TensorFlow's Graph Transform Tool: C++ that is still part of TensorFlow, behind a private name."""

import re

import tensorflow as tf
from tensorflow.core.framework.graph_pb2 import GraphDef

from tuner.errors import ModelError, did_you_mean
from tuner.model.tensorflow_error import first_line

# Those of TensorFlow 2.21, to name the nearest one. Which there are is for the tool to say.
_TRANSFORMS = (
    *("add_default_attributes", "backport_concatv2", "backport_tensor_array_v3", "flatten_atrous_conv"),
    *("fold_batch_norms", "fold_constants", "fold_old_batch_norms", "freeze_requantization_ranges"),
    *("fuse_pad_and_conv", "fuse_resize_and_conv", "fuse_resize_pad_and_conv", "inline_partitionedcall"),
    *("insert_logging", "merge_duplicate_nodes", "obfuscate_names", "quantize_nodes", "quantize_weights"),
    *("remove_attribute", "remove_control_dependencies", "remove_device", "remove_nodes", "rename_attribute"),
    *("rename_node", "rename_op", "round_weights", "set_device", "sort_by_execution_order", "sparsify_gather"),
    "strip_unused_nodes",
)
_QUOTED = re.compile(r'"(\\.|[^"\\])*"')


def run_transforms(graph_def: GraphDef, inputs: list[str], outputs: list[str], transforms: str) -> GraphDef:
    """A new graph, transformed; `graph_def` stays as it is.

    inputs, outputs: names of nodes of the graph. transforms: as the tool's `--transforms`,
    `fold_constants(ignore_errors=true) fold_batch_norms`.
    Raises ModelError, in one line, for a transform that is unknown, badly written or fails, and where TensorFlow has no
    such tool any more.
    """
    if not transforms.strip():
        raise ModelError("no transforms given; for example: fold_constants(ignore_errors=true) fold_batch_norms")
    bare = _QUOTED.sub("", transforms)
    if bare.count("(") != bare.count(")"):
        # The tool would leave the last transform out without a word.
        raise ModelError(f"transforms {transforms.strip()!r}: as many '(' as ')' expected")
    try:
        from tensorflow.python.util._pywrap_transform_graph import TransformGraphWithStringInputs  # noqa: PLC0415
    except ImportError as error:
        raise ModelError(
            f"TensorFlow {tf.__version__} has no Graph Transform Tool any more; TensorFlow 2.21 has it"
        ) from error
    content = graph_def.SerializeToString()
    try:
        transformed = TransformGraphWithStringInputs(content, ",".join(inputs), ",".join(outputs), transforms)
    except (ValueError, RuntimeError, TypeError, LookupError, tf.errors.OpError) as error:
        cause = first_line(error)
        unknown = re.match(r"Transform '(\w+)' not recognized", cause)
        near = did_you_mean(unknown[1], _TRANSFORMS) if unknown else ""
        raise ModelError(f"transforms: {cause.rstrip('.')}{near}") from error
    return GraphDef.FromString(transformed)
