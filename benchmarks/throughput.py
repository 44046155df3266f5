"""Images per second of an evaluation's inference against a plain loop over `session.run`; print a table.

    python benchmarks/throughput.py MODEL... --dataset LOCATION [--calibration LOCATION]

Every figure is of a whole pass: sessions are built, each image is decoded unless the column says otherwise, and each
is run. The ways to go take turns, in another order each round. CPU time is that of all threads: it tells the work
apart from whatever else keeps the machine busy.
"""

import argparse
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from tuner.data.calibration import calibration_images
from tuner.data.dataset import DetectionDataset, open_dataset
from tuner.data.images import decode_image
from tuner.detections import Detections
from tuner.evaluation.inference import choose_instances, detect_images
from tuner.graph.postprocess import optimize_postprocess
from tuner.model.detection_model import DetectionModel
from tuner.model.loading import load_model
from tuner.model.runner import ModelRunner
from tuner.precision import INT8, PrecisionPlan
from tuner.quantization.quantize import find_quantizable_ops, prepare, quantize
from tuner.quantization.ranges import collect_ranges

COLUMNS = "| model | graph | way | images/s | x plain | CPU ms per image | instances x threads |"
WAYS = ("plain loop", "streamed", "streamed, decoded before")


def main() -> None:
    """Time every model that was named and print its rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, help="images for ranges; those of --dataset unless given")
    parser.add_argument("--images", type=int, default=100, help="of the data set, in a pass (default: 100)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--instances", type=int, default=0, help="sessions; chosen by a measurement unless given")
    parser.add_argument("--threads", type=int, default=0, help="of each session")
    asked = parser.parse_args()
    dataset = open_dataset(asked.dataset, limit=asked.images, cache_mb=0)
    decoded = open_dataset(asked.dataset, limit=asked.images, cache_mb=4096)
    images = [sample.image for sample in decoded]
    calibration = list(calibration_images(open_dataset(asked.calibration or asked.dataset), 10))
    print(f"{COLUMNS}\n|---|---|---|---|---|---|---|")
    for path in asked.models:
        name = path.parent.name if path.stem == "frozen_inference_graph" else path.stem
        model = load_model(path)
        started = time.perf_counter()
        shape = choose_instances(model, images[:8], instances=asked.instances, threads=asked.threads)
        chosen = f"{shape[0]} x {shape[1]}"
        if not asked.instances and not asked.threads:
            chosen += f", chosen in {time.perf_counter() - started:.1f} s"
        for kind, graph in graphs(model, calibration):
            figures = time_ways(graph, dataset, decoded, shape, asked.rounds)
            for way, (per_s, cpu_ms) in zip(WAYS, figures, strict=True):
                row = f"{per_s:.1f} | {per_s / figures[0][0]:.2f} | {cpu_ms:.1f}"
                print(f"| {name} | {kind} | {way} | {row} | {chosen if way != WAYS[0] else ''} |", flush=True)


def graphs(model: DetectionModel, calibration: list) -> Iterator[tuple[str, DetectionModel]]:
    """The model in float as it is, and with every operator in int8 that can be."""
    yield "float", model
    prepared = prepare(optimize_postprocess(model, calibration[:2]).model)
    ops = find_quantizable_ops(prepared)
    ranges = collect_ranges(prepared, ops.tensors, calibration)
    yield "int8", quantize(prepared, PrecisionPlan(dict.fromkeys(ops.names, INT8)), ranges)


def plain_loop(model: DetectionModel, dataset: DetectionDataset) -> Iterator[Detections]:
    """Decode, run, decode, run: one session, with the threads that TensorFlow chooses."""
    with ModelRunner(model) as runner:
        for entry in dataset.entries:
            yield runner.detect(decode_image(entry.read(), entry.where))


def time_ways(
    model: DetectionModel, dataset: DetectionDataset, decoded: DetectionDataset, shape: tuple[int, int], rounds: int
) -> list[list[float]]:
    """Images per second and CPU milliseconds per image of each of WAYS, medians over the rounds.

    shape: instances, and the threads of each.
    """
    instances, threads = shape
    ways: list[Callable[[], Iterable[Detections]]] = [
        lambda: plain_loop(model, dataset),
        lambda: detect_images(model, dataset, instances=instances, threads=threads),
        lambda: detect_images(model, decoded, instances=instances, threads=threads),
    ]
    figures: list[list[tuple[float, float]]] = [[] for _ in ways]
    random = np.random.default_rng(0)
    for _ in range(rounds):
        for index in random.permutation(len(ways)):
            started, cpu_started = time.perf_counter(), time.process_time()
            count = sum(1 for _ in ways[index]())
            elapsed, cpu = time.perf_counter() - started, time.process_time() - cpu_started
            figures[index].append((count / elapsed, cpu * 1000 / count))
    return [np.median(of_way, axis=0).tolist() for of_way in figures]


if __name__ == "__main__":
    main()
