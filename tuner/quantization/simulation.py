"""The same plan in plain float ops: what the int8 graph must compute. Also the ruler of sensitivity.

Every int8 convolution is written out as its codes: inputs rounded and clipped, weights as codes, their sums (integers,
which float32 holds exactly up to 2**24), the bias rounded to the sums' unit, and the sums times their unit.
Each convolution can be put behind a gate, so that one graph simulates every plan.
"""

import numpy as np
import tensorflow as tf
from tensorflow.core.framework.node_def_pb2 import NodeDef

from tuner.model.graph_view import GraphView
from tuner.precision import PrecisionPlan
from tuner.quantization.lowering.codes import QuantizedConvolution, quantize_convolutions
from tuner.quantization.lowering.scales import ActivationScale
from tuner.quantization.nodes import const_node, op_node
from tuner.quantization.ranges import Ranges


def simulate(graph: GraphView, plan: PrecisionPlan, ranges: Ranges, gates: str | None = None) -> GraphView:
    """Write the float graph that computes what the int8 graph of a plan computes. Errors: `quantize_convolutions`'.

    gates: where given, the name of a float placeholder [int8 ops], in the order of `quantize_convolutions`, that is
    added to the graph: each op's result is float + gate * (simulated - float).
    """
    convolutions = quantize_convolutions(graph, plan, ranges)
    handed_over = {quantized.convolution.output for quantized in convolutions if quantized.output is not None}
    removed: set[str] = set()
    added: list[NodeDef] = []
    if gates is not None:
        added.append(op_node("Placeholder", gates, [], dtype=tf.float32))
    for index, quantized in enumerate(convolutions):
        linear_members = quantized.convolution.linear_members
        lowest_code = quantized.scale.lowest_code(from_kernel=quantized.convolution.input in handed_over)
        removed.update(linear_members)
        if gates is None:
            added += _simulated_nodes(quantized, lowest_code, linear_members[-1])
        else:
            added += _gated_nodes(graph, quantized, lowest_code, gates, index)
    return graph.replace(removed, added)


def _simulated_nodes(quantized: QuantizedConvolution, lowest_code: int, name: str) -> list[NodeDef]:
    convolution, scope = quantized.convolution, f"{name}/simulation"
    sums = NodeDef()
    sums.CopyFrom(convolution.node)
    sums.name = f"{scope}/sums"
    sums.input[0], sums.input[1] = f"{scope}/codes", f"{scope}/weights"
    nodes = [
        *_code_nodes(convolution.input, quantized.scale, lowest_code, f"{scope}/codes"),
        const_node(f"{scope}/weights", quantized.weights.astype(np.float32)),
        sums,
        # Whole numbers already: this changes no value, it keeps graph optimisers from moving the Mul into the weights.
        op_node("Round", f"{scope}/whole_sums", [sums.name], T=tf.float32),
    ]
    result = f"{scope}/whole_sums"
    if quantized.bias_in_sums is not None:
        nodes.append(const_node(f"{scope}/bias", quantized.bias_in_sums))
        nodes.append(op_node("AddV2", f"{scope}/biased_sums", [result, f"{scope}/bias"], T=tf.float32))
        result = f"{scope}/biased_sums"
    return [
        *nodes,
        const_node(f"{scope}/units", quantized.units),
        op_node("Mul", name, [result, f"{scope}/units"], T=tf.float32),
    ]


def _code_nodes(tensor: str, scale: ActivationScale, lowest_code: int, name: str) -> list[NodeDef]:
    """round(x * codes per unit), half to even, clipped; the products in the order in which the int8 graph has them."""
    per_channel = bool(scale.peaks.ndim)
    factors = [1 / scale.peaks, np.float32(scale.levels)] if per_channel else [np.float32(scale.levels) / scale.peaks]
    nodes: list[NodeDef] = []
    for index, factor in enumerate(factors):
        nodes.append(const_node(f"{name}/factor_{index}", np.asarray(factor, np.float32)))
        nodes.append(op_node("Mul", f"{name}/product_{index}", [tensor, f"{name}/factor_{index}"], T=tf.float32))
        tensor = f"{name}/product_{index}"
    return [
        *nodes,
        const_node(f"{name}/lowest", np.float32(lowest_code)),
        const_node(f"{name}/highest", np.float32(scale.levels)),
        op_node("Round", f"{name}/rounded", [tensor], T=tf.float32),
        op_node("ClipByValue", name, [f"{name}/rounded", f"{name}/lowest", f"{name}/highest"], T=tf.float32),
    ]


def _gated_nodes(
    graph: GraphView, quantized: QuantizedConvolution, lowest_code: int, gates: str, index: int
) -> list[NodeDef]:
    """The float convolution and its simulation side by side, and float + gate * (simulated - float)."""
    *before, last = quantized.convolution.linear_members
    name, exact, simulated = last, f"{last}/exact", f"{last}/simulated"
    float_nodes = []
    for member in (*before, last):
        node = NodeDef()
        node.CopyFrom(graph.nodes[member])
        node.name = exact if member == last else member
        float_nodes.append(node)
    return [
        *float_nodes,
        *_simulated_nodes(quantized, lowest_code, simulated),
        const_node(f"{name}/gate_index", np.int32(index)),
        const_node(f"{name}/gate_axis", np.int32(0)),
        op_node(
            "GatherV2",
            f"{name}/gate",
            [gates, f"{name}/gate_index", f"{name}/gate_axis"],
            Tparams=tf.float32,
            Tindices=tf.int32,
            Taxis=tf.int32,
            batch_dims=0,
        ),
        op_node("Sub", f"{name}/error", [simulated, exact], T=tf.float32),
        op_node("Mul", f"{name}/gated_error", [f"{name}/error", f"{name}/gate"], T=tf.float32),
        op_node("AddV2", name, [exact, f"{name}/gated_error"], T=tf.float32),
    ]
