"""What a frozen graph consists of, and how much it computes for an input of one shape."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from tuner.errors import ModelError
from tuner.graph.input_shapes import shape_to_feed
from tuner.graph.map_loop import resolve
from tuner.graph.store_weights import find_stored_weights
from tuner.model.detection_model import DetectionModel
from tuner.model.frozen_graph import import_graph
from tuner.model.tensorflow_error import first_line

# Multiply-accumulates are counted of these: the number of elements of a tensor (output 0, or the input of this number)
# times the product of these dimensions of the weights, the input of that number.
_PRODUCTS = {
    "Conv2D": (None, 1, (0, 1, 2)),
    "Conv3D": (None, 1, (0, 1, 2, 3)),
    "Conv2DBackpropInput": (2, 1, (0, 1, 2)),
    "DepthwiseConv2dNative": (None, 1, (0, 1)),
    "MatMul": (None, 1, (0,)),
    "BatchMatMul": (None, 1, (-2,)),
    "BatchMatMulV2": (None, 1, (-2,)),
    "_FusedQuantizedConv2D": (None, 1, (0, 1, 2)),
    "_FusedQuantizedDepthwiseConv2D": (None, 1, (0, 1)),
    "_QuantizedMatMul": (None, 1, (0,)),
}
_TRANSPOSED = {
    "MatMul": "transpose_b",
    "BatchMatMul": "adj_y",
    "BatchMatMulV2": "adj_y",
    "_QuantizedMatMul": "transpose_b",
}

_PARAMETER_TYPES = frozenset(
    dtype.as_datatype_enum
    for dtype in (tf.float16, tf.bfloat16, tf.float32, tf.float64, tf.int8, tf.uint8, tf.qint8, tf.quint8)
)


@dataclass(frozen=True)
class Endpoint:
    """An input or output. shape: None for an unknown dimension; None as a whole where even the rank is unknown."""

    name: str
    dtype: str
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True)
class GraphFacts:
    """What can be said of a graph without running it.

    outputs: those named by the file, else the likely ones. ops: op type -> number of nodes, the most frequent first.
    parameters, parameters_bytes: of constants with at least one axis in float or 8-bit types.
    stored_in_8_bits: of the parameters, how many are weights kept as int8 and multiplied out to floats in each run.
    while_loops, conditions: of TF1's and TF2's kinds alike.
    """

    inputs: tuple[Endpoint, ...]
    outputs: tuple[Endpoint, ...]
    ops: Mapping[str, int]
    parameters: int
    parameters_bytes: int
    stored_in_8_bits: int
    size_bytes: int
    while_loops: int
    conditions: int


@dataclass(frozen=True)
class Flops:
    """Floating-point (or integer) operations of convolutions and matrix products; a multiply-accumulate counts as 2.

    by_op: op type -> operations. shapes: of the inputs that they are for. uncounted: nodes in while loops, whose number
    of iterations nobody knows beforehand.
    """

    by_op: Mapping[str, int]
    shapes: tuple[tuple[int, ...], ...]
    uncounted: tuple[str, ...]

    @property
    def total(self) -> int:
        """All of them together."""
        return sum(self.by_op.values())


def graph_facts(model: DetectionModel) -> GraphFacts:
    """Inputs, outputs, ops, parameters, size and control flow of a model."""
    with tf.Graph().as_default() as graph:
        import_graph(model.graph_def)
    nodes = model.graph_def.node
    frames = {node.attr["frame_name"].s for node in nodes if node.op in ("Enter", "RefEnter")}
    loops = sum(node.op in ("While", "StatelessWhile") for node in nodes)
    decided_by = [resolve(model.graph, node.input[1]) for node in nodes if node.op in ("Switch", "RefSwitch")]
    predicates = {node.name for node in decided_by if node.op != "LoopCond"}
    conditions = sum(node.op in ("If", "StatelessIf", "Case", "StatelessCase") for node in nodes)
    counts = Counter(node.op for node in nodes)
    parameters = [
        (math.prod(dim.size for dim in tensor.tensor_shape.dim), tf.as_dtype(tensor.dtype).size)
        for tensor in (node.attr["value"].tensor for node in nodes if node.op in ("Const", "HostConst"))
        if tensor.dtype in _PARAMETER_TYPES and tensor.tensor_shape.dim
    ]
    return GraphFacts(
        inputs=tuple(_endpoint(graph, name) for name in model.inputs),
        outputs=tuple(_endpoint(graph, name) for name in model.outputs),
        ops=dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))),
        parameters=sum(count for count, _ in parameters),
        parameters_bytes=sum(count * size for count, size in parameters),
        stored_in_8_bits=sum(codes.size for codes in find_stored_weights(model.graph).values()),
        size_bytes=model.size_bytes,
        while_loops=len(frames) + loops,
        conditions=len(predicates) + conditions,
    )


def count_flops(model: DetectionModel, shape: Sequence[int] | None = None) -> Flops:
    """Count what convolutions and matrix products compute for one run on zeros: sizes that only a run tells are known.

    shape: of the first input; not given, what it leaves open is one image of 320 x 320. Raises ModelError for a shape
    that the input does not take, and for a graph that does not run.
    """
    with tf.Graph().as_default() as graph:
        import_graph(model.graph_def)
        inputs = [graph.get_tensor_by_name(name) for name in model.inputs]
        shapes = [_shape_of(inputs[0], shape), *(_shape_of(tensor, None) for tensor in inputs[1:])]
        products = [node for node in model.graph_def.node if node.op in _PRODUCTS]
        in_loops = model.graph.loop_body
        counted = [node for node in products if node.name not in in_loops]
        sizes = {}
        for node in counted:
            of, weights, _ = _PRODUCTS[node.op]
            operation = graph.get_operation_by_name(node.name)
            result = operation.outputs[0] if of is None else operation.inputs[of]
            sizes[node.name] = (tf.shape(result), tf.shape(operation.inputs[weights]))
        feeds = {
            tensor: np.zeros(size, tensor.dtype.as_numpy_dtype) for tensor, size in zip(inputs, shapes, strict=True)
        }
        with tf.compat.v1.Session(graph=graph) as session:
            try:
                found = session.run(sizes, feeds)
            except (ValueError, TypeError, tf.errors.OpError) as error:
                raise ModelError(f"{model.source}: cannot be run on {shapes[0]}: {first_line(error)}") from error
    by_op: Counter[str] = Counter()
    for node in counted:
        result, weights = found[node.name]
        by_op[node.op] += 2 * int(np.prod(result, dtype=np.int64)) * _products_per_value(node, weights)
    return Flops(dict(by_op), tuple(shapes), tuple(node.name for node in products if node.name in in_loops))


def _products_per_value(node: tf.compat.v1.NodeDef, weights: Sequence[int]) -> int:
    dimensions = _PRODUCTS[node.op][2]
    transposed = _TRANSPOSED.get(node.op)
    if transposed is not None and node.attr[transposed].b:
        dimensions = (-1,)
    return math.prod(int(weights[index]) for index in dimensions)


def _shape_of(tensor: tf.Tensor, asked: Sequence[int] | None) -> tuple[int, ...]:
    """The shape to feed. Raises ModelError where what is asked for does not fit."""
    if asked is not None:
        if not tensor.shape.is_compatible_with(asked):
            raise ModelError(f"input {tensor.name} takes the shape {tensor.shape}; got {list(asked)}")
        return tuple(asked)
    return shape_to_feed(tensor.shape)


def _endpoint(graph: tf.Graph, name: str) -> Endpoint:
    tensor = graph.get_tensor_by_name(name)
    return Endpoint(name, tensor.dtype.name, None if tensor.shape.rank is None else tuple(tensor.shape.as_list()))
