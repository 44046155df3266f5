"""Time detectors in float, in our int8 and bf16, and in other tools' int8, in turns in one process; print a table.

    python benchmarks/latency.py MODEL... [--dataset LOCATION] [--calibration LOCATION]

Two parts are timed for each model: the network (image to raw heads: the outputs of the last convolutions), which every
tool gets in the same form, and the whole graph, which the other runtimes cannot take. The times are for speed alone:
how well a graph detects is not looked at.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from int8_peak import count_products, peak_products_per_s
from numpy.typing import NDArray
from other_runtimes import onnx_runtime_int8, openvino_int8

from tuner.data.calibration import calibration_images
from tuner.data.dataset import open_dataset
from tuner.graph.postprocess import optimize_postprocess
from tuner.model.detection_model import DetectionModel
from tuner.model.endpoints import prune
from tuner.model.loading import load_model
from tuner.model.runner import ModelRunner
from tuner.precision import BF16, INT8, OpPrecision, PrecisionPlan
from tuner.quantization.inc_adapter import quantize_with_inc
from tuner.quantization.quantize import QuantizableOps, find_quantizable_ops, prepare, quantize
from tuner.quantization.ranges import collect_ranges
from tuner.quantization.sensitivity import find_heads

WARM_UP_ROUNDS = 5
NETWORK, WHOLE = "network", "whole"
FLOAT, INT8_GRAPH = "float", "int8"
COLUMNS = "| model | part | graph | median ms | 20 % ms | x float, median | x float, 20 % | int8 products' share |"


@dataclass
class Entrant:
    """One row of the table in the making. run: one run on the image. times: of the counted runs, in seconds."""

    part: str
    name: str
    run: Callable[[], object]
    times: list[float] = field(default_factory=list)

    def quantile_s(self, share: float) -> float:
        """The time that `share` of the runs did not exceed."""
        return float(np.quantile(self.times, share))


def main() -> None:
    """Time every model that was named and print its rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    parser.add_argument("--dataset", type=Path, help="whose first image is timed; noise of 480 x 640 unless given")
    parser.add_argument("--calibration", type=Path, help="images for ranges; those of --dataset unless given")
    parser.add_argument("--images", type=int, default=10, help="for calibration (default: 10)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--without", nargs="*", default=[], metavar="GRAPH", help="rows to leave out, as 'whole bf16'")
    asked = parser.parse_args()
    image = np.random.default_rng(0).integers(0, 256, (1, 480, 640, 3), np.uint8)
    if asked.dataset is not None:
        image = open_dataset(asked.dataset, limit=1).first_image[np.newaxis]
    source = asked.calibration or asked.dataset
    images = [image] if source is None else [*calibration_images(open_dataset(source), asked.images)]
    print(f"{COLUMNS}\n|---|---|---|---|---|---|---|---|")
    peak, notes = 0.0, []
    for path in asked.models:
        name = path.parent.name if path.stem == "frozen_inference_graph" else path.stem
        # Before anything else: TensorFlow's threads are those that the first session asked for. And again for each
        # model: other work on the machine can only hide the peak.
        peak = max(peak, *peak_products_per_s(asked.threads).values())
        rows, note = time_model(path, image, images, peak, asked)
        for row in rows:
            print(f"| {name} | {row} |", flush=True)
        notes.append(f"{name}: {note}")
    print("\n" + "\n\n".join(notes))


def time_model(
    path: Path, image: NDArray[Any], images: list[NDArray[Any]], peak: float, asked: argparse.Namespace
) -> tuple[list[str], str]:
    """The rows of one model without its name, and what there is to say about it. peak: int8 products per second."""
    model, notes = load_model(path), []
    with ExitStack() as stack:
        entrants = []
        for part, name, make in graphs(model, images, asked.threads, notes):
            if f"{part} {name}" in asked.without or name in asked.without:
                continue
            try:
                with redirect_stdout(sys.stderr):
                    made = make()
                if isinstance(made, DetectionModel):
                    runner = stack.enter_context(ModelRunner(made, asked.threads, asked.threads))
                    made = partial(runner.run, image)
                made()
            except Exception as error:
                # Whatever another tool cannot do costs a row, not the table.
                reason = (str(error).strip().splitlines() or [""])[0][:200]
                notes.append(f"{part} {name} left out: {type(error).__name__}: {reason}")
                continue
            entrants.append(Entrant(part, name, made))
        time_in_turns(entrants, asked.rounds)
    products = count_products(network_of(optimize_postprocess(model, images[:2]).model), image)
    notes.append(f"{products / 1e9:.3f} GMAC in the network, peak {peak / 1e9:.0f} GMAC/s")
    return list(rows_of(entrants, products / peak)), "; ".join(notes)


def graphs(
    model: DetectionModel, images: list[NDArray[Any]], threads: int, notes: list[str]
) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """Part, name and maker of everything to be timed: a maker gives a model, or a function that runs one."""
    optimized = optimize_postprocess(model, images)
    notes += optimized.notes
    network = network_of(optimized.model)
    yield WHOLE, FLOAT, lambda: model
    if optimized.done:
        yield WHOLE, "float, batched post-processing", lambda: optimized.model
    yield NETWORK, FLOAT, lambda: network
    for part, of_part in ((WHOLE, optimized.model), (NETWORK, network)):
        prepared = prepare(of_part)
        ops = find_quantizable_ops(prepared)
        ranges = collect_ranges(prepared, ops.tensors, images)
        graph = quantize(prepared, plan_of(ops, INT8), ranges)
        yield part, INT8_GRAPH, partial(lambda made: made, graph)
        yield part, "bf16", partial(quantize, prepared, plan_of(ops, BF16), ranges)
        given = model if part == WHOLE else network
        yield part, "neural-compressor", partial(quantize_with_inc, given, plan_of(ops, INT8), images)
        if part == WHOLE:
            share = graph.size_bytes / model.size_bytes
            notes.append(
                f"int8: {len(ops.names)} of {len(ops.names) + len(ops.refused)} convolutions, file {share:.3f}"
            )
            notes += [f"{op} stays float: {reason}" for op, reason in ops.refused.items()]
    yield NETWORK, "ONNX Runtime", partial(onnx_runtime_int8, network, images, threads)
    yield NETWORK, "OpenVINO", partial(openvino_int8, network, images, threads)


def network_of(model: DetectionModel) -> DetectionModel:
    """The model up to its raw heads: the results of the convolutions that no other convolution depends on."""
    heads = find_heads(prepare(model).graph)
    return replace(model, graph_def=prune(model.graph_def, heads), outputs=heads)


def plan_of(ops: QuantizableOps, precision: OpPrecision) -> PrecisionPlan:
    """The same precision for all operators."""
    return PrecisionPlan(dict.fromkeys(ops.names, precision))


def time_in_turns(entrants: Sequence[Entrant], rounds: int) -> None:
    """Run each once a round, in another order each round: nobody always follows the same one."""
    random = np.random.default_rng(0)
    for count in range(WARM_UP_ROUNDS + rounds):
        for index in random.permutation(len(entrants)):
            start = time.perf_counter()
            entrants[index].run()
            if count >= WARM_UP_ROUNDS:
                entrants[index].times.append(time.perf_counter() - start)


def rows_of(entrants: Sequence[Entrant], products_s: float) -> Iterator[str]:
    """The cells of each row. products_s: time in seconds that the network's products need at the machine's peak."""
    for part in (NETWORK, WHOLE):
        of_part = [entrant for entrant in entrants if entrant.part == part]
        reference = next((entrant for entrant in of_part if entrant.name == FLOAT), None)
        for entrant in of_part:
            median, low = entrant.quantile_s(0.5), entrant.quantile_s(0.2)
            ratios = ["", ""]
            if reference is not None:
                ratios = [f"{reference.quantile_s(0.5) / median:.2f}", f"{reference.quantile_s(0.2) / low:.2f}"]
            is_int8 = not entrant.name.startswith((FLOAT, "bf16"))
            share = f"{products_s / low:.0%}" if is_int8 else ""
            yield " | ".join([part, entrant.name, f"{median * 1e3:.2f}", f"{low * 1e3:.2f}", *ratios, share])


if __name__ == "__main__":
    main()
