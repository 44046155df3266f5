"""`compare` on the embedded detector."""

import json
from pathlib import Path

import pytest

from tuner.cli import main

SHAPES = Path(__file__).parents[2] / "datasets/shapes"
DETECTOR = str(SHAPES / "detector.pb")
FLAGS = ("--topology=shapes", "--iters=1", "--quiet")


def run_workspace(folder: Path, records: str = "evaluation") -> str:
    """What a run that wrote the float detector itself would leave behind."""
    result = {"best": {"output_model": DETECTOR}, "model": {"path": DETECTOR}}
    (folder / "result.json").write_text(json.dumps(result))
    dataset = {"COCORecord": {"root": str(SHAPES / f"{records}.record")}}
    settings = {"model": {"name": "m"}, "evaluation": {"accuracy": {"dataloader": {"dataset": dataset}}}}
    (folder / "plan.yaml").write_text(json.dumps(settings))
    return str(folder)


def test_a_model_and_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", DETECTOR, DETECTOR, "--limit=12", "--json", *FLAGS]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["images"], found["iou_type"], found["labels"]) == (12, "bbox", "annotations")
    assert found["map"] == {"difference": 0, "interval": [0, 0]}
    a, b = found["models"]["a"], found["models"]["b"]
    assert (a["path"], a["figures"], a["size_bytes"]) == (DETECTOR, b["figures"], b["size_bytes"])
    assert a["figures"]["mAP"] > 0.2 and a["latency"]["median_ms"] > 0
    ap = [category["ap_a"] for category in found["categories"]]
    names = {category["category_id"]: category["name"] for category in found["categories"]}
    assert (names[1], names[14]) == ("disc", "chevron")
    assert sum(ap) / len(ap) == pytest.approx(a["figures"]["mAP"])
    assert found["disagreement"] == {"score": 0.3, "images_differing": 0, "images": []}


def test_a_workspace_brings_its_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", DETECTOR, run_workspace(tmp_path), "--limit=3", "--iters=1", "-q"]) == 0
    out = capsys.readouterr().out
    assert "\n 14 chevron " in out
    assert out.startswith(f"A  {DETECTOR}\nB  {DETECTOR}\n")
    assert "B less A: +0.0000; on other images like these +0.0000 to +0.0000" in " ".join(out.split())
    assert "0 of 3 images have some that only one of the two finds" in " ".join(out.split())


def test_workspaces_of_other_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir(), other.mkdir()
    workspaces = [run_workspace(one), run_workspace(other, "calibration")]
    assert main(["compare", *workspaces, "--limit=3", "-q"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: the two are not of the same images (") and error.count("\n") == 1
    assert "--dataset_location" in error


def test_without_images(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", DETECTOR, DETECTOR, "-q"]) == 2
    assert "evaluation.accuracy: no images" in capsys.readouterr().err
