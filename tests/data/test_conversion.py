import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tuner.data.conversion import Conversion, convert_coco
from tuner.data.dataset import DetectionDataset, open_dataset
from tuner.errors import DatasetError
from tuner.masks import encode_masks
from tuner.progress import Silent

Convert = Callable[..., Conversion]
POLYGON = [[2.0, 2.0, 20.0, 2.0, 20.0, 15.5, 3.0, 12.0]]
RUNS = {"size": [24, 32], "counts": [100, 50, 20, 30, 568]}


class StoppingProgress(Silent):
    """Ctrl-C after so many images."""

    def __init__(self, images: int) -> None:
        self.images = images

    def track(self, items: Any, total: int, title: str) -> Any:
        for item in items:
            if not self.images:
                raise KeyboardInterrupt
            self.images -= 1
            yield item


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def convert(coco_file: Path, out: Path) -> Convert:
    """Converts `coco_file`."""

    def run(progress: Any = None, **settings: Any) -> Conversion:
        return convert_coco(coco_file.parent / "images", coco_file, out, progress or Silent(), **settings)

    return run


@pytest.fixture
def masked(coco_file: Path, coco_table: dict[str, Any]) -> dict[str, Any]:
    """`coco_table`, and its file, with a polygon, run lengths, and run lengths as COCO packs them."""
    (code,) = encode_masks([np.eye(24, 32)], 24, 32).codes
    packed = {"size": [24, 32], "counts": code.decode()}
    for annotation, segmentation in zip(coco_table["annotations"], (POLYGON, RUNS, packed), strict=True):
        annotation["segmentation"] = segmentation
    coco_file.write_text(json.dumps(coco_table))
    return coco_table


def assert_equal(written: DetectionDataset, expected: DetectionDataset) -> None:
    """The same in all that an evaluation sees, but for the boxes' float32."""
    assert len(written) == len(expected)
    for found, entry in zip(written.entries, expected.entries, strict=True):
        assert (found.image_id, found.name) == (entry.image_id, entry.name)
        assert (found.height, found.width, found.read()) == (entry.height, entry.width, entry.read())
        np.testing.assert_allclose(found.ground_truth.boxes, entry.ground_truth.boxes, atol=1e-7)
        for name in ("category_ids", "is_crowd"):
            np.testing.assert_array_equal(getattr(found.ground_truth, name), getattr(entry.ground_truth, name))
        np.testing.assert_array_equal(found.ground_truth.areas_px, np.float32(entry.ground_truth.areas_px))
        assert found.ground_truth.masks == entry.ground_truth.masks


@pytest.mark.parametrize("shards, location", [(None, "instances.record"), (1, "instances.record"), (3, "")])
def test_records_hold_what_the_json_says(
    convert: Convert, coco_file: Path, out: Path, shards: int | None, location: str
) -> None:
    made = convert(shards=shards)
    assert (len(made.files), made.kept, made.images, made.objects) == (shards or 1, 0, 3, 3)
    assert not made.has_masks
    assert_equal(open_dataset(out / location), open_dataset(coco_file))


def test_masks_of_every_form_are_written(convert: Convert, masked: Any, coco_file: Path, out: Path) -> None:
    assert convert(shards=2).has_masks
    assert_equal(open_dataset(out, masks=True), open_dataset(coco_file, masks=True))


def test_masks_can_be_left_out(convert: Convert, masked: Any, coco_file: Path, out: Path) -> None:
    assert convert().has_masks
    assert not convert(masks=False).has_masks
    with pytest.raises(DatasetError, match="0 masks for"):
        open_dataset(out, masks=True)
    assert_equal(open_dataset(out), open_dataset(coco_file))


def test_some_masks_are_a_question(convert: Convert, masked: Any, coco_file: Path, out: Path) -> None:
    masked["annotations"][1]["segmentation"] = []
    coco_file.write_text(json.dumps(masked))
    with pytest.raises(DatasetError, match="1 of 3 annotations have no segmentation; give --no-masks"):
        convert()
    assert not out.exists()
    assert convert(masks=False).images == 3
    made = convert(skip_bad_records=True)
    assert (made.images, len(made.skipped), made.has_masks) == (2, 1, True)
    assert "segmentation: got []" in made.skipped[0]


@pytest.mark.parametrize("images", range(3))
def test_a_stopped_run_keeps_its_finished_files(
    convert: Convert, masked: Any, coco_file: Path, out: Path, images: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        convert(StoppingProgress(images), shards=3)
    assert len(list(out.iterdir())) == 1 + images
    assert convert(shards=3).kept == images
    assert_equal(open_dataset(out, masks=True), open_dataset(coco_file, masks=True))


def test_a_set_in_the_making_does_not_pass_for_a_whole_one(
    convert: Convert, coco_table: dict[str, Any], coco_file: Path, out: Path
) -> None:
    convert(shards=3)
    coco_table["categories"][0]["name"] = "lorry"
    coco_file.write_text(json.dumps(coco_table))
    with pytest.raises(KeyboardInterrupt):
        convert(StoppingProgress(1), shards=3)
    with pytest.raises(DatasetError, match="shard 00001 is missing"):
        open_dataset(out)


def change_an_image(folder: Path, table: dict[str, Any]) -> None:
    (folder / "images/10.jpg").write_bytes((folder / "images/20.jpg").read_bytes())


def change_a_box(folder: Path, table: dict[str, Any]) -> None:
    table["annotations"][0]["bbox"][0] = 15


def change_a_mask(folder: Path, table: dict[str, Any]) -> None:
    table["annotations"][0]["segmentation"] = RUNS


def change_a_record(folder: Path, table: dict[str, Any]) -> None:
    path = folder / "out/instances.record-00001-of-00003"
    path.write_bytes(path.read_bytes()[:-1] + b"?")


def lose_a_record(folder: Path, table: dict[str, Any]) -> None:
    (folder / "out/instances.record-00001-of-00003").unlink()


@pytest.mark.parametrize("change", [change_an_image, change_a_box, change_a_mask, change_a_record, lose_a_record])
def test_what_is_out_of_date_is_made_anew(
    convert: Convert, masked: dict[str, Any], tmp_path: Path, coco_file: Path, change: Any
) -> None:
    assert convert(shards=3).kept == 0
    assert convert(shards=3).kept == 3
    change(tmp_path, masked)
    coco_file.write_text(json.dumps(masked))
    assert convert(shards=3).kept == 2
    assert_equal(open_dataset(tmp_path / "out", masks=True), open_dataset(coco_file, masks=True))
    assert convert(shards=3, fresh=True).kept == 0


def test_files_of_another_number_of_shards_go(convert: Convert, coco_file: Path, out: Path) -> None:
    convert(shards=3)
    with pytest.raises(KeyboardInterrupt):
        convert(StoppingProgress(1), shards=2)
    convert()
    assert [path.name for path in out.iterdir() if not path.name.startswith(".")] == ["instances.record"]
    assert_equal(open_dataset(out), open_dataset(coco_file))


def test_a_file_that_it_did_not_write_is_left_alone(convert: Convert, coco_file: Path, out: Path) -> None:
    convert(shards=3)
    (out / "instances.record").write_text("mine")
    with pytest.raises(DatasetError, match=r"instances.record: is there, but was not written by .*give --fresh to"):
        convert()
    assert (out / "instances.record").read_text() == "mine"
    assert convert(shards=3).kept == 3
    assert convert(fresh=True).kept == 0
    assert_equal(open_dataset(out), open_dataset(coco_file))


@pytest.mark.parametrize("content", ["", "[]", '{"schema": 1, "shards": [1]}', '{"schema": 1, "shards": {"../x": {}}}'])
def test_a_manifest_that_makes_no_sense_is_ignored(convert: Convert, tmp_path: Path, out: Path, content: str) -> None:
    convert()
    (tmp_path / "x").touch()
    (out / ".instances.conversion.json").write_text(content)
    with pytest.raises(DatasetError, match="was not written by this command"):
        convert()
    assert convert(fresh=True).kept == 0
    assert (tmp_path / "x").exists()


@pytest.mark.parametrize("skip", [False, True])
def test_images_that_are_no_jpeg_are_told(
    convert: Convert, coco_table: dict[str, Any], coco_file: Path, out: Path, skip: bool
) -> None:
    (coco_file.parent / "images/10.jpg").write_bytes(tf.io.encode_png(np.zeros((24, 32, 3), np.uint8)).numpy())
    if skip:
        made = convert(skip_bad_records=True)
        assert (made.images, len(made.skipped)) == (2, 1)
        assert [entry.image_id for entry in open_dataset(out).entries] == [30, 20]
    else:
        with pytest.raises(DatasetError, match=r"images\[1\] \(10.jpg\): is no JPEG file"):
            convert()
        assert not out.exists()


def test_an_image_of_another_size_is_told_and_leaves_no_part(
    convert: Convert, coco_table: dict[str, Any], coco_file: Path, out: Path
) -> None:
    coco_table["images"][2]["height"] = 23
    coco_file.write_text(json.dumps(coco_table))
    with pytest.raises(DatasetError, match=r"images\[2\] \(20.jpg\): the image is 24 px high"):
        convert(shards=2)
    assert sorted(path.name for path in out.iterdir()) == [
        ".instances.conversion.json",
        "instances.record-00000-of-00002",
    ]
    assert convert(shards=2, skip_bad_records=True).images == 2


def test_too_many_shards_are_told(convert: Convert) -> None:
    with pytest.raises(DatasetError, match="3 images cannot fill 4 record files"):
        convert(shards=4)


def test_a_full_disk_is_one_line(convert: Convert, masked: Any, coco_file: Path, out: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(DatasetError, match=r"instances.record: cannot be written"):
            convert()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in out.iterdir()] == [".instances.conversion.json"]
    assert convert().images == 3


def test_the_number_of_files_follows_the_images(convert: Convert, coco_file: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("tuner.data.conversion.IMAGES_PER_SHARD", 2)
    assert [path.name for path in convert().files] == [f"instances.record-{i:05d}-of-00002" for i in range(2)]


def test_real_records_evaluate_as_the_json(assets: Path, out: Path) -> None:
    images, instances = assets / "coco_val/images", assets / "coco_val/instances_with_masks.json"
    made = convert_coco(images, instances, out, Silent(), shards=3, limit=80)
    expected = open_dataset(instances, masks=True, limit=80)
    assert (made.images, made.has_masks) == (80, True)
    # Crowds are run lengths in the JSON, all others polygons.
    assert any(entry.ground_truth.is_crowd.any() for entry in expected.entries)
    assert_equal(open_dataset(out, masks=True), expected)
