"""Loops of a TF1 graph that nothing ends: TensorFlow runs them until the process has no memory left."""

import graphlib

import tensorflow as tf

from tuner.errors import ModelError


def check_loops_end(graph_def: tf.compat.v1.GraphDef) -> None:
    """Raise ModelError for a cycle of nodes without a `Switch`, by which each loop of TF1 is left.

    A loop whose condition stays true is not found.
    """
    for nodes in (graph_def.node, *(function.node_def for function in graph_def.library.function)):
        sources = {node.name: _sources(node) for node in nodes if node.op not in ("Switch", "RefSwitch")}
        try:
            graphlib.TopologicalSorter(sources).prepare()
        except graphlib.CycleError as error:
            raise ModelError(f"node {error.args[1][0]!r} waits for itself, in a cycle that nothing ends") from None


def _sources(node: tf.compat.v1.NodeDef) -> set[str]:
    return {name.removeprefix("^").partition(":")[0] for name in node.input}
