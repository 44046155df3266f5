"""TFRecord files as entries: finding the files of a set, and reading them past damaged records."""

import glob
import hashlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath

from tuner.address import Address, Place
from tuner.data import remote
from tuner.data.frames import Frame, read_frames
from tuner.data.images import Entry, decode_mask
from tuner.data.kept_ranges import kept_ranges
from tuner.data.records import AnnotatedJpeg, decode_example
from tuner.errors import DatasetError, did_you_mean
from tuner.masks import Masks, encode_masks

_SHARD = re.compile(r"(?P<stem>.+)-(?P<index>\d{5})-of-(?P<total>\d{5})(?P<suffix>\.\w+)?")
_SUFFIXES = {".record", ".records", ".tfrecord", ".tfrecords"}


def find_records(location: Place) -> tuple[Place, ...]:
    """The record files that a location names: a file, a folder with the shards of one set, or a pattern.

    Empty for a local folder without records. Raises DatasetError as `find_record_files`, and where nothing is there.
    """
    if isinstance(location, Address):
        return _find_remote(location)
    if location.is_dir():
        return find_record_files(location)
    if location.is_file():
        return (location,)
    found = tuple(Path(name) for name in sorted(glob.glob(str(location))))  # noqa: PTH207 - absolute patterns too
    if not found:
        beside = [path.name for path in location.parent.iterdir()] if location.parent.is_dir() else []
        raise DatasetError(f"{location}: no such file or folder{did_you_mean(location.name, beside)}")
    return found


def find_record_files(folder: Path) -> tuple[Place, ...]:
    """The record files of the one set in a folder, in shard order; empty when there are none.

    Raises DatasetError when the folder holds more than one set, or when shards are missing.
    """
    return _one_set(folder, sorted(path for path in folder.iterdir() if path.is_file()))


def _find_remote(location: Address) -> tuple[Place, ...]:
    try:
        if remote.is_pattern(location):
            return tuple(remote.files_like(location))
        if not remote.look_up(location).is_folder:
            return (location,)
    except remote.NotThere as error:
        raise DatasetError(f"{error}{did_you_mean(location.name, remote.names_beside(location))}") from None
    found = _one_set(location, remote.files_in(location))
    if not found:
        raise DatasetError(
            f"{location}: holds no TFRecords (*.record, *.tfrecord, or shards); of addresses nothing else is read"
        )
    return found


def _one_set(folder: Place, files_by_name: Sequence[Place]) -> tuple[Place, ...]:
    sets: dict[str, dict[int, Place]] = {}
    totals: dict[str, int] = {}
    for path in files_by_name:
        shard = _SHARD.fullmatch(path.name)
        if shard:
            name = f"{shard['stem']}-?????-of-{shard['total']}{shard['suffix'] or ''}"
            sets.setdefault(name, {})[int(shard["index"])] = path
            totals[name] = int(shard["total"])
        elif PurePath(path.name).suffix in _SUFFIXES:
            sets[path.name], totals[path.name] = {0: path}, 1
    if len(sets) > 1:
        raise DatasetError(f"{folder}: holds several record sets; name one of {', '.join(sorted(sets))}")
    for name, files in sets.items():
        missing = sorted(set(range(totals[name])) - files.keys())
        if missing:
            raise DatasetError(f"{folder}: {name}: shard {missing[0]:05d} is missing; found {len(files)} of the shards")
    return tuple(path for files in sets.values() for path in files.values())


def read_record_files(
    paths: Sequence[Place], label_map: Mapping[str, int] | None, *, masks: bool = False
) -> Iterator[Entry | DatasetError]:
    """The records of the files in order; in the place of a bad record the DatasetError that tells what is wrong.

    Where a damaged record hides where the next one begins, the rest of its file is one error.
    masks: whether those of the objects are read, too.
    """
    position = 0
    for path in paths:
        for index, frame in enumerate(read_frames(path)):
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


def _entry(image: AnnotatedJpeg, masks: Masks | None, frame: Frame, path: Place, where: str) -> Entry:
    sha256 = ""
    if isinstance(path, Address):
        # It has just come over the network: neither the hash of the set nor the first evaluation needs it again.
        sha256 = hashlib.sha256(image.encoded).hexdigest()
        kept_ranges().put(sha256, image.encoded)
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
        sha256=sha256,
    )
