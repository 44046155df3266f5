"""Find what can become one int8 kernel: a convolution or MatMul with its bias, a residual sum and its activation."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from numpy.typing import NDArray
from tensorflow.core.framework.node_def_pb2 import NodeDef

from tuner.errors import QuantizationError
from tuner.model.fold_batch_norm import CONVOLUTION_OPS
from tuner.model.graph_view import GraphView, node_name, tensor_name

# What the kernels can fuse: the one for 1x1 convolutions, a matrix product, knows more functions than the others.
ACTIVATION_OPS = ("Relu", "Relu6")
POINTWISE_ACTIVATION_OPS = (*ACTIVATION_OPS, "LeakyRelu")

# Smaller ones decode boxes: they cost no time, and their float results are meant to be exact.
FEWEST_MATMUL_WEIGHTS = 1024


@dataclass(frozen=True)
class Convolution:
    """A convolution, its bias, a residual sum and its activation, where nothing else reads in between.

    node: Conv2D (weights [kh, kw, in, out]) or DepthwiseConv2dNative (weights [kh, kw, in, multiplier]), NHWC, or
    MatMul, which is a 1x1 convolution of rows (weights [1, 1, in, out], whichever way the node has them).
    bias: [channels out] float32, or None. activation: the node of a fused function, or None.
    is_pointwise: whether it is a matrix product of pixels and weights: 1x1, without strides, padding or groups.
    pad: the node that pads the input with zeros for this convolution alone, or None.
    pads: what it adds before and after each axis, [axes, 2].
    members: convolution, bias, sum and activation: the nodes that the kernel replaces, first to last.
    summand: the tensor that is added before the activation, or None.
    without_sum: the same convolution where the sum, and with it the activation, stays outside.
    """

    node: NodeDef
    weights: NDArray[np.float32]
    bias: NDArray[np.float32] | None
    activation: NodeDef | None
    members: tuple[str, ...]
    is_pointwise: bool = False
    pad: NodeDef | None = None
    pads: tuple[tuple[int, int], ...] = ()
    summand: str | None = None
    without_sum: "Convolution | None" = None

    @property
    def name(self) -> str:
        """The convolution's node name: what a plan decides about."""
        return str(self.node.name)

    @property
    def input(self) -> str:
        """The data tensor that is convolved, before padding, in canonical spelling."""
        return tensor_name((self.pad or self.node).input[0])

    @property
    def output(self) -> str:
        """The tensor that the rest of the graph reads."""
        return self.members[-1]

    @property
    def linear_members(self) -> tuple[str, ...]:
        """The convolution and its bias, without sum and activation."""
        if self.without_sum is not None:
            return self.without_sum.members
        return self.members if self.activation is None else self.members[:-1]

    @property
    def is_matmul_node(self) -> bool:
        """Whether the float graph has a MatMul, of rows and not of images."""
        return bool(self.node.op == "MatMul")

    @property
    def is_depthwise(self) -> bool:
        """Whether each input channel is convolved on its own."""
        return bool(self.node.op == "DepthwiseConv2dNative")


def find_convolutions(graph: GraphView) -> tuple[dict[str, Convolution], dict[str, str]]:
    """Every convolution and MatMul that the kernels can take, and for every other one the reason why it stays float.

    Both are keyed by the convolution's node name, in the graph's order.
    """
    found: dict[str, Convolution] = {}
    refused: dict[str, str] = {}
    for node in graph.graph_def.node:
        if node.op in MATCHES:
            try:
                found[node.name] = MATCHES[node.op](graph, node)
            except QuantizationError as reason:
                refused[node.name] = str(reason)
    return found, refused


def _weights(graph: GraphView, node: NodeDef) -> NDArray[np.float32]:
    weights = graph.constant(node.input[1])
    if weights is None:
        raise QuantizationError(f"its weights {node.input[1]} are not a constant")
    if weights.dtype != np.float32:
        raise QuantizationError(f"its weights are {weights.dtype}, not float32")
    if node.name in graph.loop_body:
        raise QuantizationError("it is inside a while loop")
    if np.any(~np.isfinite(weights)):
        raise QuantizationError("its weights hold NaN or infinite values")
    return cast(NDArray[np.float32], weights)


def _match_convolution(graph: GraphView, node: NodeDef) -> Convolution:
    weights = _weights(graph, node)
    data_format = node.attr["data_format"].s.decode() or "NHWC"
    if data_format != "NHWC":
        raise QuantizationError(f"its data format is {data_format}, the kernels take NHWC")
    if node.op == "DepthwiseConv2dNative" and weights.shape[3] != 1:
        raise QuantizationError(f"its depth multiplier is {weights.shape[3]}, the depthwise kernel takes 1")
    # With more padding than reach, the depthwise kernel of 1x1 weights makes results of what lies in memory.
    reaches = node.op != "DepthwiseConv2dNative" or weights.shape[:2] != (1, 1)
    pad, pads = _padding(graph, node) if reaches else (None, ())
    is_pointwise = pad is None and _is_pointwise(graph, node, weights)
    found, after = _with_bias(graph, Convolution(node, weights, None, None, (node.name,), is_pointwise, pad, pads))
    fused = _with_activation(found, after, POINTWISE_ACTIVATION_OPS if is_pointwise else ACTIVATION_OPS)
    return _with_sum(graph, fused, after) if fused is found else fused


def _match_matmul(graph: GraphView, node: NodeDef) -> Convolution:
    weights = _weights(graph, node)
    if weights.size < FEWEST_MATMUL_WEIGHTS:
        raise QuantizationError(f"its {weights.size} weights are too few to gain anything")
    if node.attr["transpose_a"].b:
        raise QuantizationError("it turns its data, the kernel takes rows")
    rows = weights.T if node.attr["transpose_b"].b else weights
    found, after = _with_bias(graph, Convolution(node, rows[np.newaxis, np.newaxis], None, None, (node.name,), True))
    return _with_activation(found, after, POINTWISE_ACTIVATION_OPS)


MATCHES = {**dict.fromkeys(CONVOLUTION_OPS, _match_convolution), "MatMul": _match_matmul}


def _with_bias(graph: GraphView, convolution: Convolution) -> tuple[Convolution, NodeDef | None]:
    """The convolution with the bias behind it, and the one op that reads the result, if there is just one."""
    after = graph.only_consumer(convolution.name)
    bias = graph.constant(after.input[1]) if after is not None and after.op == "BiasAdd" else None
    if after is None or bias is None:
        return convolution, after
    members = (*convolution.members, after.name)
    return replace(convolution, bias=cast(NDArray[np.float32], bias), members=members), graph.only_consumer(after.name)


def _with_activation(convolution: Convolution, after: NodeDef | None, known: Collection[str]) -> Convolution:
    if after is None or after.op not in known:
        return convolution
    return replace(convolution, activation=after, members=(*convolution.members, after.name))


def _with_sum(graph: GraphView, convolution: Convolution, after: NodeDef | None) -> Convolution:
    """The convolution with the residual sum behind it, where the kernel can add: before a Relu, which it needs."""
    if after is None or after.op not in ("Add", "AddV2"):
        return convolution
    activation = graph.only_consumer(after.name)
    summands = [tensor_name(tensor) for tensor in after.input if tensor_name(tensor) != convolution.output]
    if activation is None or activation.op not in ACTIVATION_OPS or len(summands) != 1:
        return convolution
    shape, known = graph.shape(node_name(summands[0])), graph.shape(convolution.output)
    # Sizes that are not known may differ at run time, which the kernel does not survive.
    if None in shape[1:] or len(shape) != 4 or shape != known:
        return convolution
    if ":" in summands[0] or not _is_read_first(graph, summands[0], convolution):
        return convolution
    return replace(
        convolution,
        activation=activation,
        members=(*convolution.members, after.name, activation.name),
        is_pointwise=False,
        summand=summands[0],
        without_sum=convolution,
    )


def _is_read_first(graph: GraphView, summand: str, convolution: Convolution) -> bool:
    """Whether all other readers of a summand are done when the sum is made: the kernel writes over the summand."""
    before: set[str] = set()
    pending = [convolution.name]
    while pending:
        for tensor in graph.nodes[pending.pop()].input:
            name = node_name(tensor)
            if name not in before and name != summand:
                before.add(name)
                pending.append(name)
    others = [node for node in graph.consumers(summand) if node.name in before]
    # Convolutions only: what an Identity or a Reshape makes lies in the summand's own buffer, read by whoever and when.
    reads_copies = all(node.op in CONVOLUTION_OPS for node in others)
    return summand not in graph.outputs and reads_copies and len(graph.consumers(summand)) == len(others) + 1


def _is_pointwise(graph: GraphView, node: NodeDef, weights: NDArray[np.generic]) -> bool:
    if node.op != "Conv2D" or weights.shape[:2] != (1, 1) or set(node.attr["strides"].list.i) != {1}:
        return False
    if node.attr["padding"].s == b"EXPLICIT":
        return False
    return graph.shape(node_name(node.input[0]))[-1:] == weights.shape[2:3]


def _padding(graph: GraphView, node: NodeDef) -> tuple[NodeDef | None, tuple[tuple[int, int], ...]]:
    """The Pad in front of a convolution that the kernel can do itself: with zeros, of rows and columns only."""
    pad = graph.nodes.get(node_name(node.input[0]))
    if pad is None or pad.op != "Pad" or node.attr["padding"].s != b"VALID" or graph.only_consumer(pad.name) != node:
        return None, ()
    amounts = graph.constant(pad.input[1])
    if amounts is None or amounts.shape != (4, 2) or amounts[0].any() or amounts[3].any():
        return None, ()
    return pad, tuple((int(before), int(after)) for before, after in amounts)
