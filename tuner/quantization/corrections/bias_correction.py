"""Empirical bias correction: what rounding shifts a result by on average goes into the bias."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.core.framework.graph_pb2 import GraphDef
from tensorflow.core.framework.node_def_pb2 import NodeDef

from tuner.errors import QuantizationError
from tuner.model.detection_model import DetectionModel
from tuner.model.graph_view import GraphView, node_name
from tuner.model.nodes import const_node, op_node
from tuner.model.runner import ModelRunner
from tuner.precision import Dtype, PrecisionPlan
from tuner.quantization.corrections.parameters import Parameters, with_parameters
from tuner.quantization.gated_simulation import simulate_gated
from tuner.quantization.lowering.convolutions import Convolution, find_convolutions
from tuner.quantization.ranges import Ranges

_SCOPE = "bias_correction"


def correct_biases(
    model: DetectionModel,
    plan: PrecisionPlan,
    ranges: Ranges,
    images: Iterable[NDArray[np.generic]],
    exact: DetectionModel | None = None,
) -> DetectionModel:
    """Add to each int8 op's bias the mean difference, over images and positions, of its float to its int8 result.

    Nagel et al. 2019, "Data-free quantization through weight equalization and bias correction", arXiv:1906.04721,
    appendix D. Ops are corrected one after the other, so that each one meets what the corrected ones before it make: in
    one run per image, since float graph and simulation stand side by side in one graph and each result of the
    simulation is shifted, for that image, by its own mean difference. The mean of the shifts goes into the bias.
    model: float, BatchNorm folded. images: each [1, H, W, 3]. exact: where the weights of `model` are changed already,
    the model whose float results are meant. Ops without a bias have no place for it and stay.
    Raises QuantizationError when there are no images.
    """
    graph = model.graph
    convolutions, _ = find_convolutions(graph)
    chosen = {
        name: one
        for name, one in convolutions.items()
        if name in plan and plan[name].dtype is Dtype.INT8 and one.bias is not None
    }
    simulated = simulate_gated(graph, plan, ranges, f"{_SCOPE}/gates")
    shifting = _shifting(exact or model, simulated, chosen, plan.count()[Dtype.INT8])
    with ModelRunner(shifting) as runner:
        shifts = [runner.run(image) for image in images]
    if not shifts:
        raise QuantizationError("no calibration images: at least one is needed to correct biases")
    changed: dict[str, Parameters] = {}
    for (name, convolution), output in zip(chosen.items(), shifting.outputs, strict=True):
        shift = np.mean([values[output] for values in shifts], axis=0)
        if convolution.bias is not None and np.isfinite(shift).all():
            changed[name] = Parameters(bias=(convolution.bias + shift).astype(np.float32))
    return model.with_graph(with_parameters(graph, convolutions, changed).graph_def)


def _shifting(
    exact: DetectionModel, simulated: GraphView, chosen: Mapping[str, Convolution], gates: int
) -> DetectionModel:
    """The simulation with every chosen result shifted to the mean of the float one; the shifts are the outputs."""
    graph_def = GraphDef(versions=simulated.graph_def.versions, library=simulated.graph_def.library)
    inputs = {node_name(tensor) for tensor in exact.inputs}
    for node in exact.graph_def.node:
        if node.name not in inputs:
            graph_def.node.append(_in_scope(node, inputs))
    results = {convolution.linear_members[-1]: name for name, convolution in chosen.items()}
    for node in simulated.graph_def.node:
        copy = graph_def.node.add()
        copy.CopyFrom(node)
        if node.name == f"{_SCOPE}/gates":
            copy.CopyFrom(const_node(node.name, np.ones(gates, np.float32)))
        elif node.name in results:
            copy.name = f"{_SCOPE}/unshifted/{node.name}"
            graph_def.node.extend(_shift_nodes(node.name, copy.name))
    outputs = tuple(f"{_SCOPE}/shift/{result}:0" for result in results)
    return replace(exact, graph_def=graph_def, outputs=outputs)


def _in_scope(node: NodeDef, shared: set[str]) -> NodeDef:
    """The node under another name, and reading other nodes under theirs, but for those that are `shared`."""
    copy = NodeDef()
    copy.CopyFrom(node)
    copy.name = f"{_SCOPE}/{node.name}"
    for index, tensor in enumerate(node.input):
        if node_name(tensor) not in shared:
            mark = "^" if tensor.startswith("^") else ""
            copy.input[index] = f"{mark}{_SCOPE}/{tensor.removeprefix('^')}"
    if "frame_name" in node.attr:
        # Two while loops of one name would be taken for one.
        copy.attr["frame_name"].s = f"{_SCOPE}/".encode() + node.attr["frame_name"].s
    return copy


def _shift_nodes(result: str, unshifted: str) -> list[NodeDef]:
    """`result` as `unshifted` with the means per channel of the float graph's result of that name."""
    scope = f"{_SCOPE}/shift/{result}"
    axes = const_node(f"{scope}/axes", np.array([0, 1, 2], np.int32))
    return [
        axes,
        op_node(
            "Mean", f"{scope}/float", [f"{_SCOPE}/{result}", axes.name], T=tf.float32, Tidx=tf.int32, keep_dims=False
        ),
        op_node("Mean", f"{scope}/simulated", [unshifted, axes.name], T=tf.float32, Tidx=tf.int32, keep_dims=False),
        op_node("Sub", scope, [f"{scope}/float", f"{scope}/simulated"], T=tf.float32),
        op_node("AddV2", result, [unshifted, scope], T=tf.float32),
    ]
