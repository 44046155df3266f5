"""Images that claim a huge size are refused by their header, before memory is taken for them."""

import json
import resource
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tuner.data.dataset import open_dataset
from tuner.data.image_size import MOST_PIXELS, check_claimed_size, check_pixels
from tuner.data.images import decode_image, decode_mask
from tuner.data.records import AnnotatedJpeg, write_records
from tuner.detections import GroundTruth
from tuner.errors import DatasetError

HUGE = 60_000  # squared: 3,600 megapixels, 10.8 GB decoded


def png(height: int, width: int) -> bytes:
    """A PNG file of zeros that are not there but for one row's worth."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    content = zlib.compress(bytes(width + 1))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def jpeg(height: int, width: int) -> bytes:
    """A small JPEG file whose frame header claims another size."""
    encoded: bytes = tf.io.encode_jpeg(np.zeros((8, 8, 3), np.uint8)).numpy()
    start = encoded.index(b"\xff\xc0") + 5
    return encoded[:start] + struct.pack(">HH", height, width) + encoded[start + 4 :]


def gif(height: int, width: int, frames: int = 1) -> bytes:
    """A GIF file of frames that hold next to nothing."""
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x4c\x01\x00"
    comment = b"\x21\xfe\x03abc\x00"
    screen = struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)
    return b"GIF89a" + screen + comment + frame * frames + b"\x3b"


@pytest.mark.parametrize(
    ("encoded", "size"),
    [
        (jpeg(HUGE, HUGE), "60000 x 60000, 3,600"),
        (png(HUGE, HUGE), "60000 x 60000, 3,600"),
        (gif(HUGE, HUGE), "60000 x 60000, 3,600"),
        # Each frame is decoded, though no frame is large: 30 of 4 megapixels.
        (gif(2000, 2000, frames=30), "60000 x 2000, 120"),
    ],
)
def test_a_bomb_takes_no_memory(encoded: bytes, size: str) -> None:
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DatasetError) as caught:
        decode_image(encoded, "bomb")
    assert str(caught.value) == f"bomb: image size: got {size} megapixels; expected at most 100"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 100_000


def test_a_mask_may_be_a_bomb_too() -> None:
    with pytest.raises(DatasetError, match="it: image/object/mask: image size: got 60000 x 60000"):
        decode_mask(png(HUGE, HUGE), "it")


def test_the_limit() -> None:
    check_pixels(10_000, 10_000, "x")
    with pytest.raises(DatasetError):
        check_pixels(10_000, 10_001, "x")
    assert MOST_PIXELS == 10_000**2
    for encoded in (
        png(10_000, 10_000),
        jpeg(10_000, 10_000),
        gif(10_000, 10_000),
        b"",
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
    ):
        check_claimed_size(encoded, "x")


def test_small_images_decode_as_ever() -> None:
    assert decode_image(gif(1, 1), "x").shape == (1, 1, 3)
    with pytest.raises(DatasetError, match="does not decode"):
        decode_image(b"\xff\xd8\xff", "x")
    with pytest.raises(DatasetError, match="is no PNG file"):
        decode_mask(b"\xff\xd8\xff", "x")


def record(image_id: int, encoded: bytes, height: int = 8, width: int = 8) -> AnnotatedJpeg:
    truth = GroundTruth(np.array([[0.0, 0.0, 0.5, 0.5]]), np.array([3]), np.array([False]), np.array([16.0]))
    return AnnotatedJpeg(encoded, height, width, image_id, f"{image_id}.jpg", truth, ("car",))


@pytest.mark.parametrize(
    "bad", [record(2, jpeg(HUGE, HUGE)), record(2, jpeg(8, 8), HUGE, HUGE), record(2, jpeg(HUGE, HUGE), HUGE, HUGE)]
)
def test_records_are_named_or_skipped_and_counted(tmp_path: Path, bad: AnnotatedJpeg) -> None:
    path = tmp_path / "set.record"
    write_records(path, [record(1, jpeg(8, 8)), bad, record(3, jpeg(8, 8))])
    with pytest.raises(DatasetError, match=r"set\.record: record 1: image size: got 60000 x 60000, 3,600 megapixels"):
        list(open_dataset(path))
    dataset = open_dataset(path, skip_bad_records=True)
    assert [sample.image_id for sample in dataset] == [1, 3]
    assert len(dataset.skipped) == 1


def test_images_of_an_instances_file(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/1.jpg").write_bytes(jpeg(8, 8))
    polygon: list[Any] = [[0, 0, HUGE, 0, HUGE, HUGE]]
    table = {
        "images": [{"id": 1, "file_name": "1.jpg", "height": HUGE, "width": HUGE}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 3, "bbox": [0, 0, 4, 4], "area": 16, "segmentation": polygon}
        ],
        "categories": [{"id": 3, "name": "car"}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(table))
    with pytest.raises(DatasetError, match=r"images\[0\] \(1.jpg\): image size: got 60000 x 60000"):
        open_dataset(tmp_path / "instances.json", masks=True)


def test_a_folder_of_images(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(jpeg(8, 8))
    (tmp_path / "2.jpg").write_bytes(jpeg(HUGE, HUGE))
    (tmp_path / "3.png").write_bytes(png(HUGE, HUGE))
    with pytest.raises(DatasetError, match=r"2\.jpg: image size: got 60000 x 60000"):
        open_dataset(tmp_path, annotated=False)
    assert len(open_dataset(tmp_path, annotated=False, skip_bad_records=True).skipped) == 2
