"""Latency figures from a clock that the test turns, and from real processes."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tuner.errors import EvaluationError, ModelError
from tuner.evaluation import latency
from tuner.evaluation.latency import measure_latency, measure_models
from tuner.model.detection_model import DetectionModel, ModelFormat

ROOT = Path(__file__).parents[2]

tf1 = tf.compat.v1


class Clock:
    """Time that passes only when a run says so."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def perf_counter(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(latency, "time", clock)
    return clock


def test_figures_of_known_times(clock: Clock) -> None:
    durations = iter([99.0, 0.010, 0.020, 0.030, 0.040, 0.100])

    def run() -> None:
        clock.now_s += next(durations)

    (figures,) = measure_latency([run], warmup=1, iterations=5, images_per_run=2)
    assert figures.median_ms == pytest.approx(30)
    assert figures.p90_ms == pytest.approx(76)
    assert figures.p99_ms == pytest.approx(97.6)
    assert figures.min_ms == pytest.approx(10)
    assert figures.mean_ms == pytest.approx(40)
    assert figures.images_per_s == pytest.approx(10 / 0.2)


def test_runs_take_turns(clock: Clock) -> None:
    order: list[str] = []

    def run_of(name: str, duration_s: float) -> None:
        order.append(name)
        clock.now_s += duration_s

    slow, fast = measure_latency(
        [lambda: run_of("a", 0.02), lambda: run_of("b", 0.01)], warmup=1, iterations=2, images_per_run=1
    )
    assert "".join(order) == "ababab"
    assert (slow.median_ms, fast.median_ms) == (pytest.approx(20), pytest.approx(10))


def test_no_iterations() -> None:
    with pytest.raises(EvaluationError, match="iterations: got 0; expected at least 1"):
        measure_latency([lambda: None], iterations=0)


@pytest.fixture
def model() -> DetectionModel:
    with tf.Graph().as_default() as graph:
        image = tf1.placeholder(tf.uint8, [None, 8, 8, 3], name="image")
        tf.reduce_sum(tf.cast(image, tf.float32), name="sum")
    return DetectionModel(graph.as_graph_def(), ("image:0",), ("sum:0",), Path("sum.pb"), ModelFormat.FROZEN_GRAPH)


def test_two_models_in_one_process(model: DetectionModel) -> None:
    figures = measure_models([model, model], np.zeros((4, 8, 8, 3), np.uint8), threads=1, warmup=1, iterations=3)
    assert len(figures) == 2
    for one in figures:
        assert 0 < one.min_ms <= one.median_ms <= one.p90_ms <= one.p99_ms
        assert one.xla_clusters == 0
        assert one.images_per_s == pytest.approx(4000 / one.mean_ms)


def test_instances(model: DetectionModel) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("two instances need two cores")
    images = np.zeros((1, 8, 8, 3), np.uint8)
    (both,) = measure_models([model], images, instances=2, warmup=1, iterations=20)
    # The sum of two rates is at least twice the rate of their mean time, however unequal the two are.
    assert both.images_per_s >= 2000 / both.mean_ms * (1 - 1e-9)
    with pytest.raises(ModelError, match=r"sum.pb: input image:0 takes the shape"):
        measure_models([model], images[0], instances=2)


XLA = """
from pathlib import Path
import numpy as np
import tensorflow as tf
from tuner.evaluation.latency import measure_models
from tuner.model.detection_model import DetectionModel, ModelFormat
from tuner.model.runner import ModelRunner

def made(network):
    with tf.Graph().as_default() as graph:
        image = tf.compat.v1.placeholder(tf.float32, [None, 8, 8, 3], name="image")
        tf.identity(network(image), name="out")
    return DetectionModel(graph.as_graph_def(), ("image:0",), ("out:0",), Path("m.pb"), ModelFormat.FROZEN_GRAPH)

def network(image):
    weights = np.linspace(-1, 1, 3 * 3 * 3 * 8, dtype=np.float32).reshape(3, 3, 3, 8)
    return tf.sqrt(tf.exp(tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(image, weights, 1, "SAME"), weights[0, 0, 0]))) + 1)

large, small = made(network), made(lambda image: image + 1)
images = np.random.default_rng(0).random((2, 8, 8, 3), np.float32)
print(*(figures.xla_clusters for figures in measure_models([large, small], images, warmup=2, iterations=3, xla=True)))
with ModelRunner(large, xla=True) as compiled, ModelRunner(large) as plain:
    found = [runner.run(images)["out:0"] for _ in range(3) for runner in (compiled, plain)]
    print(compiled.xla_clusters(images), np.allclose(found[-1], found[-2], rtol=1e-4))
    nodes = plain.trace(images).step_stats.dev_stats[0].node_stats
    print(any("FusedConv2D(" in node.timeline_label for node in nodes))
"""


def test_xla_beside_the_plain_run() -> None:
    """In a process of its own: TensorFlow reads once whether XLA may compile for the CPU."""
    environment = {name: value for name, value in os.environ.items() if name != "TF_XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", XLA], capture_output=True, text=True, check=False, cwd=ROOT, env=environment
    )
    # Two nodes are too few for XLA, and told as such; the plain session's convolution is fused as ever.
    assert done.stdout == "0 1 0 0\n1 True\nTrue\n", done.stderr


def test_more_instances_than_cores(model: DetectionModel) -> None:
    with pytest.raises(EvaluationError, match="instances: got 4096; expected 1 to"):
        measure_models([model], np.zeros((1, 8, 8, 3), np.uint8), instances=4096)
    with pytest.raises(EvaluationError, match="instances: got 0"):
        measure_models([model], np.zeros((1, 8, 8, 3), np.uint8), instances=0)


def test_models_in_pairs_are_told_in_units_of_the_smallest() -> None:
    def model(nodes: int) -> DetectionModel:
        with tf.Graph().as_default() as graph:
            tf1.placeholder(tf.float32, name="x")
            for index in range(nodes):
                tf.identity(0.0, name=f"n{index}")
        return DetectionModel(graph.as_graph_def(), ("x:0",), ("x:0",), Path("x.pb"), ModelFormat.FROZEN_GRAPH)

    large, small, middle = models = [model(9), model(1), model(5)]
    # The machine is half as fast during the second pair.
    taken = {large.sha256: [30.0], middle.sha256: [40.0], small.sha256: [10.0, 20.0]}
    measured: list[list[DetectionModel]] = []

    def measure(pair: Sequence[DetectionModel]) -> list[latency.LatencyFigures]:
        measured.append(list(pair))
        times = [taken[one.sha256].pop(0) for one in pair]
        return [latency.LatencyFigures(ms, ms + 1, ms + 2, ms - 1, ms, 1000 / ms) for ms in times]

    found = latency.measure_in_pairs(models, measure)
    assert measured == [[large, small], [middle, small]]
    assert [figures.median_ms for figures in found] == pytest.approx([45, 15, 30])
    assert [figures.p90_ms for figures in found] == pytest.approx([46.5, 16.5, 30.75])
    assert found[2].images_per_s == pytest.approx(1000 / 30)
