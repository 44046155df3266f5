"""Hold exported ONNX detectors against the int8 graph of the same plan, and their speed against NNCF's; print a table.

    python benchmarks/onnx_export.py MODEL... --dataset LOCATION [--calibration LOCATION]

Every operator is int8 that can be. mAP: of the network in each runtime, joined with the rest in TensorFlow.
"symmetric": what `tuner export --symmetric` writes, in ONNX Runtime. "with f32": without OpenVINO's bf16, where CPUs
have it. Latency: the network alone in OpenVINO, as exported and as NNCF makes it int8 with its default settings.
"""

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from latency import Entrant, time_in_turns
from numpy.typing import NDArray
from other_runtimes import openvino_int8

from tuner.data.calibration import calibration_images
from tuner.data.dataset import DetectionDataset, open_dataset
from tuner.detections import Detections
from tuner.evaluation.coco_map import ImageTruth, coco_metrics
from tuner.export.heads import cut_at_heads
from tuner.export.runtimes import export_onnx, export_tflite
from tuner.graph.postprocess import optimize_postprocess
from tuner.model.loading import load_model
from tuner.model.runner import ModelRunner
from tuner.precision import INT8, PrecisionPlan
from tuner.quantization.quantize import find_quantizable_ops, prepare, quantize
from tuner.quantization.ranges import collect_ranges

Heads = Callable[[NDArray[np.uint8]], dict[str, NDArray[Any]]]
COLUMNS = (
    "| model | mAP float | int8 | ONNX Runtime | symmetric | OpenVINO | with f32 | TFLite | MB "
    "| OpenVINO ms, 5 % / 20 % / 50 % | NNCF ms, 5 % / 20 % / 50 % | exported / NNCF |"
)


def main() -> None:
    """Export every model that was named, run it, and print its row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, help="images for ranges; those of --dataset unless given")
    parser.add_argument("--images", type=int, default=40, help="for calibration (default: 40)")
    parser.add_argument("--limit", type=int, help="images that mAP is measured on; all unless given")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=100)
    asked = parser.parse_args()
    logging.getLogger("nncf").setLevel(logging.ERROR)
    dataset = open_dataset(asked.dataset, limit=asked.limit)
    images = list(calibration_images(open_dataset(asked.calibration or asked.dataset), asked.images))
    print(f"{COLUMNS}\n|---|---|---|---|---|---|---|---|---|---|---|---|")
    for path in asked.models:
        name = path.parent.name if path.stem == "frozen_inference_graph" else path.stem
        # NNCF tells its progress on stdout.
        with redirect_stdout(sys.stderr):
            row = row_of(path, dataset, images, asked)
        print(f"| {name} | {row} |", flush=True)


def row_of(path: Path, dataset: DetectionDataset, images: list[NDArray[Any]], asked: argparse.Namespace) -> str:
    """The cells of a model's row, without its name."""
    model = load_model(path)
    prepared = prepare(optimize_postprocess(model, images[:10]).model)
    ops = find_quantizable_ops(prepared)
    plan = PrecisionPlan(dict.fromkeys(ops.names, INT8))
    int8 = quantize(prepared, plan, collect_ranges(prepared, ops.tensors, images))
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        file, lite = Path(name) / "network.onnx", Path(name) / "network.tflite"
        export_onnx(model, file, images, plan)
        figures = []
        for graph in (model, int8):
            runner = stack.enter_context(ModelRunner(graph))
            figures.append(mean_average_precision(dataset, runner.detect))
        by_onnx_runtime = mean_average_precision(dataset, joined(file, onnx_runtime_heads(file, asked.threads)))
        symmetric = Path(name) / "symmetric.onnx"
        export_onnx(model, symmetric, images, plan, symmetric=True)
        by_symmetric = mean_average_precision(dataset, joined(symmetric, onnx_runtime_heads(symmetric, asked.threads)))
        openvino_run = openvino_heads(file, asked.threads)
        by_openvino = mean_average_precision(dataset, joined(file, openvino_run))
        exact = joined(file, openvino_heads(file, asked.threads, INFERENCE_PRECISION_HINT="f32"))
        by_exact_openvino = mean_average_precision(dataset, exact)
        export_tflite(model, lite, images)
        by_tflite = mean_average_precision(dataset, joined(lite, tflite_heads(lite, asked.threads)))
        size = file.stat().st_size / 1e6
        fixed = openvino_network(file, asked.threads, images[0])
        nncf = openvino_int8(cut_at_heads(prepared).network, images, asked.threads)
        entrants = [Entrant("network", "exported", fixed), Entrant("network", "NNCF", nncf)]
        time_in_turns(entrants, asked.rounds)
    accuracies = (*figures, by_onnx_runtime, by_symmetric, by_openvino, by_exact_openvino, by_tflite)
    cells = [f"{value:.4f}" for value in accuracies]
    times = [[entrant.quantile_s(share) * 1e3 for share in (0.05, 0.2, 0.5)] for entrant in entrants]
    ratios = [ours / theirs for ours, theirs in zip(*times, strict=True)]
    shown = [" / ".join(f"{value:.2f}" for value in values) for values in (*times, ratios)]
    return " | ".join([*cells, f"{size:.2f}", *shown])


def mean_average_precision(dataset: DetectionDataset, detect: Callable[[NDArray[np.uint8]], Detections]) -> float:
    """Over all images of a set."""
    truths = [ImageTruth(entry.image_id, entry.height, entry.width, entry.ground_truth) for entry in dataset.entries]
    return float(coco_metrics(truths, [detect(sample.image) for sample in dataset]).figures["mAP"])


def joined(file: Path, heads: Heads) -> Callable[[NDArray[np.uint8]], Detections]:
    """The detector that an exported network and the graph beside it make."""
    about = json.loads(file.with_suffix(".json").read_text())
    rest = load_model(file.with_name(about["postprocess"]["graph"]))
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(rest.graph_def, name="")
    session = tf.compat.v1.Session(graph=graph)

    def detect(image: NDArray[np.uint8]) -> Detections:
        values = {about["inputs"][0]["name"]: image[np.newaxis], **heads(image[np.newaxis])}
        feed = {name: values[name] for name in about["postprocess"]["inputs"]}
        boxes, scores, classes, number = session.run(about["postprocess"]["outputs"], feed)
        count = int(number[0])
        return Detections(boxes[0, :count], scores[0, :count], np.rint(classes[0, :count]).astype(np.int64))

    return detect


def onnx_runtime_heads(file: Path, threads: int) -> Heads:
    """The network in ONNX Runtime."""
    import onnxruntime  # noqa: PLC0415

    onnxruntime.set_default_logger_severity(3)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    names, image_name = [output.name for output in session.get_outputs()], session.get_inputs()[0].name
    return lambda image: dict(zip(names, session.run(names, {image_name: image}), strict=True))


def openvino_heads(file: Path, threads: int, **others: str) -> Heads:
    """The network in OpenVINO, for images of any size. others: settings besides `settings`."""
    import openvino  # noqa: PLC0415

    compiled = openvino.compile_model(openvino.Core().read_model(file), "CPU", {**settings(threads), **others})
    names = [output.any_name for output in compiled.outputs]
    request = compiled.create_infer_request()
    return lambda image: {
        name: value.copy() for name, value in zip(names, request.infer([image]).values(), strict=True)
    }


def openvino_network(file: Path, threads: int, image: NDArray[Any]) -> Callable[[], object]:
    """One run on an image, of whose size the network is made."""
    import openvino  # noqa: PLC0415

    network = openvino.Core().read_model(file)
    network.reshape(list(image.shape))
    request = openvino.compile_model(network, "CPU", settings(threads)).create_infer_request()
    return lambda: request.infer([image])


def settings(threads: int) -> dict[str, Any]:
    """As `openvino_int8` has them."""
    return {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}


def tflite_heads(file: Path, threads: int) -> Heads:
    """The network in TensorFlow's interpreter, by the order of its signature's outputs."""
    interpreter = tf.lite.Interpreter(model_path=str(file), num_threads=threads)
    names = [output["name"] for output in json.loads(file.with_suffix(".json").read_text())["outputs"]]
    place = interpreter.get_input_details()[0]["index"]

    def run(image: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        interpreter.resize_tensor_input(place, image.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(place, image)
        interpreter.invoke()
        found = [interpreter.get_tensor(output["index"]) for output in interpreter.get_output_details()]
        return dict(zip(names, found, strict=True))

    return run


if __name__ == "__main__":
    main()
