"""The examples that tune, as a user runs them: the embedded detector and a few of its images."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tuner.data.dataset import open_dataset
from tuner.model.loading import load_model
from tuner.quantization.lowering.kernels import KERNEL_OPS

ROOT = Path(__file__).parents[2]
SHAPES = ROOT / "datasets/shapes"


def run(script: str, folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / script), *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_own_eval_function(tmp_path: Path) -> None:
    flags = ("--input_model", SHAPES / "detector.pb", "--dataset_location", SHAPES / "evaluation.record")
    done = run("own_eval_function.py", tmp_path, *flags, "--output_model=int8.pb", "--images=12")
    assert done.returncode in (0, 3), done.stderr
    assert re.match(r"trial 0: int8: loss -?\d+\.\d\d%\n", done.stdout)
    assert re.search(r"^(accepted|best_effort): ", done.stdout, re.M)
    assert load_model(tmp_path / "int8.pb").outputs[0] == "detection_boxes:0"


def test_keras_model(tmp_path: Path) -> None:
    flags = ("--dataset_location", SHAPES / "calibration.record", "--output_model=int8.pb", "--images=12")
    done = run("keras_model.py", tmp_path, *flags)
    assert done.returncode in (0, 3), done.stderr
    assert re.match(r"(accepted|best_effort): agrees on \d+% of 12 images\n", done.stdout)
    assert (tmp_path / "int8.keras").is_file()
    load_model(tmp_path / "int8.pb")


def test_no_labels(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    write_images(images, 12)
    flags = ("--input_model", SHAPES / "detector.pb", "--images=images", "--output_model=int8.pb", "--limit=0.5")
    done = run("no_labels.py", tmp_path, *flags)
    assert done.returncode == 0, done.stderr
    assert re.match(r"accepted: agreement 0\.\d{4} on 12 images\n|accepted: agreement 1\.0000 ", done.stdout)
    kinds = {node.op for node in load_model(tmp_path / "int8.pb").graph_def.node}
    assert kinds & set(KERNEL_OPS) or "Cast" in kinds


def write_images(folder: Path, count: int) -> None:
    import tensorflow as tf  # noqa: PLC0415

    for sample in open_dataset(SHAPES / "evaluation.record", limit=count):
        (folder / f"{Path(sample.name).stem}.png").write_bytes(tf.io.encode_png(sample.image).numpy())


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ("own_eval_function.py", ["--input_model=a.pb", "--dataset_location=none.record", "--output_model=q.pb"]),
        ("no_labels.py", ["--input_model=a.pb", "--images=none", "--output_model=q.pb"]),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, script: str, flags: list[str]) -> None:
    done = run(script, tmp_path, *flags)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ")
