"""A detector exported for other runtimes: the network, its cut, and what joins it again, side by side on disk."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf
from numpy.typing import NDArray

from tuner.errors import ConfigError, ModelError, TunerError
from tuner.export.heads import Cut, cut_at_heads
from tuner.export.rounded_graph import round_as_planned
from tuner.export.tflite_model import to_tflite
from tuner.files import write_bytes, write_text
from tuner.graph.postprocess import OPTIMIZATION_IMAGES, optimize_postprocess
from tuner.model.detection_model import DetectionModel
from tuner.model.fold_batch_norm import fold_batch_norm
from tuner.model.graph_view import node_name
from tuner.model.skip_identities import skip_identities
from tuner.precision import INT8, Correction, Dtype, PrecisionPlan
from tuner.quantization.corrections.apply import apply_corrections
from tuner.quantization.quantize import find_quantizable_ops, prepare
from tuner.quantization.ranges import collect_ranges


@dataclass(frozen=True)
class Exported:
    """What was written. files: the model first. int8_ops: how many operators are int8; None where TFLite chose.

    outputs: tensor names of the model that was written: the raw heads where it was cut.
    """

    files: tuple[Path, ...]
    int8_ops: int | None
    outputs: tuple[str, ...]


def export_onnx(
    model: DetectionModel,
    output: Path,
    images: Sequence[NDArray[Any]],
    plan: PrecisionPlan | None = None,
    *,
    corrections: Collection[Correction] = (),
    optimize: bool = True,
    matmul_kernel: bool = True,
    symmetric: bool = False,
) -> Exported:
    """Write the float model as ONNX, with the plan as pairs of QuantizeLinear and DequantizeLinear.

    images: for calibration, each [1, H, W, 3]. plan: all in int8 unless given; bf16 stays float. corrections, optimize
    (the post-processing) and matmul_kernel: as in the tuning that the plan comes from. symmetric: activations as int8
    with the zero point 0 and biases as float, which TensorRT asks for, in the place of u8 and 32-bit biases.
    Raises TunerError for a model that cannot be converted, a plan of another model, or a place that cannot be written.
    """
    try:
        from tuner.export.onnx_model import to_onnx  # noqa: PLC0415 - an extra, which others do not need
    except ModuleNotFoundError as error:
        raise TunerError(f"ONNX needs {error.name}: pip install 'tuner[onnx]'") from error
    _check_float(model)
    prepared = prepare(optimize_postprocess(model, images[:OPTIMIZATION_IMAGES]).model if optimize else model)
    ops = find_quantizable_ops(prepared)
    plan = PrecisionPlan(dict.fromkeys(ops.names, INT8)) if plan is None else plan
    foreign = [op for op in plan if op not in ops.names and op not in ops.refused]
    if foreign:
        raise ConfigError(f"the plan is of another model: {model.source} has no operator {foreign[0]!r}")
    ranges = collect_ranges(prepared, ops.tensors, images)
    corrected, ranges = apply_corrections(prepared, plan, ranges, images, corrections)
    cut = cut_at_heads(corrected)
    network = cut.network
    inside = PrecisionPlan({op: precision for op, precision in plan.items() if op in network.graph.nodes})
    rounded = round_as_planned(network.graph, inside, ranges, matmul_kernel=matmul_kernel, symmetric=symmetric)
    try:
        content = to_onnx(rounded, network.inputs, network.outputs).SerializeToString(deterministic=True)
    except ModelError as error:
        raise ModelError(f"{model.source}: {error}") from error
    return _write(cut, output, content, inside.count()[Dtype.INT8], symmetric)


def export_tflite(model: DetectionModel, output: Path, images: Sequence[NDArray[Any]]) -> Exported:
    """Write the float model as an int8 TFLite model, ranges and codes as TensorFlow's converter chooses them.

    images: for calibration, each [1, H, W, 3]. Raises TunerError as `export_onnx` does.
    """
    _check_float(model)
    optimized = optimize_postprocess(model, images[:OPTIMIZATION_IMAGES]).model
    # Not `prepare`, whose Splits in the place of channel shuffles the converter fails to quantise.
    cut = cut_at_heads(optimized.with_graph(fold_batch_norm(skip_identities(optimized.graph)).graph_def))
    return _write(cut, output, to_tflite(cut.network, images), None, None)


def _check_float(model: DetectionModel) -> None:
    quantized = next((node for node in model.graph_def.node if "Quantize" in node.op), None)
    if quantized is not None:
        raise ConfigError(
            f"{model.source}: an int8 graph already ({quantized.op}): give the float model that it was made from"
        )


def _write(cut: Cut, output: Path, content: bytes, int8_ops: int | None, symmetric: bool | None) -> Exported:
    """Write the model last: where it is, what belongs to it is too. symmetric: None where TFLite chose."""
    files = [output]
    about: dict[str, Any] = {
        "schema": 1,
        "model": output.name,
        "symmetric": symmetric,
        "inputs": _tensors(cut.network, cut.network.inputs),
        "outputs": _tensors(cut.network, cut.network.outputs),
        "postprocess": None,
    }
    if cut.postprocess is not None:
        joined = output.with_suffix(".postprocess.pb")
        about["postprocess"] = {
            "graph": joined.name,
            "inputs": list(cut.postprocess.inputs),
            "outputs": list(cut.postprocess.outputs),
        }
        write_bytes(joined, cut.postprocess.graph_def.SerializeToString(deterministic=True))
        files.append(joined)
    files.append(output.with_suffix(".json"))
    write_text(files[-1], json.dumps(about, indent=2) + "\n")
    write_bytes(output, content)
    return Exported(tuple(files), int8_ops, cut.network.outputs)


def _tensors(model: DetectionModel, names: Sequence[str]) -> list[dict[str, Any]]:
    """Name, type and shape of tensors; sizes that are open are null."""
    nodes = model.graph.nodes
    described = []
    for name in names:
        node = nodes[node_name(name)]
        attribute = "dtype" if "dtype" in node.attr else "T"
        dtype = tf.as_dtype(node.attr[attribute].type).name if attribute in node.attr else "float32"
        described.append({"name": name, "dtype": dtype, "shape": list(model.graph.shape(node.name))})
    return described
