import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tuner.data.dataset import open_dataset


@pytest.fixture(scope="module")
def make_records() -> ModuleType:
    path = Path(__file__).parents[2] / "datasets/coco/make_records.py"
    spec = importlib.util.spec_from_file_location("make_records", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("shards, location", [(1, "out/val.record"), (2, "out")])
def test_records_hold_what_the_json_says(
    make_records: ModuleType, coco_file: Path, tmp_path: Path, shards: int, location: str
) -> None:
    arguments = ["--images", str(tmp_path / "images"), "--instances", str(coco_file)]
    assert make_records.main([*arguments, "--output", str(tmp_path / "out/val.record"), "--shards", str(shards)]) == 0
    written = {sample.image_id: sample for sample in open_dataset(tmp_path / location)}
    expected = {sample.image_id: sample for sample in open_dataset(coco_file)}
    assert written.keys() == expected.keys()
    for image_id, sample in expected.items():
        found = written[image_id]
        assert found.name == sample.name
        np.testing.assert_array_equal(found.image, sample.image)
        np.testing.assert_allclose(found.ground_truth.boxes, sample.ground_truth.boxes, atol=1e-7)
        for name in ("category_ids", "is_crowd", "areas_px"):
            np.testing.assert_array_equal(getattr(found.ground_truth, name), getattr(sample.ground_truth, name))


def test_bad_input_is_one_line_and_writes_nothing(
    make_records: ModuleType, coco_file: Path, coco_table: dict[str, Any], tmp_path: Path, capsys: Any
) -> None:
    coco_table["images"][2]["height"] = 7
    coco_file.write_text(json.dumps(coco_table))
    output = tmp_path / "out/val.record"
    arguments = ["--images", str(tmp_path / "images"), "--instances", str(coco_file), "--output", str(output)]
    assert make_records.main(arguments) == 2
    message = capsys.readouterr().err.splitlines()
    assert len(message) == 1 and "images[2] (20.jpg): the image is 24 px high" in message[0]
    assert not list(output.parent.iterdir())


def test_real_records_evaluate_as_the_json(make_records: ModuleType, assets: Path, tmp_path: Path) -> None:
    source = assets / "od_api/ssd_mobilenet_v1_depth05/fit"
    arguments = ["--images", str(source / "images"), "--instances", str(source / "instances.json"), "--limit", "20"]
    assert make_records.main([*arguments, "--output", str(tmp_path / "fit.record")]) == 0
    written, expected = open_dataset(tmp_path / "fit.record"), open_dataset(source, limit=20)
    for found, sample in zip(written, expected, strict=True):
        assert found.image_id == sample.image_id
        np.testing.assert_allclose(found.ground_truth.boxes, sample.ground_truth.boxes, atol=1e-7)
