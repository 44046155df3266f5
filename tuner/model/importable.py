"""What is looked for in the graph of a file before TensorFlow imports it, whatever the file's format."""

import tensorflow as tf

from tuner.model.constants import check_constants
from tuner.model.forbidden_ops import check_before_import
from tuner.model.loops import check_loops_end
from tuner.model.recursion import check_no_recursion


def check_importable(graph_def: tf.compat.v1.GraphDef, *, allow_ops: bool) -> None:
    """Raise ModelError for what ends the process or reaches outside of it when TensorFlow imports a graph, or runs it.

    allow_ops: take ops that reach outside, as `load_model`.
    """
    check_constants(graph_def)
    check_no_recursion(graph_def)
    check_loops_end(graph_def)
    if not allow_ops:
        check_before_import(graph_def)
