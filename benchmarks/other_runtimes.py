"""The same network in int8 under ONNX Runtime and OpenVINO; `python benchmarks/other_runtimes.py` says what is there.

Neither is a dependency of the project: `pip install onnx onnxruntime tf2onnx openvino nncf` brings both.
"""

import importlib.util
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from tuner.model.detection_model import DetectionModel

Images = Sequence[NDArray[Any]]
PACKAGES = {"ONNX Runtime": ("onnx", "onnxruntime", "tf2onnx"), "OpenVINO": ("openvino", "nncf")}


def onnx_runtime_int8(network: DetectionModel, images: Images, threads: int) -> Callable[[], object]:
    """One run on the first image of the network as tf2onnx writes it and ONNX Runtime's static quantisation makes it.

    images: each [1, H, W, 3], to calibrate on. Codes: u8 activations, s8 weights per channel, QDQ form.
    """
    import onnx  # noqa: PLC0415
    import onnxruntime  # noqa: PLC0415
    import tf2onnx  # noqa: PLC0415
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static  # noqa: PLC0415
    from onnxruntime.quantization.shape_inference import quant_pre_process  # noqa: PLC0415

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._images: Iterator[NDArray[Any]] = iter(images)

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            image = next(self._images, None)
            return None if image is None else {network.inputs[0]: image}

    converted, _ = tf2onnx.convert.from_graph_def(
        network.graph_def, input_names=list(network.inputs), output_names=list(network.outputs), opset=17
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    onnxruntime.set_default_logger_severity(3)
    # Threads that go on spinning after a run would slow down whoever runs next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    with tempfile.TemporaryDirectory() as name:
        plain, ready, quantized = (f"{name}/{stage}.onnx" for stage in ("plain", "ready", "quantized"))
        onnx.save(converted, plain)
        quant_pre_process(plain, ready, skip_symbolic_shape=True)
        quantize_static(
            ready,
            quantized,
            Reader(),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        session = onnxruntime.InferenceSession(
            Path(quantized).read_bytes(), options, providers=["CPUExecutionProvider"]
        )
    return lambda: session.run(None, {network.inputs[0]: images[0]})


def openvino_int8(network: DetectionModel, images: Images, threads: int) -> Callable[[], object]:
    """One run on the first image of the network as NNCF quantises it with its default settings, at a fixed size.

    images: each [1, H, W, 3], to calibrate on.
    """
    import nncf  # noqa: PLC0415
    import openvino  # noqa: PLC0415

    model = openvino.convert_model(network.graph_def)
    quantized = nncf.quantize(model, nncf.Dataset(images), subset_size=len(images))
    quantized.reshape(list(images[0].shape))
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.compile_model(quantized, "CPU", settings).create_infer_request()
    return lambda: request.infer([images[0]])


if __name__ == "__main__":
    for runtime, packages in PACKAGES.items():
        missing = [package for package in packages if importlib.util.find_spec(package) is None]
        print(f"{runtime}: {'needs ' + ', '.join(missing) if missing else 'installed'}")
