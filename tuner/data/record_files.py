"""TFRecord files as entries: finding the shards of a set, and reading them past damaged records."""

import re
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import tensorflow as tf
from tensorflow.python.lib.io.tf_record import tf_record_random_reader

from tuner.data.images import Entry, decode_mask
from tuner.data.records import AnnotatedJpeg, decode_example
from tuner.errors import DatasetError
from tuner.masks import Masks, encode_masks

_SHARD = re.compile(r"(?P<stem>.+)-(?P<index>\d{5})-of-(?P<total>\d{5})(?P<suffix>\.\w+)?")
_SUFFIXES = {".record", ".records", ".tfrecord", ".tfrecords"}

# A record is its length (uint64), a checksum of the length (uint32), the content, a checksum of the content (uint32).
_LENGTH = struct.Struct("<Q")
_HEADER_BYTES = 12
_FRAME_BYTES = 16


def find_record_files(folder: Path) -> tuple[Path, ...]:
    """The record files of the one set in a folder, in shard order; empty when there are none.

    Raises DatasetError when the folder holds more than one set, or when shards are missing.
    """
    sets: dict[str, dict[int, Path]] = {}
    totals: dict[str, int] = {}
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        shard = _SHARD.fullmatch(path.name)
        if shard:
            name = f"{shard['stem']}-?????-of-{shard['total']}{shard['suffix'] or ''}"
            sets.setdefault(name, {})[int(shard["index"])] = path
            totals[name] = int(shard["total"])
        elif path.suffix in _SUFFIXES:
            sets[path.name], totals[path.name] = {0: path}, 1
    if len(sets) > 1:
        raise DatasetError(f"{folder}: holds several record sets; name one of {', '.join(sorted(sets))}")
    for name, files in sets.items():
        missing = sorted(set(range(totals[name])) - files.keys())
        if missing:
            raise DatasetError(f"{folder}: {name}: shard {missing[0]:05d} is missing; found {len(files)} of the shards")
    return tuple(path for files in sets.values() for path in files.values())


def read_record_files(
    paths: Sequence[Path], label_map: Mapping[str, int] | None, *, masks: bool = False
) -> Iterator[Entry | DatasetError]:
    """The records of the files in order; in the place of a bad record the DatasetError that tells what is wrong.

    Where a damaged record hides where the next one begins, the rest of its file is one error.
    masks: whether those of the objects are read, too.
    """
    position = 0
    for path in paths:
        for index, frame in enumerate(_read_frames(path)):
            where = f"{path}: record {index}"
            if isinstance(frame, str):
                yield DatasetError(f"{where}: {frame}")
            else:
                try:
                    image = decode_example(frame.content, where, position, label_map)
                    found = _masks(image, where) if masks else None
                except DatasetError as error:
                    yield error
                else:
                    yield _entry(image, found, frame, path, where)
            position += 1


class _Frame(NamedTuple):
    """The content of one record and where it begins in its file."""

    content: bytes
    offset: int


def _masks(image: AnnotatedJpeg, where: str) -> Masks:
    count, size = len(image.ground_truth), (image.height, image.width)
    if len(image.masks) != count:
        cure = "" if image.masks else "; records without masks can be judged by boxes: iouType bbox, --iou_type=bbox"
        raise DatasetError(f"{where}: image/object/mask: {len(image.masks)} masks for {count} boxes{cure}")
    decoded = [decode_mask(mask, where) for mask in image.masks]
    for mask in decoded:
        if mask.shape != size:
            raise DatasetError(f"{where}: image/object/mask: got a mask of {mask.shape}; the image is {size}")
    return encode_masks(decoded, *size)


def _entry(image: AnnotatedJpeg, masks: Masks | None, frame: _Frame, path: Path, where: str) -> Entry:
    return Entry(
        image_id=image.image_id,
        name=image.filename,
        where=where,
        height=image.height,
        width=image.width,
        ground_truth=replace(image.ground_truth, masks=masks),
        path=path,
        offset=frame.offset + frame.content.index(image.encoded),
        size=len(image.encoded),
        # Each name once in memory, however many objects it is of.
        category_names=tuple(map(sys.intern, image.category_names)),
    )


def _read_frames(path: Path) -> Iterator[_Frame | str]:
    """The records of a file, or what is wrong with them.

    TensorFlow believes a length whose checksum is right, and allocates it: none beyond the file's end is handed to it.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            reader = tf_record_random_reader(str(path))
            offset = 0
            while offset < size:
                file.seek(offset)
                header = file.read(_LENGTH.size)
                length = _LENGTH.unpack(header)[0] if len(header) == _LENGTH.size else size
                following = offset + _FRAME_BYTES + length
                try:
                    content = reader.read(offset)[0] if following <= size else None
                except (IndexError, tf.errors.DataLossError):
                    content = None
                if content is None:
                    yield f"is damaged at byte {offset}: truncated, or content and checksum differ"
                else:
                    yield _Frame(content, offset + _HEADER_BYTES)
                offset = following
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror or error}") from None
    except tf.errors.OpError as error:
        raise DatasetError(f"{path}: cannot be read: {error.message}") from None
