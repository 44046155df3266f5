"""TFRecord files as entries: finding the shards of a set, and reading them past damaged records."""

import re
import shutil
import struct
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import tensorflow as tf
from tensorflow.python.eager.context import eager_mode

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
        for index, frame in enumerate(_read_frames(path, path, 0)):
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


def _contents(path: Path) -> Iterator[bytes]:
    """What the records of a file hold. Between two of them eager mode is as the caller has it."""
    with eager_mode():
        contents = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
    while True:
        with eager_mode():
            content = next(contents, None)
        if content is None:
            return
        yield content


def _read_frames(path: Path, named: Path, base: int) -> Iterator[_Frame | str]:
    """The records of a file, or what is wrong with them.

    base: what lies before `path`'s first byte in the file `named`, of which `path` may be the tail.
    """
    offset = 0
    try:
        for content in _contents(path):
            yield _Frame(content, base + offset + _HEADER_BYTES)
            offset += _FRAME_BYTES + len(content)
        if offset == path.stat().st_size:
            return
        # TensorFlow takes a file that breaks off within a record's header for one that ends before it.
    except tf.errors.DataLossError:
        pass
    except tf.errors.OpError as error:
        raise DatasetError(f"{named}: cannot be read: {error.message}") from None
    yield f"is damaged at byte {base + offset}: truncated, or content and checksum differ"
    # Nor does it read on behind a damaged record, and cannot begin in the middle of a file.
    following = offset + _FRAME_BYTES + _length_at(path, offset)
    if following < path.stat().st_size:
        with tempfile.TemporaryDirectory() as scratch, path.open("rb") as file:
            tail = Path(scratch, "tail")
            file.seek(following)
            with tail.open("wb") as copy:
                shutil.copyfileobj(file, copy)
            yield from _read_frames(tail, named, base + following)


def _length_at(path: Path, offset: int) -> int:
    with path.open("rb") as file:
        file.seek(offset)
        header = file.read(_LENGTH.size)
    return int(_LENGTH.unpack(header)[0]) if len(header) == _LENGTH.size else 0
