"""The same plan in plain float ops: what the int8 graph must compute, code for code.

Codes are whole numbers in float tensors: sources are rounded and clipped, data movement moves them, kernels sum
products of codes (integers, which float32 holds exactly up to 2**24) and bring the sums to their unit, operation by
operation as the int8 kernels do it, so that both graphs give the same codes.
"""

import numpy as np
import tensorflow as tf
from tensorflow.core.framework.node_def_pb2 import NodeDef

from tuner.model.graph_view import GraphView
from tuner.model.nodes import const_node, op_node
from tuner.precision import PrecisionPlan
from tuner.quantization.lowering.codes import QuantizedConvolution, decide_codes
from tuner.quantization.lowering.scales import UNSIGNED_LEVELS, ActivationScale
from tuner.quantization.ranges import Ranges


def simulate(graph: GraphView, plan: PrecisionPlan, ranges: Ranges, *, matmul_kernel: bool = True) -> GraphView:
    """Write the float graph that computes what the int8 graph of a plan computes.

    matmul_kernel, and errors: those of `decide_codes`.
    """
    codes = decide_codes(graph, plan, ranges, matmul_kernel=matmul_kernel)
    removed: set[str] = set()
    added: list[NodeDef] = []
    tensors = {tensor: f"{tensor.replace(':', '/output_')}/simulation/codes" for tensor in codes.regions.sources}
    for source in codes.regions.sources.values():
        if source.kernel is None:
            added += _round_nodes(source.tensor, codes.scales[source.tensor], tensors[source.tensor])
    for carrier in codes.regions.carriers.values():
        added.append(carrier.copy_on(tensors, "/simulation"))
        if not carrier.sizes:
            name = carrier.outputs[0]
            removed.add(name)
            added += _value_nodes(tensors[name], codes.scales[name], name)
    for quantized in codes.kernels.values():
        removed.update(quantized.convolution.members)
        added += _kernel_nodes(quantized, tensors)
    return graph.replace(removed, added)


def sums_nodes(quantized: QuantizedConvolution, codes: str, scope: str) -> list[NodeDef]:
    """The kernel's sums of products of codes, `<scope>/whole_sums`. codes: the input's."""
    convolution = quantized.convolution
    nodes = []
    pads = quantized.pads or convolution.pads
    if pads:
        zero = np.float32(quantized.scale.zero_point)
        nodes += [
            const_node(f"{scope}/pads", np.array(pads, np.int32)),
            const_node(f"{scope}/zero", zero),
            op_node(
                "PadV2",
                f"{scope}/padded_codes",
                [codes, f"{scope}/pads", f"{scope}/zero"],
                T=tf.float32,
                Tpaddings=tf.int32,
            ),
        ]
        codes = f"{scope}/padded_codes"
    sums = NodeDef()
    sums.CopyFrom(convolution.node)
    sums.name, sums.input[0], sums.input[1] = f"{scope}/sums", codes, f"{scope}/weights"
    if pads:
        sums.attr["padding"].s = b"VALID"
        del sums.attr["explicit_paddings"].list.i[:]
    weights = quantized.weights.astype(np.float32)
    if convolution.is_matmul_node:
        sums.attr["transpose_b"].b, weights = False, weights[0, 0]
    return [
        *nodes,
        const_node(f"{scope}/weights", weights),
        sums,
        # Whole numbers already: this changes no value, it keeps graph optimisers from moving a Mul into the weights.
        op_node("Round", f"{scope}/whole_sums", [sums.name], T=tf.float32),
        const_node(f"{scope}/units", quantized.units),
    ]


def _kernel_nodes(quantized: QuantizedConvolution, tensors: dict[str, str]) -> list[NodeDef]:
    convolution, output = quantized.convolution, quantized.output
    scope = f"{convolution.name}/simulation"
    nodes = sums_nodes(quantized, tensors[convolution.input], scope)
    result = f"{scope}/result" if output is not None else convolution.output
    linear = result if convolution.activation is None else f"{scope}/linear"
    before_sum = linear if convolution.summand is None else f"{scope}/before_sum"
    if output is not None or quantized.is_matmul:
        unbiased = before_sum if quantized.bias is None else f"{scope}/unbiased"
        nodes.append(op_node("Mul", unbiased, [f"{scope}/whole_sums", f"{scope}/units"], T=tf.float32))
        if quantized.bias is not None:
            nodes.append(const_node(f"{scope}/bias", quantized.bias))
            nodes.append(op_node("AddV2", before_sum, [unbiased, f"{scope}/bias"], T=tf.float32))
    else:
        nodes += _whole_sums_with_bias_nodes(quantized, scope, linear)
    if convolution.summand is not None and quantized.summand_peak is not None:
        nodes += [
            const_node(f"{scope}/summand_step", quantized.summand_peak / np.float32(UNSIGNED_LEVELS)),
            op_node("Mul", f"{scope}/summand", [tensors[convolution.summand], f"{scope}/summand_step"], T=tf.float32),
            op_node("AddV2", linear, [before_sum, f"{scope}/summand"], T=tf.float32),
        ]
    if convolution.activation is not None:
        activation = NodeDef()
        activation.CopyFrom(convolution.activation)
        activation.name, activation.input[0] = result, linear
        nodes.append(activation)
    if output is None:
        return nodes
    name = tensors[convolution.output]
    # The convolution kernels multiply by the reciprocal of a step, the matrix product by the number of levels.
    levels = np.float32(output.levels)
    factor = levels if quantized.is_matmul else np.float32(1) / (np.float32(1) / levels)
    return [
        *nodes,
        *_clip_nodes(result, factor, output, name, from_kernel=True),
        *_value_nodes(name, output, convolution.output),
    ]


def _whole_sums_with_bias_nodes(quantized: QuantizedConvolution, scope: str, name: str) -> list[NodeDef]:
    """32-bit sums as float: the kernel adds the bias in float and goes back to whole sums, in the unit it knows."""
    if quantized.bias is None:
        return [op_node("Mul", name, [f"{scope}/whole_sums", f"{scope}/units"], T=tf.float32)]
    unit = quantized.sums_unit
    return [
        const_node(f"{scope}/unit", unit),
        const_node(f"{scope}/sums_per_unit", 1 / unit),
        const_node(f"{scope}/bias", quantized.bias / quantized.weight_peaks),
        op_node("Mul", f"{scope}/unbiased", [f"{scope}/whole_sums", f"{scope}/unit"], T=tf.float32),
        op_node("AddV2", f"{scope}/biased", [f"{scope}/unbiased", f"{scope}/bias"], T=tf.float32),
        op_node("Mul", f"{scope}/biased_sums", [f"{scope}/biased", f"{scope}/sums_per_unit"], T=tf.float32),
        op_node("Round", f"{scope}/whole_biased_sums", [f"{scope}/biased_sums"], T=tf.float32),
        op_node("Mul", name, [f"{scope}/whole_biased_sums", f"{scope}/units"], T=tf.float32),
    ]


def _round_nodes(tensor: str, scale: ActivationScale, name: str) -> list[NodeDef]:
    """What the quantise nodes of `borders` do, with their products in their order."""
    if scale.is_uniform:
        peak = scale.peaks[0]
        factor = np.float32(1) / scale.steps[0] if scale.zero_point else np.float32(scale.levels) / peak
        return _clip_nodes(tensor, factor, scale, name, from_kernel=False)
    levels = np.float32(scale.levels)
    factor = np.float32(1) / (np.float32(1) / levels) if scale.zero_point else levels
    return [
        const_node(f"{name}/reciprocal_peaks", (1 / scale.peaks).astype(np.float32)),
        op_node("Mul", f"{name}/normalized", [tensor, f"{name}/reciprocal_peaks"], T=tf.float32),
        *_clip_nodes(f"{name}/normalized", factor, scale, name, from_kernel=False),
    ]


def _clip_nodes(
    tensor: str, factor: np.float32, scale: ActivationScale, name: str, *, from_kernel: bool
) -> list[NodeDef]:
    """x * factor rounded and clipped to the codes that there are: half to even, but up in front of unsigned kernels."""
    nodes = [
        const_node(f"{name}/factor", np.float32(factor)),
        const_node(f"{name}/lowest", np.float32(scale.lowest_code(from_kernel=from_kernel))),
        const_node(f"{name}/highest", np.float32(scale.levels)),
        op_node("Mul", f"{name}/product", [tensor, f"{name}/factor"], T=tf.float32),
    ]
    if from_kernel or not scale.is_unsigned:
        nodes.append(op_node("Round", f"{name}/rounded", [f"{name}/product"], T=tf.float32))
    else:
        nodes += [
            const_node(f"{name}/half", np.float32(0.5)),
            op_node("AddV2", f"{name}/raised", [f"{name}/product", f"{name}/half"], T=tf.float32),
            op_node("Floor", f"{name}/rounded", [f"{name}/raised"], T=tf.float32),
        ]
    rounded = f"{name}/rounded"
    if scale.zero_point:
        rounded = f"{name}/from_zero_point"
        nodes += [
            const_node(f"{name}/zero_point", np.float32(scale.zero_point)),
            op_node("AddV2", rounded, [f"{name}/rounded", f"{name}/zero_point"], T=tf.float32),
        ]
    return [
        *nodes,
        op_node("ClipByValue", name, [rounded, f"{name}/lowest", f"{name}/highest"], T=tf.float32),
    ]


def _value_nodes(codes: str, scale: ActivationScale, name: str) -> list[NodeDef]:
    steps = scale.steps[0] if scale.is_uniform else scale.steps
    return [
        const_node(f"{name}/simulation/steps", np.asarray(steps, np.float32)),
        op_node("Mul", name, [codes, f"{name}/simulation/steps"], T=tf.float32),
    ]
