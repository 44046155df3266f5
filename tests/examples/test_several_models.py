"""The example as a user runs it: real detectors where they are, else the embedded one."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import tensorflow as tf

ROOT = Path(__file__).parents[2]
SHAPES = ROOT / "datasets/shapes"

tf1 = tf.compat.v1


def write_heatmaps(path: Path, size: int | None) -> Path:
    """A network from crops to two heatmaps at a quarter of their size: how bright, and how dark it is."""
    with tf.Graph().as_default() as graph:
        crops = tf1.placeholder(tf.uint8, [None, size, size, 3], name="crops")
        weights = np.stack([np.full((4, 4, 3), 1 / 48 / 255), np.full((4, 4, 3), -1 / 48 / 255)], 3).astype(np.float32)
        tf.nn.conv2d(tf.cast(crops, tf.float32), weights, 4, "SAME", name="heatmaps")
    path.write_bytes(graph.as_graph_def().SerializeToString())
    return path


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    script = ROOT / "examples/several_models.py"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, str(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )


def check(out: str, images: int) -> None:
    assert len(re.findall(r"^\S+: \d of \d+ boxes$", out, re.M)) == images
    boxes = re.findall(r"^  category \d+ at 0\.\d+: (\d+),(\d+) to (\d+),(\d+)$", out, re.M)
    assert len(boxes) >= images
    assert len(re.findall(r"^    second: \d+ boxes, categories \[.*\]$", out, re.M)) == len(boxes)
    # Each box has a peak of both heatmaps, and both peaks lie inside it.
    peaks = re.findall(r"^    heatmap ([01]): -?[01]\.\d\d at (\d+),(\d+)$", out, re.M)
    assert [int(channel) for channel, *_ in peaks] == [0, 1] * len(boxes)
    for (_, y, x), box in zip(peaks, [box for box in boxes for _ in range(2)], strict=True):
        top, left, bottom, right = map(int, box)
        assert top <= int(y) <= bottom and left <= int(x) <= right


def test_the_embedded_detector_twice(tmp_path: Path) -> None:
    heatmaps = write_heatmaps(tmp_path / "heatmaps.pb", None)
    detector = SHAPES / "detector.pb"
    flags = ("--detector", detector, "--second", detector, "--heatmaps", heatmaps)
    done = run(*flags, "--dataset_location", SHAPES / "evaluation.record", "--images", 2)
    assert done.returncode == 0, done.stderr
    check(done.stdout, 2)


def test_real_detectors(assets: Path, tmp_path: Path) -> None:
    heatmaps = write_heatmaps(tmp_path / "heatmaps.pb", 64)
    detectors = assets / "detectors"
    flags = ("--detector", detectors / "nanodet_plus_m_320.pb", "--second", detectors / "picodet_s_320.pb")
    done = run(*flags, "--heatmaps", heatmaps, "--dataset_location", assets / "coco_val/instances.json", "--images", 2)
    assert done.returncode == 0, done.stderr
    check(done.stdout, 2)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return importlib.import_module("several_models")


def test_a_mistake_is_one_line(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    absent, detector = tmp_path / "absent.pb", SHAPES / "detector.pb"
    models = {"detector": detector, "second": absent, "heatmaps": detector}
    flags = {**models, "dataset_location": SHAPES / "evaluation.record"}
    monkeypatch.setattr(sys, "argv", ["several_models.py", *(f"--{flag}={path}" for flag, path in flags.items())])
    assert script.main() == 2
    assert capsys.readouterr() == ("", f"error: {absent}: no such file or folder\n")


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0.1, 0.2, 0.5, 0.61), (10, 40, 50, 122)),
        ((-1, 0, 2, 1), (0, 0, 100, 200)),
        ((1, 1, 1, 1), (99, 199, 100, 200)),
    ],
)
def test_pixels_of_a_box(script: ModuleType, box: tuple[float, ...], expected: tuple[int, ...]) -> None:
    assert script.pixels(np.array(box), (100, 200)) == expected
