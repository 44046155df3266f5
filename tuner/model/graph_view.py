"""A frozen graph as something to ask questions of. Nothing here changes a graph; a changed graph is a new one."""

import itertools
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.core.framework.graph_pb2 import GraphDef
from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.python.framework import tensor_util

from tuner.errors import ModelError
from tuner.model.endpoints import prune_nodes
from tuner.model.frozen_graph import import_graph


def node_name(tensor: str) -> str:
    """The node behind a tensor or control input: `^a` and `a:1` are both of the node `a`."""
    return tensor.removeprefix("^").partition(":")[0]


def tensor_name(tensor: str) -> str:
    """The canonical spelling of a data tensor: output 0 of `a` is `a`, however it was written."""
    return tensor.removesuffix(":0")


@dataclass(frozen=True)
class GraphView:
    """A GraphDef indexed by name, consumers and constants.

    graph_def: treated as immutable. outputs: names of the nodes that are read from outside.
    """

    graph_def: GraphDef
    outputs: frozenset[str]

    @cached_property
    def nodes(self) -> dict[str, NodeDef]:
        """Every node by its name, in the graph's order."""
        return {node.name: node for node in self.graph_def.node}

    @cached_property
    def _consumers(self) -> dict[str, list[NodeDef]]:
        consumers: dict[str, list[NodeDef]] = defaultdict(list)
        for node in self.graph_def.node:
            for producer in dict.fromkeys(map(node_name, node.input)):
                consumers[producer].append(node)
        return consumers

    def consumers(self, name: str) -> Sequence[NodeDef]:
        """The nodes that read any output of `name` or wait for it, each once."""
        return self._consumers.get(name, ())

    def only_consumer(self, name: str) -> NodeDef | None:
        """The one node that reads output 0 of `name`, or None where it has another reader or is a graph output."""
        consumers = self.consumers(name)
        if len(consumers) != 1 or name in self.outputs:
            return None
        uses = [tensor for tensor in consumers[0].input if node_name(tensor) == name]
        return consumers[0] if [tensor_name(use) for use in uses] == [name] else None

    def constant(self, tensor: str) -> NDArray[np.generic] | None:
        """The value of a tensor that is a Const, directly or through Identity nodes; None for any other tensor."""
        node = self.nodes.get(node_name(tensor))
        while node is not None and node.op == "Identity":
            node = self.nodes.get(node_name(node.input[0]))
        if node is None or node.op != "Const":
            return None
        value: NDArray[np.generic] = tensor_util.MakeNdarray(node.attr["value"].tensor)
        return value

    @cached_property
    def _shapes(self) -> dict[str, tuple[int | None, ...]]:
        graph = tf.Graph()
        with graph.as_default():
            import_graph(self.graph_def)
        return {
            operation.name: tuple(operation.outputs[0].shape.as_list())
            for operation in graph.get_operations()
            if operation.outputs and operation.outputs[0].shape.rank is not None
        }

    def shape(self, name: str) -> tuple[int | None, ...]:
        """The shape of output 0 of a node as TensorFlow infers it: empty where even the rank is unknown."""
        return self._shapes.get(name, ())

    def free_name(self, wanted: str) -> str:
        """`wanted`, or with the first number behind it that makes it the name of no node."""
        names = itertools.chain([wanted], (f"{wanted}_{number}" for number in itertools.count(1)))
        return next(name for name in names if name not in self.nodes)

    @cached_property
    def loop_body(self) -> frozenset[str]:
        """The nodes inside TF1 while loops: everything that an Enter reaches before an Exit."""
        reached: set[str] = set()
        pending = [node.name for node in self.graph_def.node if node.op in ("Enter", "RefEnter")]
        while pending:
            name = pending.pop()
            if name in reached or self.nodes[name].op in ("Exit", "RefExit"):
                continue
            reached.add(name)
            pending.extend(node.name for node in self.consumers(name))
        return frozenset(reached)

    def replace(self, removed: Collection[str], added: Sequence[NodeDef]) -> "GraphView":
        """A new graph without the nodes named in `removed`, with `added`, and without what no output needs any more.

        Raises ModelError when a node of `added` has the name of another one.
        """
        taken = self.nodes.keys() - set(removed)
        for node in added:
            if node.name in taken:
                raise ModelError(f"the graph has a node called {node.name!r} already, where another one would go")
            taken.add(node.name)
        kept = (node for node in self.graph_def.node if node.name not in removed)
        return GraphView(prune_nodes(itertools.chain(kept, added), self.outputs, self.graph_def), self.outputs)
