"""Time and memory that one `quantize` call takes: of real models, and of made graphs of more and more nodes.

    python benchmarks/lowering_cost.py [MODEL...] [--synthetic 1000,2000,4000,8000]

Each graph has a process of its own. "Prepare" is done once for a model, `quantize` once for every plan of a search.
"""

import argparse
import ctypes
import gc
import multiprocessing
import re
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tuner.model.detection_model import DetectionModel, ModelFormat
from tuner.model.loading import load_model
from tuner.precision import INT8, PrecisionPlan
from tuner.quantization.quantize import find_quantizable_ops, prepare, quantize
from tuner.quantization.ranges import collect_ranges

REPETITIONS = 3
NODES_OF_A_BLOCK = 18
MEGABYTE = 1e6


@dataclass(frozen=True)
class Cost:
    """nodes: of the float graph. again_s: of a further call, median. peak_bytes: over what was held before the call."""

    nodes: int
    ops: int
    model_bytes: int
    prepare_s: float
    first_s: float
    again_s: float
    peak_bytes: int


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path, metavar="MODEL")
    parser.add_argument("--synthetic", default="1000,2000,4000,8000", metavar="NODES,...")
    asked = parser.parse_args()
    print("| graph | nodes | int8 ops | MB | prepare s | quantize s | again s | again, us a node | peak MB |")
    print("|---|---|---|---|---|---|---|---|---|")
    for graph in [*asked.models, *(int(count) for count in asked.synthetic.split(",") if count)]:
        # A fresh process: its memory before the call is that of the model alone.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            cost = pool.submit(measure, graph).result()
        name = f"{graph} nodes" if isinstance(graph, int) else f"{graph.parent.name}/{graph.stem}"
        cells = [f"{seconds:.2f}" for seconds in (cost.prepare_s, cost.first_s, cost.again_s)]
        cells += [f"{cost.again_s / cost.nodes * 1e6:.0f}", f"{cost.peak_bytes / MEGABYTE:.0f}"]
        size = f"{cost.model_bytes / MEGABYTE:.1f}"
        print("|", " | ".join([name, str(cost.nodes), str(cost.ops), size, *cells]), "|", flush=True)


def measure(graph: Path | int) -> Cost:
    """The cost for a model's file, or for a made graph of about so many nodes."""
    model = made(graph) if isinstance(graph, int) else load_model(graph)
    size = 32 if isinstance(graph, int) else 480
    image = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), np.uint8)
    start = time.perf_counter()
    prepared = prepare(model)
    ops = find_quantizable_ops(prepared)
    prepare_s = time.perf_counter() - start
    ranges = collect_ranges(prepared, ops.tensors, [image])
    plan = PrecisionPlan(dict.fromkeys(ops.names, INT8))
    # What collecting ranges has freed goes back to the system, or the call would seem to need no memory.
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = memory_bytes("VmRSS")
    times: list[float] = []
    peak = 0
    for _ in range(1 + REPETITIONS):
        start = time.perf_counter()
        quantize(prepared, plan, ranges)
        times.append(time.perf_counter() - start)
        peak = peak or memory_bytes("VmHWM") - before
    return Cost(
        len(model.graph_def.node),
        len(ops.names),
        model.size_bytes,
        prepare_s,
        times[0],
        statistics.median(times[1:]),
        peak,
    )


def memory_bytes(key: str) -> int:
    """What Linux says about this process: VmRSS is held now, VmHWM was the most."""
    (kilobytes,) = re.findall(rf"^{key}:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(kilobytes) * 1024


def made(nodes: int) -> DetectionModel:
    """A network of about `nodes` nodes: residual blocks with two 3x3 convolutions, a ConcatV2 and a 1x1 convolution."""
    random = np.random.default_rng(1)

    def convolve(data: Any, size: int, gain: float = 1.0) -> Any:
        weights = random.normal(0, gain / (size * data.shape[-1] ** 0.5), (size, size, data.shape[-1], 8))
        return tf.nn.bias_add(
            tf.nn.conv2d(data, weights.astype(np.float32), 1, "SAME"), np.full(8, 0.1 * gain, np.float32)
        )

    with tf.Graph().as_default() as graph:
        image = tf.compat.v1.placeholder(tf.uint8, [1, 32, 32, 3], name="image")
        data = tf.nn.relu(convolve(tf.cast(image, tf.float32) / 255, 3))
        for _ in range(nodes // NODES_OF_A_BLOCK):
            branches = [tf.nn.relu(convolve(data, 3)) for _ in range(2)]
            data = tf.nn.relu(convolve(tf.concat(branches, 3), 1, 0.01) + data)
        tf.identity(data, name="result")
    return DetectionModel(graph.as_graph_def(), ("image:0",), ("result:0",), Path("made"), ModelFormat.FROZEN_GRAPH)


if __name__ == "__main__":
    main()
