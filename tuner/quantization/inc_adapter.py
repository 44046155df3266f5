"""The one door to neural-compressor: a plan in, its int8 graph out, and what it really did read back.

neural-compressor may crash the interpreter, changes process-wide state (CUDA_VISIBLE_DEVICES, stderr), keeps
singletons and leaves files behind. So each conversion has a process and a temporary folder of its own; this module,
run with `python -m`, is what that process executes.
"""

import io
import json
import math
import os
import re
import signal
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tensorflow.core.framework.graph_pb2 import GraphDef
from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.python.framework import op_def_registry

from tuner.errors import QuantizationError
from tuner.files import write_bytes, write_text
from tuner.model.detection_model import DetectionModel, ModelFormat
from tuner.model.graph_view import node_name
from tuner.model.runner import ModelRunner
from tuner.precision import FP32, Dtype, Granularity, OpPrecision, PrecisionPlan
from tuner.quantization.child import Limits, run_child

DEFAULT_LIMITS = Limits(time_s=1800.0)

_FLOAT_GRAPH = "float.pb"
_INT8_GRAPH = "int8.pb"
_IMAGES = "images.npz"
_REQUEST = "request.json"
_LOG = "log.txt"

# neural-compressor swallows the cause, logs it so, and fails later on a None.
_LOGGED_CAUSE = re.compile(r"Fail to (?:quantize|convert) graph due to (.+?)\.?$", re.MULTILINE)
_RAISED = re.compile(r"^Traceback \(most recent call last\):\n(?:[ \t].*\n|\n)*(?:\w+\.)*(.+)", re.MULTILINE)
# Loggers write the time first, TensorFlow's after a letter, or that they warn.
_SAID = re.compile(r"^(?![IWEF]?\d{4}|WARNING)(.+)$", re.MULTILINE)


def quantize_with_inc(
    model: DetectionModel, plan: PrecisionPlan, images: Sequence[NDArray[np.generic]], limits: Limits = DEFAULT_LIMITS
) -> DetectionModel:
    """The int8 graph that neural-compressor makes of a float one, as far as it follows the plan (`applied_by_inc`).

    images: calibration images, each [1, H, W, 3] as the model's input takes them. limits: of the process that converts.
    Operators that the plan does not name stay float. The graph was run on one image.

    Raises QuantizationError when neural-compressor fails, crashes, makes no graph or one that does not run, or takes
    more time or memory than it may; TunerError when the temporary folder cannot be written.
    """
    if not images:
        raise QuantizationError("neural-compressor: needs at least one calibration image, got none")
    with tempfile.TemporaryDirectory(prefix="tuner-inc-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        write_bytes(folder / _FLOAT_GRAPH, model.graph_def.SerializeToString())
        write_bytes(folder / _IMAGES, _as_npz(images))
        request = {"inputs": model.inputs, "outputs": model.outputs, "ops": plan.to_json()}
        write_text(folder / _REQUEST, json.dumps(request))
        _run_worker(folder, limits)
        return model.with_graph(GraphDef.FromString((folder / _INT8_GRAPH).read_bytes()))


def applied_by_inc(graph_def: GraphDef, ops: Collection[str]) -> PrecisionPlan:
    """What became of each of `ops` (node names of the float graph) in a graph made by neural-compressor.

    An operator is int8 when a quantised kernel bears its name. Weights of a single output channel count as per tensor.
    """
    nodes = {node.name: node for node in graph_def.node}
    kernels = {}
    for node in graph_def.node:
        least_weight = _least_weight(node)
        if least_weight is not None:
            # The kernel of the convolution `a` is `a_eightbit_requantize`, `a_eightbit_quantized_conv` or the like.
            kernels[node.name.rpartition("_eightbit_")[0]] = _granularity(nodes[node_name(least_weight)])
    return PrecisionPlan({op: OpPrecision(Dtype.INT8, kernels[op]) if op in kernels else FP32 for op in ops})


def _least_weight(node: NodeDef) -> str | None:
    """The tensor with the least weight, or the least of each channel, that a quantised convolution reads; else None."""
    definition = op_def_registry.get(node.op)
    names = [argument.name for argument in definition.input_arg] if definition is not None else []
    return str(node.input[names.index("min_filter")]) if "min_filter" in names else None


def _granularity(least_weight: NodeDef) -> Granularity:
    count = math.prod(dimension.size for dimension in least_weight.attr["value"].tensor.tensor_shape.dim)
    return Granularity.PER_CHANNEL if count > 1 else Granularity.PER_TENSOR


def _as_npz(images: Sequence[NDArray[np.generic]]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, *images)
    return buffer.getvalue()


def _run_worker(folder: Path, limits: Limits) -> None:
    # Temporary files go where they are deleted; below ERROR the log has a line per pass and none that explains.
    environment = os.environ | {"TMPDIR": str(folder), "LOGLEVEL": "ERROR", "TF_CPP_MIN_LOG_LEVEL": "3"}
    try:
        code = run_child(__name__, [str(folder)], limits, log=folder / _LOG, environment=environment)
    except QuantizationError as error:
        raise QuantizationError(f"neural-compressor: {error}") from None
    if code < 0:
        raise QuantizationError(f"neural-compressor: crashed with {signal.Signals(-code).name}")
    if code > 0:
        cause = _last_cause((folder / _LOG).read_text(errors="replace"))
        raise QuantizationError(f"neural-compressor: {cause or f'ended with exit code {code}'}")
    if not (folder / _INT8_GRAPH).is_file():
        raise QuantizationError("neural-compressor: returned no graph")


def _last_cause(log: str) -> str:
    """The line of the log that says why it failed: of what was raised, or the last one that no logger wrote."""
    causes = _LOGGED_CAUSE.findall(log) or _RAISED.findall(log) or _SAID.findall(log)
    return str(causes[-1]).strip() if causes else ""


class _CalibrationImages:
    """Batches of one image each, as neural-compressor iterates over them: (input, label)."""

    batch_size = 1

    def __init__(self, path: Path) -> None:
        self._path = path

    def __iter__(self) -> Iterator[tuple[NDArray[np.generic], None]]:
        with np.load(self._path, allow_pickle=False) as images:
            for name in images.files:
                yield images[name], None

    def __len__(self) -> int:
        with np.load(self._path, allow_pickle=False) as images:
            return len(images.files)


def _convert(folder: Path) -> None:
    """The worker's part: read the request in `folder`, quantise, try the graph on one image, write it."""
    from neural_compressor.tensorflow import Model, StaticQuantConfig, quantize_model  # noqa: PLC0415

    request = json.loads((folder / _REQUEST).read_text())
    graph_def = GraphDef.FromString((folder / _FLOAT_GRAPH).read_bytes())
    config = StaticQuantConfig(act_dtype=Dtype.FP32.value, weight_dtype=Dtype.FP32.value)
    for op, precision in PrecisionPlan.from_json(request["ops"]).items():
        # Names are matched as regular expressions, from the start and without an end. A weight's dtype alone has no
        # effect: what keeps an operator in float is its activation's.
        config.set_local(
            re.escape(op) + "$",
            StaticQuantConfig(
                act_dtype=precision.dtype.value,
                weight_dtype=precision.dtype.value,
                weight_granularity=precision.weight_granularity.value,
            ),
        )
    wrapped = Model(graph_def)
    wrapped.input_tensor_names = request["inputs"]
    wrapped.output_tensor_names = request["outputs"]
    images = _CalibrationImages(folder / _IMAGES)
    quantized = quantize_model(wrapped, config, images, calib_iteration=len(images))
    if quantized is None:
        return
    result = DetectionModel(
        quantized.graph_def,
        tuple(request["inputs"]),
        tuple(request["outputs"]),
        Path("its int8 graph"),
        ModelFormat.FROZEN_GRAPH,
    )
    with ModelRunner(result) as runner:
        runner.run(next(iter(images))[0])
    write_bytes(folder / _INT8_GRAPH, quantized.graph_def.SerializeToString())


if __name__ == "__main__":
    # neural-compressor makes its workspace in the current folder.
    os.chdir(sys.argv[1])
    _convert(Path(sys.argv[1]))
