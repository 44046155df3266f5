"""A folder of images without annotations, as entries."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow.python.eager.context import eager_mode

from tuner.data.image_size import JPEG_MAGIC, check_pixels
from tuner.data.images import Entry, decode_image
from tuner.detections import GroundTruth
from tuner.errors import DatasetError

SUFFIXES = (".jpg", ".jpeg", ".png")


def find_images(folder: Path) -> list[Path]:
    """The JPEG and PNG files of a folder, by name."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())


def read_images(paths: list[Path]) -> Iterator[Entry | DatasetError]:
    """An entry for each file, numbered from 1, with no objects; in the place of a bad file what is wrong with it."""
    nothing = GroundTruth(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0, bool), np.zeros(0))
    for number, path in enumerate(paths, 1):
        where = str(path)
        try:
            encoded = Entry(number, path.name, where, 0, 0, nothing, path).read()
            height, width = _size(encoded, where)
        except DatasetError as error:
            yield error
        else:
            yield Entry(number, path.name, where, height, width, nothing, path)


def _size(encoded: bytes, where: str) -> tuple[int, int]:
    if not encoded.startswith(JPEG_MAGIC):
        return decode_image(encoded, where).shape[:2]
    try:
        with eager_mode():
            height, width, _ = tf.io.extract_jpeg_shape(encoded).numpy().tolist()
    except tf.errors.OpError:
        raise DatasetError(f"{where}: image does not decode: it is no whole JPEG file") from None
    check_pixels(height, width, where)
    return height, width
