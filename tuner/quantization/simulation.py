"""The same plan in plain float ops: what the int8 graph must compute. Also the ruler of sensitivity.

Every int8 convolution is written out as its codes: inputs rounded and clipped, weights as codes, their sums (integers,
which float32 holds exactly up to 2**24), the bias, and the sums times their unit, operation by operation as the kernels
do it, so that both graphs give the same codes.
Each convolution can be put behind a gate, so that one graph simulates every plan.
"""

import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike
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
        removed.update(linear_members)
        from_kernel = quantized.convolution.input in handed_over
        if gates is None:
            added += _simulated_nodes(quantized, linear_members[-1], from_kernel=from_kernel)
        else:
            added += _gated_nodes(graph, quantized, gates, index)
    return graph.replace(removed, added)


def _simulated_nodes(quantized: QuantizedConvolution, name: str, *, from_kernel: bool) -> list[NodeDef]:
    """The convolution as the kernel computes it, operation by operation.

    A result that is handed over as codes stays as the kernel has it, divided by the output's peaks where those are per
    channel: whoever reads it reads codes. from_kernel: whether the input is such a result.
    """
    convolution, scope = quantized.convolution, f"{name}/simulation"
    sums = NodeDef()
    sums.CopyFrom(convolution.node)
    sums.name = f"{scope}/sums"
    sums.input[0], sums.input[1] = f"{scope}/codes", f"{scope}/weights"
    whole_sums = f"{scope}/whole_sums"
    nodes = [
        *_code_nodes(convolution.input, quantized.scale, f"{scope}/codes", from_kernel=from_kernel),
        const_node(f"{scope}/weights", quantized.weights.astype(np.float32)),
        sums,
        # Whole numbers already: this changes no value, it keeps graph optimisers from moving the Mul into the weights.
        op_node("Round", whole_sums, [sums.name], T=tf.float32),
        const_node(f"{scope}/units", quantized.units),
    ]
    if quantized.bias is None:
        return [*nodes, op_node("Mul", name, [whole_sums, f"{scope}/units"], T=tf.float32)]
    if quantized.output is not None:
        return [
            *nodes,
            const_node(f"{scope}/bias", quantized.bias),
            op_node("Mul", f"{scope}/unbiased", [whole_sums, f"{scope}/units"], T=tf.float32),
            op_node("AddV2", name, [f"{scope}/unbiased", f"{scope}/bias"], T=tf.float32),
        ]
    # The kernel adds the bias in float and goes back to whole sums, all in the unit that it knows.
    unit = quantized.sums_unit
    return [
        *nodes,
        const_node(f"{scope}/unit", unit),
        const_node(f"{scope}/sums_per_unit", 1 / unit),
        const_node(f"{scope}/bias", quantized.bias / quantized.weight_peaks),
        op_node("Mul", f"{scope}/unbiased", [whole_sums, f"{scope}/unit"], T=tf.float32),
        op_node("AddV2", f"{scope}/biased", [f"{scope}/unbiased", f"{scope}/bias"], T=tf.float32),
        op_node("Mul", f"{scope}/biased_sums", [f"{scope}/biased", f"{scope}/sums_per_unit"], T=tf.float32),
        op_node("Round", f"{scope}/whole_biased_sums", [f"{scope}/biased_sums"], T=tf.float32),
        op_node("Mul", name, [f"{scope}/whole_biased_sums", f"{scope}/units"], T=tf.float32),
    ]


def _code_nodes(tensor: str, scale: ActivationScale, name: str, *, from_kernel: bool) -> list[NodeDef]:
    """round(x * codes per unit), half to even, clipped; the products in the order in which the int8 graph has them."""
    levels, one = np.float32(scale.levels), np.float32(1)
    factors: list[ArrayLike]
    if from_kernel:
        factors = [one / (one / levels if scale.peaks.ndim else scale.step)]
    else:
        factors = [one / scale.peaks, levels] if scale.peaks.ndim else [levels / scale.peaks]
    nodes: list[NodeDef] = []
    for index, factor in enumerate(factors):
        nodes.append(const_node(f"{name}/factor_{index}", np.asarray(factor, np.float32)))
        nodes.append(op_node("Mul", f"{name}/product_{index}", [tensor, f"{name}/factor_{index}"], T=tf.float32))
        tensor = f"{name}/product_{index}"
    return [
        *nodes,
        const_node(f"{name}/lowest", np.float32(scale.lowest_code(from_kernel=from_kernel))),
        const_node(f"{name}/highest", levels),
        op_node("Round", f"{name}/rounded", [tensor], T=tf.float32),
        op_node("ClipByValue", name, [f"{name}/rounded", f"{name}/lowest", f"{name}/highest"], T=tf.float32),
    ]


def _gated_nodes(graph: GraphView, quantized: QuantizedConvolution, gates: str, index: int) -> list[NodeDef]:
    """The float convolution and its simulation side by side, and float + gate * (simulated - float).

    A reader cannot know whether the gate before it is open, so all results are in the float graph's units.
    """
    *before, last = quantized.convolution.linear_members
    name, exact, simulated = last, f"{last}/exact", f"{last}/simulated"
    peaks = 1 if quantized.output is None or not quantized.output.peaks.ndim else quantized.output.peaks
    float_nodes = []
    for member in (*before, last):
        node = NodeDef()
        node.CopyFrom(graph.nodes[member])
        node.name = exact if member == last else member
        float_nodes.append(node)
    return [
        *float_nodes,
        *_simulated_nodes(quantized, f"{simulated}/as_kernel", from_kernel=False),
        const_node(f"{simulated}/peaks", np.asarray(peaks, np.float32)),
        op_node("Mul", simulated, [f"{simulated}/as_kernel", f"{simulated}/peaks"], T=tf.float32),
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
