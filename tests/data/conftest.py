import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tuner.data.records import AnnotatedJpeg, write_records
from tuner.detections import GroundTruth

HEIGHT, WIDTH = 24, 32


def make_jpeg(seed: int, height: int = HEIGHT, width: int = WIDTH) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    encoded: bytes = tf.io.encode_jpeg(pixels).numpy()
    return encoded


def make_annotated(image_id: int, **changes: Any) -> AnnotatedJpeg:
    facts: dict[str, Any] = {
        "encoded": make_jpeg(image_id),
        "height": HEIGHT,
        "width": WIDTH,
        "image_id": image_id,
        "filename": f"{image_id}.jpg",
        "ground_truth": GroundTruth(
            np.array([[0.25, 0.5, 0.75, 1.0], [0.0, 0.0, 0.5, 0.5]]),
            np.array([3, 17]),
            np.array([False, True]),
            np.array([150.0, 96.0]),
        ),
        "category_names": ("car", "cat"),
    }
    return AnnotatedJpeg(**{**facts, **changes})


def write_table(folder: Path, table: dict[str, Any], path: str = "instances.json", images: str = "images") -> Path:
    (folder / images).mkdir(parents=True, exist_ok=True)
    for image in table["images"]:
        (folder / images / image["file_name"]).write_bytes(make_jpeg(image["id"]))
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_text(json.dumps(table))
    return folder / path


@pytest.fixture
def jpeg() -> Callable[..., bytes]:
    """A JPEG of noise, 24 x 32 unless told: (seed, height, width)."""
    return make_jpeg


@pytest.fixture
def annotated() -> Callable[..., AnnotatedJpeg]:
    """An image of 24 x 32 with a car and a crowd of cats: (image_id, fields to change)."""
    return make_annotated


@pytest.fixture
def write_coco() -> Callable[..., Path]:
    """Writes a table and its images below a folder and returns the JSON's path: (folder, table, path, images)."""
    return write_table


@pytest.fixture
def record_file(tmp_path: Path) -> Path:
    """Five records with the image ids 9, 7, 5, 3, 1."""
    path = tmp_path / "set.record"
    write_records(path, [make_annotated(image_id) for image_id in (9, 7, 5, 3, 1)])
    return path


@pytest.fixture
def coco_table() -> dict[str, Any]:
    """An instances table of three images with the ids 30, 10, 20, the last without annotations."""
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": HEIGHT, "width": WIDTH} for i in (30, 10, 20)],
        "categories": [{"id": 3, "name": "car"}, {"id": 17, "name": "cat"}, {"id": 90, "name": "toothbrush"}],
        "annotations": [
            {"id": 1, "image_id": 10, "category_id": 3, "bbox": [16, 6, 16, 12], "area": 150, "iscrowd": 0},
            {"id": 2, "image_id": 30, "category_id": 17, "bbox": [0, 0, 16, 12], "area": 96, "iscrowd": 1},
            {"id": 3, "image_id": 10, "category_id": 17, "bbox": [1, 2, 3, 4]},
        ],
    }


@pytest.fixture
def coco_file(tmp_path: Path, coco_table: dict[str, Any]) -> Path:
    """`coco_table` as a JSON file, with its images."""
    return write_table(tmp_path, coco_table)
