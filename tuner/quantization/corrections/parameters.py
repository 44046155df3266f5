"""Writing changed weights and biases into a float graph: what every correction ends with."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tensorflow.core.framework.graph_pb2 import GraphDef
from tensorflow.core.framework.node_def_pb2 import NodeDef

from tuner.model.endpoints import prune
from tuner.model.graph_view import GraphView
from tuner.model.nodes import const_node
from tuner.quantization.lowering.convolutions import Convolution


@dataclass(frozen=True)
class Parameters:
    """What a convolution is to compute with: float32, weights laid out as its own, bias [channels out].

    None keeps what it has. A bias replaces one: a convolution without has no place for it.
    """

    weights: NDArray[np.float32] | None = None
    bias: NDArray[np.float32] | None = None


def with_parameters(
    graph: GraphView, convolutions: Mapping[str, Convolution], changed: Mapping[str, Parameters]
) -> GraphView:
    """The graph in which each op of `changed` has these parameters; nodes keep their names and their order.

    convolutions: those of the graph, by op name.
    """
    constants: dict[str, NodeDef] = {}
    for op, parameters in changed.items():
        if parameters.weights is not None:
            constants[op] = const_node(f"{op}/corrected_weights", parameters.weights.astype(np.float32))
        if parameters.bias is not None:
            bias_add = convolutions[op].members[1]
            constants[bias_add] = const_node(f"{op}/corrected_bias", parameters.bias.astype(np.float32))
    # They are there already where an op was corrected before.
    replaced = {constant.name for constant in constants.values()}
    graph_def = GraphDef(versions=graph.graph_def.versions, library=graph.graph_def.library)
    for node in graph.graph_def.node:
        if node.name in constants:
            changed_node = NodeDef()
            changed_node.CopyFrom(node)
            changed_node.input[1] = constants[node.name].name
            graph_def.node.extend([constants[node.name], changed_node])
        elif node.name not in replaced:
            graph_def.node.append(node)
    return GraphView(prune(graph_def, graph.outputs), graph.outputs)
