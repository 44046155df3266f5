"""Functions of a graph that call themselves: TensorFlow ends the process where it imports one."""

import graphlib
from collections.abc import Iterator

import tensorflow as tf

from tuner.errors import ModelError


def check_no_recursion(graph_def: tf.compat.v1.GraphDef) -> None:
    """Raise ModelError for a function that calls itself, directly or through others."""
    calls = {one.signature.name: set(_named(one.node_def)) for one in graph_def.library.function}
    try:
        graphlib.TopologicalSorter(calls).prepare()
    except graphlib.CycleError as error:
        raise ModelError(f"function {error.args[1][0]!r} calls itself") from None


def _named(nodes: list[tf.compat.v1.NodeDef]) -> Iterator[str]:
    for node in nodes:
        yield node.op
        for value in node.attr.values():
            yield from (function.name for function in (value.func, *value.list.func) if function.name)
