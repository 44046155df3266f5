"""What the int8 kernels could do at best: products in a network, and the most per second that this machine makes.

`python benchmarks/int8_peak.py [--threads 2]` prints the machine's figure.
"""

import argparse
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tuner.model.detection_model import DetectionModel, ModelFormat
from tuner.model.nodes import op_node
from tuner.model.runner import ModelRunner
from tuner.precision import INT8, PrecisionPlan
from tuner.quantization.quantize import find_quantizable_ops, prepare, quantize
from tuner.quantization.ranges import collect_ranges

# Large enough to keep the kernels busy, small enough to stay in the caches: (side, channels, kernel size).
PEAK_LAYERS = ((40, 256, 3), (64, 256, 1), (32, 512, 1))
DEPTH = 6
RUNS = 60
MULTIPLYING_OPS = ("Conv2D", "DepthwiseConv2dNative", "MatMul")


def all_int8(model: DetectionModel, images: list[NDArray[Any]]) -> DetectionModel:
    """The model with every operator that can be in int8, calibrated on `images`, each [1, H, W, 3]."""
    prepared = prepare(model)
    ops = find_quantizable_ops(prepared)
    plan = PrecisionPlan(dict.fromkeys(ops.names, INT8))
    return quantize(prepared, plan, collect_ranges(prepared, ops.tensors, images))


def peak_graphs() -> list[tuple[DetectionModel, NDArray[Any], int]]:
    """Int8 graphs that do little but multiply: graph, its image, the products of one run."""
    random = np.random.default_rng(1)
    graphs = []
    for side, channels, size in PEAK_LAYERS:
        with tf.Graph().as_default() as graph:
            data = tf.compat.v1.placeholder(tf.float32, [1, side, side, channels], name="image")
            for _ in range(DEPTH):
                weights = random.normal(0, 1 / (size * math.sqrt(channels)), (size, size, channels, channels))
                data = tf.nn.relu(
                    tf.nn.bias_add(tf.nn.conv2d(data, weights.astype(np.float32), 1, "SAME"), [0.1] * channels)
                )
            tf.identity(data, name="result")
        model = DetectionModel(
            graph.as_graph_def(), ("image:0",), ("result:0",), Path("peak"), ModelFormat.FROZEN_GRAPH
        )
        image = random.random((1, side, side, channels), np.float32)
        graphs.append((all_int8(model, [image]), image, DEPTH * side**2 * channels**2 * size**2))
    return graphs


def count_products(model: DetectionModel, image: NDArray[Any]) -> int:
    """Multiply-accumulates of convolutions and matrix products in one run on `image`, from the shapes seen in it."""
    nodes = [
        node for node in model.graph_def.node if node.op in MULTIPLYING_OPS and node.name not in model.graph.loop_body
    ]
    graph_def = type(model.graph_def)()
    graph_def.CopyFrom(model.graph_def)
    asked = []
    for index, node in enumerate(nodes):
        for role, tensor in (("result", node.name), ("weights", node.input[1])):
            asked.append(f"shape/{index}/{role}")
            graph_def.node.append(op_node("Shape", asked[-1], [tensor], T=tf.float32, out_type=tf.int32))
    with ModelRunner(replace(model, graph_def=graph_def)) as runner:
        shapes = [shape.tolist() for shape in runner.fetch([f"{name}:0" for name in asked], image)]
    total = 0
    for node, result, weights in zip(nodes, shapes[::2], shapes[1::2], strict=True):
        if node.op == "MatMul":
            per_result = weights[1 if node.attr["transpose_b"].b else 0]
        else:
            per_result = weights[0] * weights[1] * (weights[2] if node.op == "Conv2D" else 1)
        total += math.prod(result) * per_result
    return total


def peak_products_per_s(threads: int) -> dict[str, float]:
    """The most products per second that were seen, for each layer; nothing else should run meanwhile."""
    seen = {}
    for (side, channels, size), (model, image, products) in zip(PEAK_LAYERS, peak_graphs(), strict=True):
        with ModelRunner(model, threads, threads) as runner:
            times = []
            for _ in range(RUNS):
                start = time.perf_counter()
                runner.run(image)
                times.append(time.perf_counter() - start)
        seen[f"{size}x{size} on {side}x{side}x{channels}"] = products / min(times)
    return seen


def main() -> None:
    """Print the peak."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    for layer, products_per_s in peak_products_per_s(parser.parse_args().threads).items():
        print(f"{layer}: {products_per_s / 1e9:.0f} GMAC/s")


if __name__ == "__main__":
    main()
