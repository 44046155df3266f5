"""Compare predicted with measured latencies of plans of several kinds, in one process; print a table for each model.

    python benchmarks/latency_prediction.py MODEL... [--dataset LOCATION] [--calibration LOCATION]

The few graphs that the latency model is made of are traced in turns with the runs of the plans' graphs, so that other
work on the machine meets both alike; both take the 5 % quantile of their runs. The plans are for speed alone: how well
their graphs detect is not looked at.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.data.calibration import calibration_images
from tuner.data.dataset import open_dataset
from tuner.graph.postprocess import optimize_postprocess
from tuner.model.detection_model import DetectionModel
from tuner.model.loading import load_model
from tuner.model.runner import ModelRunner
from tuner.precision import BF16, FP32, INT8, PrecisionPlan
from tuner.quantization.cpu import read_cpu_features
from tuner.quantization.latency_model import LatencyModel, fit_latency_model, reference_plans
from tuner.quantization.node_times import QUANTILE, TracedGraph, TracedSession
from tuner.quantization.quantize import find_quantizable_ops, prepare, quantize
from tuner.quantization.ranges import collect_ranges

TOLERATED = 0.15


def main() -> None:
    """Measure every model that was named and print its rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    parser.add_argument("--dataset", type=Path, help="whose first image is timed; noise of 480 x 640 unless given")
    parser.add_argument("--calibration", type=Path, help="images for ranges; those of --dataset unless given")
    parser.add_argument("--images", type=int, default=4, help="for calibration (default: 4)")
    parser.add_argument("--threads", type=int, default=0, help="0 lets TensorFlow choose (default)")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0, help="of the plans that are drawn at random")
    asked = parser.parse_args()
    image = np.random.default_rng(0).integers(0, 256, (1, 480, 640, 3), np.uint8)
    if asked.dataset is not None:
        image = open_dataset(asked.dataset, limit=1).first_image[np.newaxis]
    source = asked.calibration or asked.dataset
    images = [image] if source is None else [*calibration_images(open_dataset(source), asked.images)]
    summaries = []
    for path in asked.models:
        name = path.parent.name if path.stem == "frozen_inference_graph" else path.stem
        print(f"\n| {name} | measured ms | predicted ms | error |\n|---|---|---|---|")
        model = optimize_postprocess(load_model(path), images[:2]).model
        summaries.append(f"| {name} | {compare(model, image, images, asked)} |")
    columns = "plans | median error | worst error | within 15 % | Spearman's rho"
    print(f"\n| model | {columns} |\n|---|---|---|---|---|---|", *summaries, sep="\n")


def compare(
    model: DetectionModel, image: NDArray[Any], images: Sequence[NDArray[Any]], asked: argparse.Namespace
) -> str:
    """Print a row for each plan and return the cells that sum them up."""
    prepared = prepare(model)
    ops = find_quantizable_ops(prepared)
    ranges = collect_ranges(prepared, ops.tensors, images)
    features = read_cpu_features()
    references = reference_plans(ops.names, has_bfloat16=features is not None and features.has_bfloat16)
    plans = plans_of(ops.names, np.random.default_rng(asked.seed))
    traced, measured = measure_in_turns(
        [quantize(prepared, plan, ranges, full_names=True) for plan in references],
        graphs := {name: quantize(prepared, plan, ranges, full_names=True) for name, plan in plans.items()},
        image,
        asked,
    )
    return compared(fit_latency_model(traced), graphs, measured)


def plans_of(ops: Sequence[str], random: np.random.Generator) -> dict[str, PrecisionPlan]:
    """The plans that are compared, by what they are."""
    uniform = {precision.dtype: PrecisionPlan(dict.fromkeys(ops, precision)) for precision in (FP32, INT8, BF16)}
    in_float, in_int8 = uniform[FP32.dtype], uniform[INT8.dtype]
    plans = {f"all {dtype}": plan for dtype, plan in uniform.items()}
    for other in (FP32, FP32, BF16, BF16):
        chosen = [op for op in ops if random.random() < 0.5]
        plans[f"random half {other.dtype}, {len(plans)}"] = in_int8.with_ops(chosen, other)
    plans["random thirds"] = PrecisionPlan({op: (FP32, BF16, INT8)[random.integers(3)] for op in ops})
    for share in (0.05, 0.1, 0.25, 0.5, 0.75):
        plans[f"first {share:.0%} fp32"] = in_int8.with_ops(ops[: round(len(ops) * share)], FP32)
    plans["last 25% fp32"] = in_int8.with_ops(ops[round(len(ops) * 0.75) :], FP32)
    for op in random.choice(ops, 2, replace=False):
        plans[f"fp32 only: {op}"] = in_int8.with_ops([str(op)], FP32)
        plans[f"int8 only: {op}"] = in_float.with_ops([str(op)], INT8)
    return plans


def measure_in_turns(
    references: Sequence[DetectionModel],
    graphs: Mapping[str, DetectionModel],
    image: NDArray[Any],
    asked: argparse.Namespace,
) -> tuple[list[TracedGraph], dict[str, float]]:
    """Trace the references and time each graph in ms, in another order each round: nobody always follows the same.

    Each timed run follows one of the same graph: caches are as they are for a graph that runs alone.
    """
    random = np.random.default_rng(0)
    threads = asked.threads, asked.threads
    times: dict[str, list[float]] = {name: [] for name in graphs}
    with ExitStack() as stack:
        traced = [stack.enter_context(TracedSession(graph, image, *threads)) for graph in references]
        runs = {
            name: partial(stack.enter_context(ModelRunner(graph, *threads)).run, image)
            for name, graph in graphs.items()
        }
        for run in runs.values():
            run()
        turns = [*traced, *runs]
        for _ in range(asked.rounds):
            for index in random.permutation(len(turns)):
                turn = turns[index]
                if isinstance(turn, TracedSession):
                    turn.measure()
                    continue
                runs[turn]()
                start = time.perf_counter()
                runs[turn]()
                times[turn].append((time.perf_counter() - start) * 1000)
        found = [session.result() for session in traced]
    return found, {name: float(np.quantile(of_graph, QUANTILE)) for name, of_graph in times.items()}


def compared(latency: LatencyModel, graphs: Mapping[str, DetectionModel], measured: Mapping[str, float]) -> str:
    """Print a row for each graph and return the cells that sum them up."""
    predicted = {name: latency.predict_ms(graph) for name, graph in graphs.items()}
    errors = {name: predicted[name] / measured[name] - 1 for name in graphs}
    for name in graphs:
        print(f"| {name} | {measured[name]:.2f} | {predicted[name]:.2f} | {errors[name]:+.1%} |", flush=True)
    sizes = np.abs([*errors.values()])
    rho = np.corrcoef(_ranks([*predicted.values()]), _ranks([*measured.values()]))[0, 1]
    within = f"{np.count_nonzero(sizes <= TOLERATED)} of {len(sizes)}"
    return f"{len(sizes)} | {np.median(sizes):.1%} | {sizes.max():.1%} | {within} | {rho:.2f}"


def _ranks(values: Sequence[float]) -> NDArray[np.int64]:
    return np.argsort(np.argsort(values))


if __name__ == "__main__":
    main()
