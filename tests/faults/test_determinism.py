"""Equal runs in processes of their own: the same trials, plan and graph, with one thread and with two.

No time is part of what decides here: size is the objective, and operators leave int8 in the order of their damage.
"""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import yaml
from numpy.typing import NDArray

from tests.test_pipeline import SIDE, make_detector
from tuner.data.images import decode_image
from tuner.detections import Detections
from tuner.model.loading import load_model
from tuner.model.runner import ModelRunner
from tuner.run_record import read_run
from tuner.trial import CompletedTrial, Measurement, Trial

SHAPES = Path(__file__).parents[2] / "datasets/shapes"
IMAGES = 8
# How far the figures of one graph may lie apart under another number of threads: mAP, scores and sides of boxes, 0..1.
THREADS_BOUND = 1e-6

# The cores come before TensorFlow, which counts them once for all threads of the process.
ON_CORES = """
import os, runpy, sys
os.sched_setaffinity(0, {int(core) for core in sys.argv.pop(1).split(",")})
runpy.run_module("tuner", run_name="__main__")
"""


@dataclass(frozen=True)
class Run:
    """What a finished run left behind."""

    baseline: Measurement
    trials: Sequence[Trial]
    plan: bytes
    graph: Path

    @property
    def completed(self) -> list[CompletedTrial]:
        """The trials, each of which has to be one."""
        assert all(isinstance(trial, CompletedTrial) for trial in self.trials)
        return [trial for trial in self.trials if isinstance(trial, CompletedTrial)]

    @property
    def asked_and_made(self) -> list[tuple[Any, ...]]:
        return [(trial.number, trial.proposal, trial.graph_sha256) for trial in self.completed]


@dataclass(frozen=True)
class Given:
    """A float graph, the images that it is tuned on, each [H, W, 3] uint8, and the settings."""

    model: Path
    images: Sequence[NDArray[np.uint8]]
    settings: Path


@pytest.fixture(scope="module", params=["tiny", pytest.param("shapes", marks=pytest.mark.slow)])
def given(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Given:
    """A detector of six convolutions on noise, or the embedded default; with a limit that takes several trials."""
    folder = tmp_path_factory.mktemp("given")
    (folder / "images").mkdir()
    if request.param == "tiny":
        model, images = folder / "float.pb", blurred_noise()
        model.write_bytes(make_detector().SerializeToString())
    else:
        model, images = SHAPES / "detector.pb", images_of_shapes()
    for number, image in enumerate(images):
        (folder / f"images/{number}.png").write_bytes(tf.io.encode_png(image).numpy())
    loader = {"dataset": {"COCORaw": {"root": str(folder / "images")}}}
    table = {
        "model": {"name": request.param, "framework": "tensorflow"},
        "quantization": {"int8_only": True, "calibration": {"sampling_size": 4, "dataloader": loader}},
        "evaluation": {
            "accuracy": {"metric": {"COCOmAP": {}}, "dataloader": loader, "labels": "model"},
            "performance": {"warmup": 1, "iteration": 2},
        },
        "tuning": {
            "objective": "modelsize",
            "accuracy_criterion": {"relative": 1e-6},
            "exit_policy": {"max_trials": 3},
        },
    }
    (folder / "settings.yaml").write_text(yaml.safe_dump(table))
    return Given(model, images, folder / "settings.yaml")


def blurred_noise() -> list[NDArray[np.uint8]]:
    random = np.random.default_rng(12)
    patches = random.integers(0, 256, (IMAGES, 8, 8, 3)).astype(np.float32)
    return list(tf.cast(tf.image.resize(patches, (SIDE, SIDE)), tf.uint8).numpy())


def images_of_shapes() -> list[NDArray[np.uint8]]:
    features = {"image/encoded": tf.io.FixedLenFeature([], tf.string)}
    records = tf.data.TFRecordDataset(str(SHAPES / "evaluation.record")).take(IMAGES)
    found = [tf.io.parse_single_example(record, features)["image/encoded"] for record in records]
    return [decode_image(encoded.numpy(), "an image") for encoded in found]


def start(given: Given, folder: Path, cores: Sequence[int]) -> subprocess.Popen[str]:
    """Tune in a process that has `cores`, and nothing of an earlier run."""
    options = {
        "config": given.settings,
        "input_model": given.model,
        "output_model": folder / "int8.pb",
        "workspace": folder / "workspace",
    }
    command = [sys.executable, "-c", ON_CORES, ",".join(map(str, cores)), "tune", "--quiet"]
    command += [f"--{name}={value}" for name, value in options.items()]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen[str], folder: Path) -> Run:
    with process:
        _, told = process.communicate()
    assert process.returncode in (0, 3), told
    study = read_run(folder / "workspace").study
    assert study is not None and study.baseline is not None
    plan = (folder / "workspace/plan.yaml").read_bytes()
    return Run(study.baseline, study.trials, plan, folder / "int8.pb")


@pytest.fixture(scope="module")
def runs(given: Given, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Run]:
    """Two with two cores, and one with a single core; at once, since no time matters."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("this machine has one core")
    of_run = {"first": cores[:2], "again": cores[:2], "one core": cores[:1]}
    folders = {name: tmp_path_factory.mktemp("run") for name in of_run}
    processes = {name: start(given, folders[name], its_cores) for name, its_cores in of_run.items()}
    return {name: finished(process, folders[name]) for name, process in processes.items()}


@pytest.mark.parametrize("other", ["again", "one core"])
def test_equal_runs_try_the_same_plans_and_hand_over_the_same_bytes(runs: Mapping[str, Run], other: str) -> None:
    first, second = runs["first"], runs[other]
    assert len(first.completed) > 2
    assert second.asked_and_made == first.asked_and_made
    assert second.plan == first.plan
    assert second.graph.read_bytes() == first.graph.read_bytes()


def test_accuracies_are_equal_to_the_last_bit_with_the_same_threads(runs: Mapping[str, Run]) -> None:
    first, second = runs["first"], runs["again"]
    assert second.baseline.metrics == first.baseline.metrics
    assert [trial.measurement.metrics for trial in second.completed] == [
        trial.measurement.metrics for trial in first.completed
    ]


def test_accuracies_with_other_threads_are_within_the_bound(runs: Mapping[str, Run]) -> None:
    first, second = runs["first"], runs["one core"]
    assert second.baseline.metrics == pytest.approx(first.baseline.metrics, abs=THREADS_BOUND)
    for other, trial in zip(second.completed, first.completed, strict=True):
        assert other.measurement.metrics == pytest.approx(trial.measurement.metrics, abs=THREADS_BOUND)


@pytest.mark.parametrize("name", ["float", "int8"])
def test_detections_with_other_threads_are_within_the_bound(given: Given, runs: Mapping[str, Run], name: str) -> None:
    model = load_model(given.model if name == "float" else runs["first"].graph)
    with ModelRunner(model, 1, 1) as one, ModelRunner(model, 2, 1) as two:
        for image in given.images:
            assert apart(one.detect(image), two.detect(image)) <= THREADS_BOUND


def apart(first: Detections, second: Detections) -> float:
    """The largest difference of a score or a side of a box; the same categories in the same order."""
    assert first.category_ids.tolist() == second.category_ids.tolist()
    differences = [np.abs(first.scores - second.scores), np.abs(first.boxes - second.boxes)]
    return max(float(values.max(initial=0)) for values in differences)
