"""One float graph that simulates every plan: each operator's rounding behind a gate. The ruler of sensitivity."""

import numpy as np
import tensorflow as tf
from tensorflow.core.framework.node_def_pb2 import NodeDef

from tuner.model.graph_view import GraphView
from tuner.model.nodes import const_node, op_node
from tuner.precision import PrecisionPlan
from tuner.quantization.lowering.codes import QuantizedConvolution, decide_codes
from tuner.quantization.ranges import Ranges
from tuner.quantization.simulation import sums_nodes


def simulate_gated(graph: GraphView, plan: PrecisionPlan, ranges: Ranges, gates: str) -> GraphView:
    """Write a graph in which each int8 op's result before its activation is float + gate * (simulated - float).

    gates: the name of the float placeholder [int8 ops], in the order of the graph's convolutions, that is added.
    An op's simulation rounds its input and its weights. A reader cannot know which gates before it are open, so all
    results are in the float graph's units. Errors: `decide_codes`'.
    """
    removed: set[str] = set()
    added = [op_node("Placeholder", gates, [], dtype=tf.float32)]
    for index, quantized in enumerate(decide_codes(graph, plan, ranges, fuse_sums=False).kernels.values()):
        removed.update(quantized.convolution.linear_members)
        added += _gated_nodes(graph, quantized, gates, index)
    return graph.replace(removed, added)


def _gated_nodes(graph: GraphView, quantized: QuantizedConvolution, gates: str, index: int) -> list[NodeDef]:
    *before, name = quantized.convolution.linear_members
    exact, scope = f"{name}/exact", f"{name}/simulated"
    float_nodes = []
    for member in (*before, name):
        node = NodeDef()
        node.CopyFrom(graph.nodes[member])
        node.name = exact if member == name else member
        float_nodes.append(node)
    return [
        *float_nodes,
        *_simulated_nodes(quantized, scope),
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
        op_node("Sub", f"{name}/error", [scope, exact], T=tf.float32),
        op_node("Mul", f"{name}/gated_error", [f"{name}/error", f"{name}/gate"], T=tf.float32),
        op_node("AddV2", name, [exact, f"{name}/gated_error"], T=tf.float32),
    ]


def _simulated_nodes(quantized: QuantizedConvolution, name: str) -> list[NodeDef]:
    """The op's result in the float graph's unit, from its input rounded to codes."""
    scale, output_peaks = quantized.scale, 1 if quantized.output is None else quantized.output.peaks
    bias = 0 if quantized.bias is None else quantized.bias
    return [
        const_node(f"{name}/codes_per_unit", (scale.levels / scale.peaks).astype(np.float32)),
        const_node(f"{name}/zero_point", np.float32(scale.zero_point)),
        const_node(f"{name}/lowest", np.float32(scale.lowest_code(from_kernel=False))),
        const_node(f"{name}/highest", np.float32(scale.levels)),
        const_node(f"{name}/bias", np.asarray(bias, np.float32)),
        const_node(f"{name}/output_peaks", np.asarray(output_peaks, np.float32)),
        op_node("Mul", f"{name}/product", [quantized.convolution.input, f"{name}/codes_per_unit"], T=tf.float32),
        op_node("Round", f"{name}/rounded", [f"{name}/product"], T=tf.float32),
        op_node("AddV2", f"{name}/from_zero_point", [f"{name}/rounded", f"{name}/zero_point"], T=tf.float32),
        op_node(
            "ClipByValue",
            f"{name}/codes",
            [f"{name}/from_zero_point", f"{name}/lowest", f"{name}/highest"],
            T=tf.float32,
        ),
        *sums_nodes(quantized, f"{name}/codes", name),
        op_node("Mul", f"{name}/unbiased", [f"{name}/whole_sums", f"{name}/units"], T=tf.float32),
        op_node("AddV2", f"{name}/biased", [f"{name}/unbiased", f"{name}/bias"], T=tf.float32),
        op_node("Mul", name, [f"{name}/biased", f"{name}/output_peaks"], T=tf.float32),
    ]
