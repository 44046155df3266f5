"""Small 1x1 convolutions as matrix products: oneDNN's MatMul starts in half the time of its convolution.

Measured in bf16 on two cores, with bias and Relu, convolution / MatMul in us: 10x10x96 48 / 25, 20x20x96 80 / 50,
40x40x64 98 / 88; in whole detectors the MatMul gains up to 5 million products and loses beyond.
"""

import math
from collections.abc import Collection, Mapping

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.core.framework.node_def_pb2 import NodeDef

from tuner.model.graph_view import GraphView
from tuner.model.nodes import const_node, op_node
from tuner.quantization.lowering.static_shapes import Shape

# What TensorFlow fuses with MatMul after its bias.
ACTIVATION_OPS = ("Relu", "Relu6", "LeakyRelu", "Elu")


# For one image.
MAX_PRODUCTS = 5_000_000


def pointwise_to_matmul(graph: GraphView, ops: Collection[str], shapes: Mapping[str, Shape]) -> GraphView:
    """Write the small 1x1 convolutions among `ops`, with bias and activation, as MatMul between two Reshapes.

    The MatMul keeps the convolution's name, the result that of the chain's last op. shapes: `static_shapes` of the ops.
    Left alone: strides, weights that are not constant, results of unknown height or width, layouts other than NHWC.
    """
    removed: set[str] = set()
    added: list[NodeDef] = []
    for op in ops:
        chain = _chain(graph, graph.nodes[op])
        weights = graph.constant(graph.nodes[op].input[1])
        image_shape = [size for size in shapes.get(op, ())[1:] if size is not None]
        if not chain or weights is None or weights.shape[:2] != (1, 1) or len(image_shape) != 3:
            continue
        if math.prod(image_shape) * weights.shape[2] <= MAX_PRODUCTS:
            removed.update(node.name for node in chain)
            added += _matmul_nodes(chain, weights[0, 0].astype(np.float32), [-1, *image_shape])
    return graph.replace(removed, added) if added else graph


def _chain(graph: GraphView, convolution: NodeDef) -> list[NodeDef]:
    """The convolution, its bias and its activation, where a MatMul can do what they do."""
    attributes = convolution.attr
    bias = graph.only_consumer(convolution.name)
    if (
        convolution.op != "Conv2D"
        or attributes["T"].type != tf.float32
        or list(attributes["strides"].list.i) != [1, 1, 1, 1]
        or attributes["padding"].s not in (b"SAME", b"VALID")
        or attributes["data_format"].s not in (b"NHWC", b"")
        or bias is None
        or bias.op != "BiasAdd"
    ):
        return []
    activation = graph.only_consumer(bias.name)
    if activation is None or activation.op not in ACTIVATION_OPS:
        return [convolution, bias]
    return [convolution, bias, activation]


def _matmul_nodes(chain: list[NodeDef], weights: NDArray[np.float32], image_shape: list[int]) -> list[NodeDef]:
    """weights: [channels in, channels out]. image_shape: of the result, NHWC with -1 for the number of images."""
    convolution, *after = chain
    op, last = convolution.name, chain[-1].name
    rows = f"{op}/rows"
    nodes = [
        const_node(f"{rows}/shape", np.array([-1, weights.shape[0]], np.int32)),
        op_node("Reshape", rows, [convolution.input[0], f"{rows}/shape"], T=tf.float32, Tshape=tf.int32),
        const_node(f"{op}/matrix", weights),
        op_node("MatMul", op, [rows, f"{op}/matrix"], T=tf.float32, transpose_a=False, transpose_b=False),
    ]
    result = op
    for node in after:
        by_row = NodeDef()
        by_row.CopyFrom(node)
        by_row.name, by_row.input[0] = f"{node.name}/rows", result
        nodes.append(by_row)
        result = by_row.name
    return [
        *nodes,
        const_node(f"{last}/shape", np.array(image_shape, np.int32)),
        op_node("Reshape", last, [result, f"{last}/shape"], T=tf.float32, Tshape=tf.int32),
    ]
