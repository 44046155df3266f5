import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tuner.data.records import AnnotatedJpeg, decode_example, encode_example, write_records
from tuner.detections import GroundTruth
from tuner.errors import DatasetError

Annotated = Callable[..., AnnotatedJpeg]
NO_OBJECTS = GroundTruth(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0, bool), np.zeros(0))


def edited(image: AnnotatedJpeg, **features: Any) -> bytes:
    """The record of `image` with features replaced, or removed by None; `a__b` stands for the key image/a/b."""
    example = tf.train.Example.FromString(encode_example(image))
    for name, value in features.items():
        key = "image/" + name.replace("__", "/")
        example.features.feature.pop(key, None)
        if value is not None:
            example.features.feature[key].CopyFrom(value)
    serialized: bytes = example.SerializeToString()
    return serialized


def ints(*values: int) -> tf.train.Feature:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values))


def floats(*values: float) -> tf.train.Feature:
    return tf.train.Feature(float_list=tf.train.FloatList(value=values))


def strings(*values: bytes) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))


def test_keys_and_types_are_those_of_create_coco_tf_record(annotated: Annotated) -> None:
    image = annotated(139, masks=(b"png 1", b"png 2"))
    features = tf.train.Example.FromString(encode_example(image)).features.feature
    assert dict(features) == {
        "image/height": ints(24),
        "image/width": ints(32),
        "image/filename": strings(b"139.jpg"),
        "image/source_id": strings(b"139"),
        "image/key/sha256": strings(hashlib.sha256(image.encoded).hexdigest().encode()),
        "image/encoded": strings(image.encoded),
        "image/format": strings(b"jpeg"),
        "image/object/bbox/xmin": floats(0.5, 0),
        "image/object/bbox/xmax": floats(1, 0.5),
        "image/object/bbox/ymin": floats(0.25, 0),
        "image/object/bbox/ymax": floats(0.75, 0.5),
        "image/object/class/text": strings(b"car", b"cat"),
        "image/object/class/label": ints(3, 17),
        "image/object/is_crowd": ints(0, 1),
        "image/object/area": floats(150, 96),
        "image/object/mask": strings(b"png 1", b"png 2"),
    }


@pytest.mark.parametrize("changes", [{}, {"ground_truth": NO_OBJECTS, "category_names": ()}, {"masks": (b"a", b"b")}])
def test_a_record_reads_back_as_it_was(annotated: Annotated, changes: dict[str, Any]) -> None:
    image = annotated(139, **changes)
    back = decode_example(encode_example(image), "here")
    for name in ("encoded", "height", "width", "image_id", "filename", "category_names", "masks"):
        assert getattr(back, name) == getattr(image, name), name
    for name in ("boxes", "category_ids", "is_crowd", "areas_px"):
        np.testing.assert_array_equal(getattr(back.ground_truth, name), getattr(image.ground_truth, name))
    assert encode_example(back) == encode_example(image)


@pytest.mark.parametrize(
    "source_id, image_id",
    [(b"000000000139", 139), (b"kitchen", 5), (b"", 5), (b"-3", 5), (b"1" * 18, int("1" * 18)), (b"1" * 40, 5)],
)
def test_source_ids_that_are_no_image_ids_give_the_position(
    annotated: Annotated, source_id: bytes, image_id: int
) -> None:
    record = edited(annotated(139), source_id=strings(source_id))
    assert decode_example(record, "here", position=4).image_id == image_id


def test_what_other_writers_leave_out_has_a_meaning(annotated: Annotated) -> None:
    bare = edited(
        annotated(139), source_id=strings(b"kitchen"), filename=None, object__is_crowd=None, object__area=None
    )
    image = decode_example(bare, "here", position=4)
    assert (image.image_id, image.filename) == (5, "kitchen")
    assert image.ground_truth.is_crowd.tolist() == [False, False]
    assert image.ground_truth.areas_px.tolist() == [12 * 16, 12 * 16]


@pytest.mark.parametrize(
    "features, label_map, expected",
    [
        ({}, None, [3, 17]),
        ({"object__class__label": ints(1, 2)}, None, [1, 2]),
        ({"object__class__label": None}, None, [3, 17]),  # by COCO's names
        ({}, {"cat": 1, "car": 2}, [2, 1]),
        ({"object__class__text": None}, {"cat": 1, "car": 2}, [3, 17]),
    ],
)
def test_category_ids_come_from_labels_or_names(
    annotated: Annotated, features: dict[str, Any], label_map: dict[str, int] | None, expected: list[int]
) -> None:
    image = decode_example(edited(annotated(1), **features), "here", label_map=label_map)
    assert image.ground_truth.category_ids.tolist() == expected


@pytest.mark.parametrize(
    "features, message",
    [
        ({"height": None}, "here: image/height: expected one value, got 0"),
        ({"width": ints(3, 4)}, "here: image/width: expected one value, got 2"),
        ({"height": floats(24)}, "here: image/height: got a float_list; expected a int64_list"),
        ({"height": ints(0)}, "here: image size: got 0 x 32; expected positive height and width"),
        ({"encoded": None}, "here: image/encoded: expected one value, got 0"),
        ({"object__bbox__xmax": floats(1)}, "here: image/object/bbox/xmax: 1 values for 2 boxes"),
        ({"object__area": floats(1, 2, 3)}, "here: image/object/area: 3 values for 2 boxes"),
        ({"object__is_crowd": ints(1)}, "here: image/object/is_crowd: 1 values for 2 boxes"),
        ({"object__class__label": ints(1)}, "here: image/object/class: 1 values for 2 boxes"),
        ({"object__mask": strings(b"")}, "here: image/object/mask: 1 values for 2 boxes"),
        (
            {"object__class__label": None, "object__class__text": strings(b"car", b"toothbrash")},
            "here: image/object/class/text: 'toothbrash' is not in the label map of 80 names "
            "(did you mean 'toothbrush'?)",
        ),
        (
            {"object__bbox__xmax": floats(1.5, 0.5)},
            "here: object 0: box is outside its image: got ymin 6, xmin 16, ymax 18, xmax 48 px; "
            "the image is 24 px high, 32 px wide",
        ),
        (
            {"object__bbox__ymin": floats(0.25, 0.6)},
            "here: object 1: box is of negative size: got ymin 14.4, xmin 0, ymax 12, xmax 16 px; "
            "the image is 24 px high, 32 px wide",
        ),
        (
            {"object__bbox__ymin": floats(0.25, float("nan"))},
            "here: object 1: box is not finite: got ymin nan, xmin 0, ymax 12, xmax 16 px; "
            "the image is 24 px high, 32 px wide",
        ),
        ({"object__area": floats(1, -2)}, "here: object 1: area: got -2.0; expected 0 or more square pixels"),
    ],
)
def test_a_bad_record_is_named_by_key(annotated: Annotated, features: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError) as error:
        decode_example(edited(annotated(1), **features), "here")
    assert str(error.value) == message


def test_boxes_of_zero_size_and_a_pixel_of_overhang_are_kept(annotated: Annotated) -> None:
    truth = GroundTruth(
        np.array([[0.5, 0.5, 0.5, 0.9], [-0.9 / 24, 0, 24.9 / 24, 1]]), np.array([3, 3]), np.zeros(2, bool), np.ones(2)
    )
    assert len(decode_example(encode_example(annotated(1, ground_truth=truth)), "here").ground_truth) == 2


def test_what_is_no_example_is_told() -> None:
    with pytest.raises(DatasetError, match=r"^here: is no tf\.train\.Example$"):
        decode_example(b"\xff\xfe not a record", "here")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"encoded": b"\x89PNG..."}, r"7.jpg: image/encoded: begins with b'\\x89PNG'; expected a JPEG file"),
        ({"category_names": ("car",)}, "7.jpg: 2 objects need as many category names .* got 1 names, 0 masks"),
        ({"masks": (b"",)}, "7.jpg: 2 objects need .* got 2 names, 1 masks"),
    ],
)
def test_what_no_record_can_hold_is_refused(annotated: Annotated, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        encode_example(annotated(7, **changes))


def test_shards_are_filled_in_turn(annotated: Annotated, tmp_path: Path) -> None:
    assert write_records(tmp_path / "new/set.record", (annotated(i) for i in range(1, 6)), shards=2) == 5
    files = sorted((tmp_path / "new").iterdir())
    assert [file.name for file in files] == ["set.record-00000-of-00002", "set.record-00001-of-00002"]
    held = [
        [decode_example(r, "").image_id for r in tf.data.TFRecordDataset(str(f)).as_numpy_iterator()] for f in files
    ]
    assert held == [[1, 3, 5], [2, 4]]


def test_records_are_whole_or_absent(annotated: Annotated, tmp_path: Path, record_file: Path) -> None:
    before = record_file.read_bytes()
    with pytest.raises(DatasetError, match="begins with"):
        write_records(record_file, [annotated(1), annotated(2, encoded=b"text")])
    assert record_file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [record_file]


@pytest.mark.parametrize("shards", [1, 3])
def test_too_few_images_are_refused(annotated: Annotated, tmp_path: Path, shards: int) -> None:
    with pytest.raises(DatasetError, match=f"{shards - 1} images cannot fill {shards} record file"):
        write_records(tmp_path / "x.record", [annotated(i) for i in range(shards - 1)], shards)
    assert not list(tmp_path.iterdir())


def test_an_unwritable_place_is_named(annotated: Annotated, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match=r"file/x.record: cannot be written"):
        write_records(tmp_path / "file/x.record", [annotated(1)])
