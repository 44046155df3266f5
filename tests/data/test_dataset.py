import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import tuner.data.images
from tuner.config.transforms import Transforms
from tuner.data.dataset import DetectionDataset, open_dataset
from tuner.data.images import decode_image
from tuner.data.records import AnnotatedJpeg, encode_example, write_records
from tuner.detections import View
from tuner.errors import DatasetError

Annotated = Callable[..., AnnotatedJpeg]
WriteCoco = Callable[..., Path]
Table = dict[str, Any]

RECORD_IDS = [9, 7, 5, 3, 1]


def ids(dataset: DetectionDataset) -> list[int]:
    return [sample.image_id for sample in dataset]


def write_raw(path: Path, contents: list[bytes]) -> Path:
    with tf.io.TFRecordWriter(str(path)) as writer:
        for content in contents:
            writer.write(content)
    return path


# Records


def test_records_come_in_their_order_every_time(record_file: Path, annotated: Annotated) -> None:
    dataset = open_dataset(record_file, cache_mb=0)
    assert ids(dataset) == RECORD_IDS == ids(dataset)
    assert (len(dataset), dataset.category_ids, dataset.skipped) == (5, {3, 17}, ())
    sample = list(dataset)[1]
    assert (sample.image_id, sample.name) == (7, "7.jpg")
    np.testing.assert_array_equal(sample.image, decode_image(annotated(7).encoded, ""))
    np.testing.assert_array_equal(sample.ground_truth.boxes, annotated(7).ground_truth.boxes)


@pytest.mark.parametrize("kind", ["records", "images"])
def test_a_set_is_read_where_eager_mode_is_off(
    tmp_path: Path, record_file: Path, annotated: Annotated, kind: str
) -> None:
    location, halved = record_file, Transforms.model_validate({"Resize": {"size": [12, 16]}}).steps
    if kind == "images":
        location = tmp_path / "images"
        location.mkdir()
        (location / "7.jpg").write_bytes(annotated(7).encoded)
    eagerly = list(open_dataset(location, annotated=kind == "records", steps=halved))
    with tf.compat.v1.Session(graph=tf.Graph()):
        assert not tf.executing_eagerly()
        found = []
        for sample in open_dataset(location, annotated=kind == "records", steps=halved):
            found.append(sample)
            # What reads must leave the reader's own mode alone.
            assert not tf.executing_eagerly()
    assert len(found) == len(eagerly) > 0
    for one, other in zip(found, eagerly, strict=True):
        np.testing.assert_array_equal(one.image, other.image)


@pytest.mark.parametrize("location", ["sharded", "sharded/set.record-*", "sharded/*-of-00003"])
def test_shards_are_read_in_order(tmp_path: Path, annotated: Annotated, location: str) -> None:
    write_records(tmp_path / "sharded/set.record", [annotated(i) for i in RECORD_IDS], shards=3)
    assert ids(open_dataset(tmp_path / location)) == [9, 3, 7, 1, 5]


def test_shards_with_a_suffix_are_found(tmp_path: Path, annotated: Annotated) -> None:
    for index in range(2):
        write_records(tmp_path / f"coco-{index:05d}-of-00002.tfrecord", [annotated(index + 1)])
    (tmp_path / "notes.txt").write_text("no record")
    assert ids(open_dataset(tmp_path)) == [1, 2]


def test_a_missing_shard_is_named(tmp_path: Path, annotated: Annotated) -> None:
    write_records(tmp_path / "set.record", [annotated(i) for i in RECORD_IDS], shards=3)
    (tmp_path / "set.record-00001-of-00003").unlink()
    with pytest.raises(DatasetError, match=r"set.record-\?\?\?\?\?-of-00003: shard 00001 is missing; found 2"):
        open_dataset(tmp_path)


def test_several_sets_in_a_folder_are_listed(tmp_path: Path, annotated: Annotated) -> None:
    for name in ("calibration.record", "evaluation.record"):
        write_records(tmp_path / name, [annotated(1)])
    with pytest.raises(DatasetError, match=r"several record sets; name one of calibration.record, evaluation.record"):
        open_dataset(tmp_path)


def test_source_ids_that_are_no_numbers_count_from_one(tmp_path: Path, annotated: Annotated) -> None:
    examples = [tf.train.Example.FromString(encode_example(annotated(i))) for i in (100, 200)]
    for name, example in zip((b"kitchen", b"garden"), examples, strict=True):
        example.features.feature["image/source_id"].bytes_list.value[:] = [name]
    path = write_raw(tmp_path / "named.record", [example.SerializeToString() for example in examples])
    assert ids(open_dataset(path)) == [1, 2]


def test_limit_and_first_give_the_beginning(record_file: Path) -> None:
    dataset = open_dataset(record_file)
    assert ids(open_dataset(record_file, limit=2)) == ids(dataset.first(2)) == [9, 7]
    assert len(dataset.first(100)) == len(open_dataset(record_file, limit=100)) == 5
    assert dataset.first(2).sha256 == open_dataset(record_file, limit=2).sha256 != dataset.sha256
    with pytest.raises(DatasetError, match="limit: got 0; expected at least 1"):
        open_dataset(record_file, limit=0)


@pytest.mark.parametrize("cache_mb, decodes", [(0, 10), (1, 5)])
def test_samples_come_in_the_order_asked_for_and_are_decoded_once(
    record_file: Path, monkeypatch: pytest.MonkeyPatch, cache_mb: int, decodes: int
) -> None:
    decoded: list[str] = []

    def counting(encoded: bytes, where: str) -> Any:
        decoded.append(where)
        return decode_image(encoded, where)

    monkeypatch.setattr(tuner.data.images, "decode_image", counting)
    dataset = open_dataset(record_file, cache_mb=cache_mb)
    first = list(dataset.samples([3, 0, 4, 1, 2]))
    assert [sample.image_id for sample in first] == [3, 9, 1, 7, 5]
    second = list(dataset.samples([4, 1, 2, 0, 3]))
    assert [sample.image_id for sample in second] == [1, 7, 5, 9, 3]
    np.testing.assert_array_equal(first[0].image, second[-1].image)
    assert len(decoded) == decodes
    assert [sample.image_id for sample in dataset.samples([2])] == [5]


def test_the_hash_is_that_of_the_content(tmp_path: Path, record_file: Path, annotated: Annotated) -> None:
    copy = Path(shutil.copy(record_file, tmp_path / "copy.record"))
    write_records(tmp_path / "shards/x", [annotated(i) for i in (9, 5, 1, 7, 3)], shards=2)
    reference = open_dataset(record_file).sha256
    assert open_dataset(copy).sha256 == reference
    write_records(copy, [annotated(i) for i in reversed(RECORD_IDS)])
    assert open_dataset(copy).sha256 != reference
    crowd = annotated(1).ground_truth
    crowd.is_crowd[0] = True
    write_records(copy, [*(annotated(i) for i in RECORD_IDS[:-1]), annotated(1, ground_truth=crowd)])
    assert open_dataset(copy).sha256 != reference


# Damaged records: (what is done to the file, what is told, which images are left)


def flip_content(raw: bytes, offsets: list[int]) -> bytes:
    at = offsets[2] + 300
    return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]


def flip_length(raw: bytes, offsets: list[int]) -> bytes:
    return raw[: offsets[2] + 5] + b"\x77" + raw[offsets[2] + 6 :]


@pytest.mark.parametrize(
    "damage, index, left",
    [
        (flip_content, 2, [9, 7, 3, 1]),
        (flip_length, 2, [9, 7]),
        (lambda raw, offsets: raw[: offsets[3] + 100], 3, [9, 7, 5]),
        (lambda raw, offsets: raw[: offsets[3] + 4], 3, [9, 7, 5]),
        (lambda raw, offsets: flip_content(raw, offsets)[: offsets[4] + 50], 2, [9, 7, 3]),
    ],
)
def test_damaged_records_are_named_and_skipped_only_when_told(
    record_file: Path, damage: Callable[[bytes, list[int]], bytes], index: int, left: list[int]
) -> None:
    offsets = [0]
    for content in tf.data.TFRecordDataset(str(record_file)).as_numpy_iterator():
        offsets.append(offsets[-1] + 16 + len(content))
    record_file.write_bytes(damage(record_file.read_bytes(), offsets))
    with pytest.raises(DatasetError, match=f"set.record: record {index}: is damaged at byte {offsets[index]}"):
        open_dataset(record_file)
    dataset = open_dataset(record_file, skip_bad_records=True)
    assert ids(dataset) == left
    assert dataset.skipped[0].startswith(f"{record_file}: record {index}: is damaged")


def bad_size(annotated: Annotated) -> AnnotatedJpeg:
    return annotated(5, height=25)


def truncated_image(annotated: Annotated) -> AnnotatedJpeg:
    return annotated(5, encoded=annotated(5).encoded[:-60])


@pytest.mark.parametrize(
    "make, message",
    [
        (bad_size, "record 2: the image is 24 px high and 32 px wide; annotated are height 25, width 32"),
        (truncated_image, "record 2: image does not decode: jpeg::Uncompress failed"),
        (lambda annotated: annotated(7), "record 2: image id 7 was used before, by .*set.record: record 1"),
    ],
)
def test_bad_images_in_records(
    record_file: Path, annotated: Annotated, make: Callable[[Annotated], AnnotatedJpeg], message: str
) -> None:
    write_records(record_file, [annotated(9), annotated(7), make(annotated), annotated(3), annotated(1)])
    with pytest.raises(DatasetError, match=message):
        list(open_dataset(record_file))
    dataset = open_dataset(record_file, skip_bad_records=True, limit=3)
    assert ids(dataset) == [9, 7, 3]
    assert len(dataset.skipped) == 1


def test_a_record_that_is_no_example_is_named(tmp_path: Path, annotated: Annotated) -> None:
    path = write_raw(tmp_path / "mixed.record", [encode_example(annotated(1)), b"\xff\xfe", b""])
    with pytest.raises(DatasetError, match=r"mixed.record: record 1: is no tf\.train\.Example"):
        open_dataset(path)
    dataset = open_dataset(path, skip_bad_records=True)
    assert len(dataset.skipped) == 2
    assert "record 2: image/height: expected one value, got 0" in dataset.skipped[1]


def test_an_unknown_class_name_is_named(record_file: Path) -> None:
    with pytest.raises(DatasetError, match=r"record 0: image/object/class/text: 'cat' is not in the label map"):
        open_dataset(record_file, label_map={"car": 1})
    assert open_dataset(record_file, label_map={"car": 1, "cat": 2}).category_ids == {1, 2}


def test_categories_of_records_have_the_names_in_them(tmp_path: Path, annotated: Annotated) -> None:
    path = tmp_path / "set.record"
    write_records(path, [annotated(1), annotated(2, category_names=("Auto", ""))])
    dataset = open_dataset(path)
    assert dataset.category_names == {3: "car", 17: "cat"} == dataset.first(1).category_names
    # A label map knows of categories that do not occur, too.
    assert open_dataset(path, label_map={"car": 1, "cat": 2, "Auto": 1, "": 4, "dog": 5}).category_names[5] == "dog"


def test_names_that_do_not_pair_with_the_objects_are_no_names(tmp_path: Path, annotated: Annotated) -> None:
    record = tf.train.Example.FromString(encode_example(annotated(1)))
    record.features.feature["image/object/class/text"].bytes_list.value.append(b"dog")
    path = write_raw(tmp_path / "a.record", [record.SerializeToString()])
    assert open_dataset(path).category_names == {}


def test_coco_s_names_are_taken_where_most_of_its_ids_occur(tmp_path: Path, annotated: Annotated) -> None:
    path = write_raw(tmp_path / "a.record", [encode_example(annotated(1))])
    unnamed = replace(open_dataset(path), names={})
    assert unnamed.category_names == {}
    assert replace(unnamed, category_ids=frozenset(range(1, 60))).category_names[90] == "toothbrush"


def test_skipped_records_are_logged(tmp_path: Path, annotated: Annotated, caplog: pytest.LogCaptureFixture) -> None:
    path = write_raw(tmp_path / "mixed.record", [encode_example(annotated(1)), b"\xff\xfe"])
    open_dataset(path, skip_bad_records=True)
    assert "1 bad records skipped" in caplog.text


@pytest.mark.parametrize("contents", [[], [b"\xff\xfe"]])
def test_an_empty_set_is_refused(tmp_path: Path, contents: list[bytes]) -> None:
    path = write_raw(tmp_path / "empty.record", contents)
    with pytest.raises(DatasetError, match=r"empty.record: holds no usable image"):
        open_dataset(path, skip_bad_records=True)


@pytest.mark.parametrize("name", ["set.recrod", "*.nothing", "no/such.json", "no/folder"])
def test_a_location_that_does_not_exist_is_named(record_file: Path, name: str) -> None:
    with pytest.raises(DatasetError) as error:
        open_dataset(record_file.parent / name)
    assert str(record_file.parent / name) in str(error.value)
    assert ("did you mean 'set.record'" in str(error.value)) == (name == "set.recrod")


def test_a_file_that_is_no_tfrecord_is_named(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"\xff\xd8\xff" * 100)
    with pytest.raises(DatasetError, match=r"photo.jpg: record 0: is damaged"):
        open_dataset(path)


# A folder of images with an instances JSON


def test_images_come_in_the_order_of_the_json(tmp_path: Path, coco_table: Table, write_coco: WriteCoco) -> None:
    path = write_coco(tmp_path, coco_table)
    dataset = open_dataset(path)
    assert ids(dataset) == [30, 10, 20]
    assert dataset.category_ids == {3, 17, 90}
    assert dataset.category_names == {3: "car", 17: "cat", 90: "toothbrush"}
    truth = dataset.entries[1].ground_truth
    np.testing.assert_array_equal(truth.boxes, [[0.25, 0.5, 0.75, 1.0], [2 / 24, 1 / 32, 6 / 24, 4 / 32]])
    assert truth.category_ids.tolist() == [3, 17]
    assert truth.areas_px.tolist() == [150, 12]
    assert truth.is_crowd.tolist() == [False, False]
    assert dataset.entries[0].ground_truth.is_crowd.tolist() == [True]
    assert dataset.entries[2].ground_truth.boxes.shape == (0, 4)


@pytest.mark.parametrize(
    "layout, location",
    [
        (("instances.json", "images"), "."),
        (("instances.json", "images"), "instances.json"),
        (("labels.json", "images"), "."),
        (("labels.json", "."), "labels.json"),
        (("annotations/instances_val2017.json", "val2017"), "."),
        (("annotations/instances_val2017.json", "images"), "annotations/instances_val2017.json"),
        (("annotations/any.json", "images"), "."),
    ],
)
def test_folders_are_found(
    tmp_path: Path, coco_table: Table, write_coco: WriteCoco, layout: tuple[str, str], location: str
) -> None:
    write_coco(tmp_path, coco_table, *layout)
    assert ids(open_dataset(tmp_path / location)) == [30, 10, 20]


def test_instances_go_before_other_annotations(tmp_path: Path, coco_table: Table, write_coco: WriteCoco) -> None:
    write_coco(tmp_path, coco_table, "annotations/instances_val2017.json", "val2017")
    (tmp_path / "annotations/captions_val2017.json").write_text("{}")
    assert len(open_dataset(tmp_path)) == 3


def test_given_folders_are_used(tmp_path: Path, coco_table: Table, write_coco: WriteCoco) -> None:
    path = write_coco(tmp_path, coco_table, "meta/a.json", "pictures")
    shutil.copy(path, tmp_path / "meta/b.json")
    dataset = open_dataset(tmp_path, image_dir=Path("pictures"), annotations=Path("meta/b.json"))
    assert ids(dataset) == [30, 10, 20]
    assert ids(open_dataset(path, image_dir=tmp_path / "pictures")) == [30, 10, 20]
    with pytest.raises(DatasetError, match="is an annotations file itself"):
        open_dataset(path, annotations=Path("b.json"))


def test_a_label_map_takes_the_place_of_the_ids_of_a_json(coco_file: Path) -> None:
    label_map = {"car": 1, "cat": 2, "toothbrush": 5}
    dataset = open_dataset(coco_file, label_map=label_map)
    assert dataset.category_ids == {1, 2, 5}
    assert dataset.category_names == {number: name for name, number in label_map.items()}
    assert [sample.ground_truth.category_ids.tolist() for sample in dataset] == [[2], [1, 2], []]
    with pytest.raises(DatasetError, match=r"categories: 'toothbrush' is not in the label map of 2 names$"):
        open_dataset(coco_file, label_map={"car": 1, "cat": 2})
    with pytest.raises(DatasetError, match=r"its categories \(car, cat, toothbrush\) and the label map's \(Auto"):
        open_dataset(coco_file, label_map={"Auto": 1})


def test_several_annotation_files_are_listed(tmp_path: Path, coco_table: Table, write_coco: WriteCoco) -> None:
    for name in ("instances_a.json", "annotations/instances_b.json"):
        write_coco(tmp_path, coco_table, name)
    with pytest.raises(DatasetError, match=r"name one of annotations/instances_b.json, instances_a.json"):
        open_dataset(tmp_path)


def test_a_folder_without_a_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="holds neither TFRecords nor an instances JSON"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "instances.json: is no JSON file"),
        ("[]", "images: expected a list, got NoneType; a COCO instances file has the lists"),
        ('{"images": [], "annotations": {}}', "annotations: expected a list, got dict"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1}]}', r"categories\[0\]: name: is missing"),
        ('{"images": [], "annotations": [], "categories": []}', "holds no usable image"),
    ],
)
def test_a_file_that_is_no_instances_json_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "instances.json").write_text(text)
    with pytest.raises(DatasetError, match=message):
        open_dataset(tmp_path)


def change(table: str, index: int, **values: Any) -> Callable[[Table], None]:
    return lambda tables: tables[table][index].update(values)


@pytest.mark.parametrize(
    "spoil, message, left",
    [
        (
            change("images", 2, id=30),
            r"images\[2\] \(20.jpg\): image id 30 was used before, by .*images\[0\]",
            [10, 30],
        ),
        (change("images", 1, id="x"), r"annotations\[0\]: image_id: 10 is none of the 2 images", [20, 30]),
        (change("images", 2, height=0), r"images\[2\] \(20.jpg\): height: got 0; expected a positive", [10, 30]),
        (change("images", 2, height=99), r"images\[2\] \(20.jpg\): the image is 24 px high .* height 99", [10, 30]),
        (change("images", 2, width=None), r"images\[2\] \(20.jpg\): width: got None; expected an integer", [10, 30]),
        (change("images", 2, file_name="no.jpg"), r"images\[2\] \(no.jpg\): file_name: no file .*no.jpg", [10, 30]),
        (change("images", 2, file_name=7), r"images\[2\]: file_name: got 7; expected a string", [10, 30]),
        (lambda t: t["images"][2].pop("width"), r"images\[2\] \(20.jpg\): width: is missing", [10, 30]),
        (change("annotations", 2, image_id=11), r"annotations\[2\]: image_id: 11 is none of the 3", [10, 20, 30]),
        (change("annotations", 2, category_id=4), r"\(10.jpg\): annotations\[2\]: category_id: 4 is none", [20, 30]),
        (change("annotations", 2, category_id="4"), r"annotations\[2\]: category_id: got '4'; expected", [20, 30]),
        (change("annotations", 2, bbox=[1, 2, 3]), r"annotations\[2\]: bbox: got \[1, 2, 3\]; expected four", [20, 30]),
        (change("annotations", 2, bbox=[1, 2, 3, "4"]), r"annotations\[2\]: bbox: got '4'; expected a num", [20, 30]),
        (change("annotations", 2, bbox=[1, 2, -3, 4]), r"annotations\[2\]: box is of negative size", [20, 30]),
        (change("annotations", 2, bbox=[1, 2, 90, 4]), r"annotations\[2\]: box is outside its image", [20, 30]),
        (change("annotations", 2, bbox=[1, 2, float("nan"), 4]), r"annotations\[2\]: box is not finite", [20, 30]),
        (change("annotations", 2, area=-1), r"annotations\[2\]: area: got -1.0; expected 0 or more", [20, 30]),
        (change("annotations", 2, bbox="x" * 70_000), r"bbox: got 'x{,50}\.\.\.x{,50}'; expected four", [20, 30]),
        (change("annotations", 2, area="big"), r"annotations\[2\]: area: got 'big'; expected a number", [20, 30]),
    ],
)
def test_bad_entries_are_named_and_skipped_only_when_told(
    coco_file: Path, coco_table: Table, spoil: Callable[[Table], None], message: str, left: list[int]
) -> None:
    spoil(coco_table)
    coco_file.write_text(json.dumps(coco_table))
    with pytest.raises(DatasetError, match=message):
        list(open_dataset(coco_file))
    dataset = open_dataset(coco_file, skip_bad_records=True)
    assert sorted(ids(dataset)) == left
    assert dataset.skipped


def test_an_undecodable_image_is_named(tmp_path: Path, coco_table: Table, write_coco: WriteCoco) -> None:
    path = write_coco(tmp_path, coco_table)
    (tmp_path / "images/10.jpg").write_bytes(b"GIF")
    with pytest.raises(DatasetError, match=r"images\[1\] \(10.jpg\): image does not decode"):
        list(open_dataset(path))
    assert ids(open_dataset(path, skip_bad_records=True)) == [30, 20]


@pytest.mark.parametrize("name, images", [("instances.json", 300), ("instances_with_masks.json", 206)])
def test_real_annotations_load_clean(assets: Path, name: str, images: int) -> None:
    dataset = open_dataset(assets / "coco_val" / name)
    assert (len(dataset), len(dataset.category_ids), dataset.skipped) == (images, 80, ())
    for sample in dataset.first(25):
        assert sample.image.ndim == 3


def test_real_folder_is_found_and_ambiguity_told(assets: Path) -> None:
    assert len(open_dataset(assets / "od_api/ssd_mobilenet_v1_depth05/fit")) == 160
    with pytest.raises(DatasetError, match=r"name one of instances.json, instances_with_masks.json"):
        open_dataset(assets / "coco_val")


def test_a_file_without_read_permission_is_named(record_file: Path) -> None:
    record_file.chmod(0)
    if os.access(record_file, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(DatasetError, match=r"set.record: cannot be read"):
        open_dataset(record_file)


# Masks


def png(mask: np.ndarray) -> bytes:
    encoded: bytes = tf.io.encode_png(mask[:, :, np.newaxis].astype(np.uint8)).numpy()
    return encoded


def two_masks() -> list[np.ndarray]:
    masks = np.zeros((2, 24, 32), bool)
    masks[0, 6:18, 16:32] = masks[1, :12, :16] = True
    return list(masks)


def test_masks_of_records_are_read_when_they_are_asked_for(tmp_path: Path, annotated: Annotated) -> None:
    masks = two_masks()
    write_records(tmp_path / "set.record", [annotated(1, masks=tuple(map(png, masks)))])
    plain, masked = open_dataset(tmp_path / "set.record"), open_dataset(tmp_path / "set.record", masks=True)
    assert plain.entries[0].ground_truth.masks is None
    found = masked.entries[0].ground_truth.masks
    assert found is not None
    assert [found.decode(index).tolist() for index in range(2)] == [mask.tolist() for mask in masks]
    assert plain.sha256 != masked.sha256


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ((), "image/object/mask: 0 masks for 2 boxes; .*--iou_type=bbox"),
        ((b"mask", b"mask"), "image/object/mask: is no PNG file"),
        ((png(np.zeros((24, 31))),) * 2, r"image/object/mask: got a mask of \(24, 31\); the image is \(24, 32\)"),
    ],
)
def test_records_with_unusable_masks(
    tmp_path: Path, annotated: Annotated, masks: tuple[bytes, ...], message: str
) -> None:
    write_records(tmp_path / "set.record", [annotated(1, masks=masks)])
    with pytest.raises(DatasetError, match=f"record 0: {message}"):
        open_dataset(tmp_path / "set.record", masks=True)


def test_masks_of_a_json_are_read_when_they_are_asked_for(
    tmp_path: Path, coco_table: Table, write_coco: WriteCoco
) -> None:
    for annotation in coco_table["annotations"]:
        annotation["segmentation"] = [[0, 0, 4, 0, 4, 3, 0, 3]]
    path = write_coco(tmp_path, coco_table)
    assert all(entry.ground_truth.masks is None for entry in open_dataset(path).entries)
    masks = [entry.ground_truth.masks for entry in open_dataset(path, masks=True).entries]
    assert [area for mask in masks if mask is not None for area in mask.areas_px] == [12] * len(
        coco_table["annotations"]
    )
    coco_table["annotations"][0]["segmentation"] = [[0, 0]]
    with pytest.raises(DatasetError, match=r"annotations\[0\]: segmentation: got \[\[0, 0\]\]; expected polygons"):
        open_dataset(write_coco(tmp_path, coco_table), masks=True)


CROP = Transforms.model_validate({"CenterCrop": {"size": [12, 16]}, "Rescale": None}).steps


def test_samples_are_transformed(record_file: Path) -> None:
    plain, cropped = open_dataset(record_file), open_dataset(record_file, steps=CROP)
    for before, after in zip(plain, cropped, strict=True):
        np.testing.assert_array_equal(after.image, before.image[6:18, 8:24].astype(np.float32) / np.float32(255))
        assert before.view == View(24, 32, 24, 32)
        assert after.view == View(24, 32, 12, 16, (0.25, 0.25, 0.75, 0.75))
        np.testing.assert_array_equal(after.ground_truth.boxes, before.ground_truth.boxes)
    np.testing.assert_array_equal(cropped.first_image, next(iter(cropped)).image)


def test_transforms_are_part_of_the_identity(record_file: Path) -> None:
    other = Transforms.model_validate({"CenterCrop": {"size": [12, 15]}, "Rescale": None}).steps
    hashes = {open_dataset(record_file, steps=steps).sha256 for steps in ((), CROP, CROP[::-1], other)}
    assert len(hashes) == 4


def test_only_images_of_so_many_objects(coco_file: Path, record_file: Path) -> None:
    assert ids(open_dataset(coco_file, objects=2)) == [10]
    assert ids(open_dataset(coco_file, objects=1)) == [30]  # a crowd is an object
    assert ids(open_dataset(record_file, objects=2, limit=3)) == [9, 7, 5]
    assert open_dataset(coco_file, objects=2).sha256 != open_dataset(coco_file).sha256
    with pytest.raises(DatasetError, match=r"no usable image with exactly 3 object\(s\), as LabelBalance"):
        open_dataset(coco_file, objects=3)


def test_a_label_map_of_other_names(record_file: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        open_dataset(record_file, label_map={f"name {index:02}": index for index in range(1, 11)})
    assert str(caught.value).endswith(
        "record 0: image/object/class/text: its categories (car, cat) and the label map's (name 01, name 02, name 03, "
        "name 04, name 05, name 06, name 07, name 08 and 2 more) have none in common: "
        "see evaluation.accuracy.metric.COCOmAP.anno_path"
    )


def test_a_label_map_of_other_ids_than_those_of_records_without_names(
    tmp_path: Path, annotated: Callable[..., AnnotatedJpeg]
) -> None:
    record = tf.train.Example.FromString(encode_example(annotated(1)))
    del record.features.feature["image/object/class/text"]
    with tf.io.TFRecordWriter(str(tmp_path / "a.record")) as writer:
        writer.write(record.SerializeToString())
    assert open_dataset(tmp_path / "a.record", label_map={"cat": 17}).category_ids == {3, 17}
    with pytest.raises(DatasetError, match=r"annotated ids \(3, 17\) and the label map's \(1, 2\) have none in"):
        open_dataset(tmp_path / "a.record", label_map={"car": 1, "cat": 2})
