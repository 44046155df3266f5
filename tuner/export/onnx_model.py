"""A rounded graph as ONNX: QuantizeLinear/DequantizeLinear pairs on activations, int8 weights. The door to tf2onnx."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import tensorflow as tf
import tf2onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper
from tf2onnx.optimizer import optimize_graph
from tf2onnx.tfonnx import process_tf_graph
from tf2onnx.utils import make_name

from tuner.errors import ModelError, QuantizationError
from tuner.export.rounded_graph import RoundedGraph
from tuner.model.frozen_graph import import_graph
from tuner.model.graph_view import GraphView

# The first with DequantizeLinear for each channel is 13; 17 is what the runtimes of 2023 take.
OPSET = 17
_TO_CHANNELS_FIRST, _TO_CHANNELS_LAST = (0, 3, 1, 2), (0, 2, 3, 1)
_MULTIPLICATIONS = ("Conv", "MatMul", "Gemm")


def to_onnx(rounded: RoundedGraph, inputs: Sequence[str], outputs: Sequence[str]) -> ModelProto:
    """The ONNX model of a rounded graph. inputs, outputs: tensor names, which the model keeps.

    Activations are u8 with zero points, biases 32-bit; of a symmetric graph int8 with the zero point 0, and float.
    Raises ModelError naming the ops that ONNX has no form of, QuantizationError where an int8 op went missing.
    """
    model = _converted(rounded, inputs, outputs)
    domains = {opset.domain for opset in model.opset_import}
    unknown = Counter(
        node.op_type for node in model.graph.node if not any(onnx.defs.has(node.op_type, name) for name in domains)
    )
    if unknown:
        raise ModelError(f"ONNX has no form of {', '.join(sorted(unknown))}")
    _write_roundings(model, rounded)
    _write_weights(model, rounded)
    onnx.checker.check_model(model)
    return model


def _converted(rounded: RoundedGraph, inputs: Sequence[str], outputs: Sequence[str]) -> ModelProto:
    """The graph as tf2onnx converts it, with a Clip where FakeQuant was: it moves Transposes through those alone."""
    tf2onnx.logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)
    handlers: dict[str, tuple[Callable[..., None], list[Any]]] = {
        "FakeQuantWithMinMaxArgs": (_clip, []),
        "Split": (_split, []),
        "SplitV": (_split, []),
    }
    if _pads_edges(rounded.graph):
        handlers["MirrorPad"] = (_pad_edges, [])
    graph_def = rounded.graph.graph_def
    try:
        # Not from_graph_def: TensorFlow's optimisers, which it runs first, multiply scales into weights.
        with tf.Graph().as_default() as graph:
            import_graph(graph_def)
            converted = process_tf_graph(
                graph,
                opset=OPSET,
                custom_op_handlers=handlers,
                input_names=list(inputs),
                output_names=list(outputs),
            )
            model = optimize_graph(converted).make_model("detector")
    except (ValueError, TypeError, AttributeError, KeyError, AssertionError, IndexError) as error:
        raise ModelError(
            f"tf2onnx cannot convert it: {(str(error).splitlines() or [type(error).__name__])[0]}"
        ) from error
    return model


def _clip(graph: Any, node: Any, name: str, _: Sequence[Any]) -> None:
    """tf2onnx's handler of FakeQuant: the node that QuantizeLinear and DequantizeLinear replace in the end."""
    ends = [graph.make_const(make_name(name), np.float32(node.get_attr_value(end))).output[0] for end in ("min", "max")]
    shape, dtype, output, data = (
        graph.get_shape(node.output[0]),
        graph.get_dtype(node.output[0]),
        node.output,
        node.input,
    )
    graph.remove_node(name)
    graph.make_node("Clip", [data[0], *ends], name=name, outputs=output, shapes=[shape], dtypes=[dtype])


def _split(graph: Any, node: Any, name: str, _: Sequence[Any]) -> None:
    """tf2onnx's handler of Split: of images with channels first, for it does not move Transposes through splits."""
    evenly = node.type == "Split"
    data, axis_input = (node.input[1], node.inputs[0]) if evenly else (node.input[0], node.inputs[2])
    axis, outputs = int(axis_input.get_tensor_value()), list(node.output)
    shapes, dtype = [graph.get_shape(output) for output in outputs], graph.get_dtype(outputs[0])
    rank = graph.get_rank(data)
    sizes = [shape[axis] for shape in shapes]
    turned = rank == 4 and axis in (-1, 3)
    graph.remove_node(name)
    parts = graph.make_const(make_name(name), np.array(sizes, np.int64)).output[0]
    if not turned:
        graph.make_node(
            "Split",
            [data, parts],
            {"axis": axis},
            outputs=outputs,
            name=name,
            shapes=shapes,
            dtypes=[dtype] * len(shapes),
        )
        return
    first = graph.make_node("Transpose", [data], {"perm": list(_TO_CHANNELS_FIRST)})
    split = graph.make_node(
        "Split",
        [first.output[0], parts],
        {"axis": 1},
        output_count=len(outputs),
        name=make_name(name),
        shapes=[[shape[axis] for axis in _TO_CHANNELS_FIRST] for shape in shapes],
        dtypes=[dtype] * len(outputs),
    )
    for part, output, shape in zip(split.output, outputs, shapes, strict=True):
        graph.make_node(
            "Transpose", [part], {"perm": list(_TO_CHANNELS_LAST)}, outputs=[output], shapes=[shape], dtypes=[dtype]
        )


def _pads_edges(graph: GraphView) -> bool:
    """Whether all that the graph mirrors is its outermost rows, columns or channels: that repeats them."""
    pads = [node for node in graph.graph_def.node if node.op == "MirrorPad"]
    amounts = [graph.constant(node.input[1]) for node in pads if node.attr["mode"].s == b"SYMMETRIC"]
    return len(amounts) == len(pads) and all(one is not None and one.max() <= 1 for one in amounts)


def _pad_edges(graph: Any, node: Any, name: str, _: Sequence[Any]) -> None:
    """tf2onnx's handler of MirrorPad, for which it writes a dozen ops that runtimes are slow at."""
    amounts = np.array(node.inputs[1].get_tensor_value()).T.flatten().astype(np.int64)
    data, output = node.input[0], node.output[0]
    shape, dtype = graph.get_shape(output), graph.get_dtype(output)
    graph.remove_node(name)
    pads = graph.make_const(make_name(name), amounts).output[0]
    graph.make_node("Pad", [data, pads], {"mode": "edge"}, outputs=[output], name=name, shapes=[shape], dtypes=[dtype])


def _write_roundings(model: ModelProto, rounded: RoundedGraph) -> None:
    """Replace the Clips by pairs of QuantizeLinear and DequantizeLinear."""
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        rounding = rounded.roundings.get(node.name) if node.op_type == "Clip" else None
        if rounding is None:
            nodes.append(node)
            continue
        how = [f"{node.name}/step", f"{node.name}/zero_point"]
        zero_point = np.int8(0) if rounded.symmetric else np.uint8(rounding.zero_point)
        _add_constants(model, dict(zip(how, (rounding.step, zero_point), strict=True)))
        codes = f"{node.name}/codes"
        nodes.append(helper.make_node("QuantizeLinear", [node.input[0], *how], [codes], name=codes))
        nodes.append(helper.make_node("DequantizeLinear", [codes, *how], list(node.output), name=node.name))
    _replace_nodes(model, nodes)


def _write_weights(model: ModelProto, rounded: RoundedGraph) -> None:
    """Replace the weights of int8 ops by codes, and biases by sums of products of codes but in a symmetric graph.

    Weights are known by their values: names of nodes change in the conversion.
    """
    weights = rounded.weights
    known = {one.values.tobytes(): one for one in weights.values()}
    constants = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    makers = {output: node for node in model.graph.node for output in node.output}
    nodes: list[NodeProto] = []
    found = 0
    for node in model.graph.node:
        values = constants.get(node.input[1]) if node.op_type in _MULTIPLICATIONS else None
        is_convolution = node.op_type == "Conv"
        one = None if values is None else known.get((values if is_convolution else values.T).tobytes())
        if one is not None and values is not None:
            found += 1
            axis, codes = (0, one.codes) if is_convolution else (1, one.codes[:, :, 0, 0].T)
            nodes.append(_dequantized(model, f"{node.name}/weights", codes.reshape(values.shape), one.steps, axis))
            node.input[1] = nodes[-1].name
            if len(node.input) > 2 and node.input[2] in constants and not rounded.symmetric:
                steps = (_input_step(node, makers, constants) * one.steps).astype(np.float32)
                sums = np.rint(constants[node.input[2]].astype(np.float64) / steps).astype(np.int32)
                nodes.append(_dequantized(model, f"{node.name}/bias", sums, steps, 0))
                node.input[2] = nodes[-1].name
        nodes.append(node)
    if found != len(weights):
        raise QuantizationError(f"{len(weights) - found} of {len(weights)} int8 operators were lost in the conversion")
    _replace_nodes(model, nodes)


def _input_step(node: NodeProto, makers: Mapping[str, NodeProto], constants: Mapping[str, NDArray[Any]]) -> np.float32:
    """The step of the numbers that an op reads, which may have been moved since they were rounded."""
    maker = makers[node.input[0]]
    if maker.op_type != "DequantizeLinear":
        return _input_step(maker, makers, constants)
    return np.float32(constants[maker.input[1]])


def _dequantized(model: ModelProto, name: str, codes: NDArray[Any], steps: NDArray[np.float32], axis: int) -> NodeProto:
    """The values, called `name`, of constant codes with a step for each place along an axis. Adds the constants."""
    how = [f"{name}/codes", f"{name}/steps", f"{name}/zero_points"]
    _add_constants(model, dict(zip(how, (codes, steps, np.zeros(len(steps), codes.dtype)), strict=True)))
    return helper.make_node("DequantizeLinear", how, [name], name=name, axis=axis)


def _add_constants(model: ModelProto, values: Mapping[str, NDArray[Any] | np.generic]) -> None:
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in values.items())


def _replace_nodes(model: ModelProto, nodes: Sequence[NodeProto]) -> None:
    """Put other nodes in the place of all, and drop constants that none of them reads."""
    kept = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    read = {name for node in kept for name in node.input}
    constants = [one for one in model.graph.initializer if one.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(constants)
