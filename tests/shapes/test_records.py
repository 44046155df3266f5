"""The committed records are OD-API records, small, and made by the committed generator."""

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import tensorflow as tf
from pycocotools import mask as coco_mask

OD_API_KEYS = {
    "image/height": "int64_list",
    "image/width": "int64_list",
    "image/filename": "bytes_list",
    "image/source_id": "bytes_list",
    "image/key/sha256": "bytes_list",
    "image/encoded": "bytes_list",
    "image/format": "bytes_list",
    "image/object/bbox/xmin": "float_list",
    "image/object/bbox/xmax": "float_list",
    "image/object/bbox/ymin": "float_list",
    "image/object/bbox/ymax": "float_list",
    "image/object/class/text": "bytes_list",
    "image/object/class/label": "int64_list",
    "image/object/is_crowd": "int64_list",
    "image/object/area": "float_list",
}


def read(path: Path) -> list[dict[str, tf.train.Feature]]:
    examples = [tf.train.Example.FromString(record.numpy()) for record in tf.data.TFRecordDataset(str(path))]
    return [dict(example.features.feature) for example in examples]


def test_records_fit_the_size_limit(shapes_folder: Path) -> None:
    sizes = [(shapes_folder / f"{split}.record").stat().st_size for split in ("calibration", "evaluation")]
    assert sum(sizes) <= 8e6


@pytest.mark.parametrize(("split", "least"), [("calibration", 100), ("evaluation", 300)])
def test_records_and_instances_say_the_same(shapes_folder: Path, split: str, least: int) -> None:
    records = read(shapes_folder / f"{split}.record")
    content = json.loads((shapes_folder / f"{split}_instances.json").read_text())
    assert len(records) >= least
    assert [image["id"] for image in content["images"]] == [
        int(features["image/source_id"].bytes_list.value[0]) for features in records
    ]
    names = {category["id"]: category["name"] for category in content["categories"]}
    for image, features in zip(content["images"], records, strict=True):
        assert {key: feature.WhichOneof("kind") for key, feature in features.items()} == OD_API_KEYS
        height, width = (features[f"image/{side}"].int64_list.value[0] for side in ("height", "width"))
        assert (image["height"], image["width"]) == (height, width)
        assert features["image/filename"].bytes_list.value[0].decode() == image["file_name"]
        objects = [entry for entry in content["annotations"] if entry["image_id"] == image["id"]]
        labels = list(features["image/object/class/label"].int64_list.value)
        assert labels == [entry["category_id"] for entry in objects]
        assert [text.decode() for text in features["image/object/class/text"].bytes_list.value] == [
            names[label] for label in labels
        ]
        sides = [features[f"image/object/bbox/{side}"].float_list.value for side in ("xmin", "ymin", "xmax", "ymax")]
        x_min, y_min, x_max, y_max = np.array(sides) * np.array([[width], [height], [width], [height]])
        np.testing.assert_allclose(
            np.stack([x_min, y_min, x_max - x_min, y_max - y_min], axis=1),
            [entry["bbox"] for entry in objects],
            atol=1e-3,
        )
        np.testing.assert_allclose(
            features["image/object/area"].float_list.value, [entry["area"] for entry in objects], rtol=1e-6
        )
        for entry in objects:
            assert coco_mask.area(coco_mask.frPyObjects(entry["segmentation"], height, width))[0] == entry["area"]


@pytest.mark.parametrize("split", ["calibration", "evaluation"])
def test_records_come_from_the_generator(
    scenes: ModuleType, make_records: ModuleType, shapes_folder: Path, split: str
) -> None:
    records = read(shapes_folder / f"{split}.record")
    assert len(records) == make_records.IMAGE_COUNTS[split]
    drawn = [scenes.draw_scene(split, index) for index in range(5)]
    content = json.loads((shapes_folder / f"{split}_instances.json").read_text())
    expected = make_records.instances(split, drawn)
    assert content["annotations"][: len(expected["annotations"])] == expected["annotations"]
    for image, features in zip(make_records.annotated_jpegs(split, drawn), records, strict=False):
        stored, redrawn = (
            tf.io.decode_jpeg(encoded).numpy().astype(float)
            for encoded in (features["image/encoded"].bytes_list.value[0], image.encoded)
        )
        # Another processor may round a few pixels differently.
        assert stored.shape == redrawn.shape and np.abs(stored - redrawn).mean() < 0.5
