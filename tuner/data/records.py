"""One annotated image as a TFRecord in the layout of the TF Object Detection API, and back.

Keys and types are those of `create_coco_tf_record`. Its original version writes `image/object/class/text` without
`image/object/class/label`; later versions write both, as is done here. Both are read.
"""

import hashlib
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from tuner.data.annotations import check_ground_truth
from tuner.data.coco_categories import COCO_LABEL_MAP
from tuner.data.image_size import JPEG_MAGIC, check_pixels
from tuner.data.label_map import side_by_side
from tuner.detections import GroundTruth
from tuner.errors import DatasetError, did_you_mean

_SIDES = ("ymin", "xmin", "ymax", "xmax")
_IMAGE_ID = re.compile(r"[0-9]{1,18}")  # what fits the evaluators' int64


@dataclass(frozen=True, slots=True)
class AnnotatedJpeg:
    """One encoded image with its annotated objects.

    encoded: the JPEG file's bytes. height, width: in pixels.
    category_names: N names, in the order of `ground_truth`; empty where a record carries none.
    masks: N PNG files [H, W] of 0 and 1, or empty.
    """

    encoded: bytes = field(repr=False)
    height: int
    width: int
    image_id: int
    filename: str
    ground_truth: GroundTruth
    category_names: tuple[str, ...] = ()
    masks: tuple[bytes, ...] = field(default=(), repr=False)


def encode_example(image: AnnotatedJpeg) -> bytes:
    """The serialised tf.train.Example of one image; equal images give equal bytes.

    Boxes and areas become float32. Raises DatasetError when the bytes are no JPEG, or when names or masks do not
    pair with the objects.
    """
    if not image.encoded.startswith(JPEG_MAGIC):
        raise DatasetError(f"{image.filename}: image/encoded: begins with {image.encoded[:4]!r}; expected a JPEG file")
    truth = image.ground_truth
    if len(image.category_names) != len(truth) or len(image.masks) not in (0, len(truth)):
        raise DatasetError(
            f"{image.filename}: {len(truth)} objects need as many category names and none or as many masks; "
            f"got {len(image.category_names)} names, {len(image.masks)} masks"
        )
    features = {
        "image/height": _int64s([image.height]),
        "image/width": _int64s([image.width]),
        "image/filename": _bytes([image.filename.encode()]),
        "image/source_id": _bytes([str(image.image_id).encode()]),
        "image/key/sha256": _bytes([hashlib.sha256(image.encoded).hexdigest().encode()]),
        "image/encoded": _bytes([image.encoded]),
        "image/format": _bytes([b"jpeg"]),
        "image/object/class/text": _bytes([name.encode() for name in image.category_names]),
        "image/object/class/label": _int64s(truth.category_ids),
        "image/object/is_crowd": _int64s(truth.is_crowd),
        "image/object/area": _floats(truth.areas_px),
    }
    for column, side in enumerate(_SIDES):
        features[f"image/object/bbox/{side}"] = _floats(truth.boxes[:, column])
    if image.masks:
        features["image/object/mask"] = _bytes(image.masks)
    example = tf.train.Example(features=tf.train.Features(feature=features))
    serialized: bytes = example.SerializeToString(deterministic=True)
    return serialized


def decode_example(
    serialized: bytes, where: str, position: int = 0, label_map: Mapping[str, int] | None = None
) -> AnnotatedJpeg:
    """Read one record back.

    where: names the record in error messages. position: of the record in its set, from 0; a record whose source_id
    is not a number of at most 18 digits gets position + 1 as its image id.
    label_map: category name -> id. Where it is given the names decide; without it the labels do, and records that
    carry names alone are read by COCO's own names. Missing is_crowd means 0, missing area the area of the box.

    Raises DatasetError naming the key for bytes that are no tf.train.Example, missing or wrongly typed keys, lists
    of unequal length, unknown category names, and boxes that `check_ground_truth` refuses.
    """
    try:
        record = _Record(tf.train.Example.FromString(serialized).features.feature, where)
    except DecodeError:
        raise DatasetError(f"{where}: is no tf.train.Example") from None
    height, width = record.only_int64("image/height"), record.only_int64("image/width")
    check_pixels(height, width, where)
    sides = [record.floats(f"image/object/bbox/{side}") for side in _SIDES]
    count = len(sides[0])
    names = tuple(_text(name) for name in record.strings("image/object/class/text"))
    areas, crowds = record.floats("image/object/area"), record.int64s("image/object/is_crowd")
    ids = _category_ids(names, record.int64s("image/object/class/label"), label_map, where)
    masks = tuple(record.strings("image/object/mask"))
    lists: dict[str, Sequence[object] | NDArray[np.generic]] = {
        **{f"bbox/{side}": values for side, values in zip(_SIDES, sides, strict=True)},
        "class": ids,
        **({"area": areas} if len(areas) else {}),
        **({"is_crowd": crowds} if len(crowds) else {}),
        **({"mask": masks} if masks else {}),
    }
    for key, values in lists.items():
        if len(values) != count:
            raise DatasetError(f"{where}: image/object/{key}: {len(values)} values for {count} boxes")
    boxes = np.stack(sides, axis=1)
    truth = GroundTruth(
        boxes=boxes,
        category_ids=ids,
        is_crowd=crowds.astype(bool) if len(crowds) else np.zeros(count, bool),
        areas_px=areas if len(areas) else np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) * height * width,
    )
    check_ground_truth(truth, height, width, where)
    source_id = _text(record.only_string("image/source_id", default=b""))
    return AnnotatedJpeg(
        encoded=record.only_string("image/encoded"),
        height=height,
        width=width,
        image_id=int(source_id) if _IMAGE_ID.fullmatch(source_id) else position + 1,
        filename=_text(record.only_string("image/filename", default=source_id.encode())),
        ground_truth=truth,
        category_names=names,
        masks=masks,
    )


def write_records(path: Path, images: Iterable[AnnotatedJpeg], shards: int = 1) -> int:
    """Write one record for each image and return how many; a reader sees the old files or the new ones, never a part.

    shards: above 1, records go in turn to the files `path-00000-of-00010` and so on.
    Raises DatasetError when there are no images, or when the files cannot be written.
    """
    names = [path.name] if shards == 1 else [f"{path.name}-{i:05d}-of-{shards:05d}" for i in range(shards)]
    count = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
            with ExitStack() as stack:
                writers = [stack.enter_context(tf.io.TFRecordWriter(str(Path(scratch, name)))) for name in names]
                for count, image in enumerate(images, start=1):
                    writers[(count - 1) % shards].write(encode_example(image))
            if count < shards:
                raise DatasetError(f"{path}: {count} images cannot fill {shards} record file(s)")
            for name in names:
                Path(scratch, name).replace(path.with_name(name))
    except OSError as error:
        raise DatasetError(f"{path}: cannot be written: {error.strerror or error}") from error
    except tf.errors.OpError as error:
        raise DatasetError(f"{path}: cannot be written: {error.message}") from error
    return count


class _Record:
    """The features of one record, by key, with their types checked."""

    def __init__(self, features: Mapping[str, tf.train.Feature], where: str) -> None:
        self._features = features
        self._where = where

    def strings(self, key: str) -> list[bytes]:
        return list(self._values(key, "bytes_list"))

    def int64s(self, key: str) -> NDArray[np.int64]:
        return np.array(self._values(key, "int64_list"), np.int64)

    def floats(self, key: str) -> NDArray[np.float64]:
        return np.array(self._values(key, "float_list"), np.float64)

    def only_string(self, key: str, default: bytes | None = None) -> bytes:
        values = self.strings(key)
        if not values and default is not None:
            return default
        self._check_single(key, len(values))
        return values[0]

    def only_int64(self, key: str) -> int:
        values = self.int64s(key)
        self._check_single(key, len(values))
        return int(values[0])

    def _check_single(self, key: str, count: int) -> None:
        if count != 1:
            raise DatasetError(f"{self._where}: {key}: expected one value, got {count}")

    def _values(self, key: str, kind: str) -> Iterable[Any]:
        if key not in self._features:
            return ()
        found = self._features[key].WhichOneof("kind")
        if found not in (kind, None):
            raise DatasetError(f"{self._where}: {key}: got a {found}; expected a {kind}")
        values: Iterable[Any] = getattr(self._features[key], kind).value
        return values


def _category_ids(
    names: Sequence[str], labels: NDArray[np.int64], label_map: Mapping[str, int] | None, where: str
) -> NDArray[np.int64]:
    if not names or (label_map is None and len(labels)):
        return labels
    known = COCO_LABEL_MAP if label_map is None else label_map
    if known.keys().isdisjoint(names):
        both = side_by_side("its categories", names, "the label map's", known)
        raise DatasetError(
            f"{where}: image/object/class/text: {both}{did_you_mean(names[0], known)}: "
            "see evaluation.accuracy.metric.COCOmAP.anno_path"
        )
    for name in names:
        if name not in known:
            raise DatasetError(
                f"{where}: image/object/class/text: {name!r} is not in the label map of {len(known)} names"
                f"{did_you_mean(name, known)}"
            )
    return np.array([known[name] for name in names], np.int64)


def _text(value: bytes) -> str:
    return value.decode(errors="backslashreplace")


def _bytes(values: Iterable[bytes]) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))


def _int64s(values: Iterable[int] | NDArray[np.generic]) -> tf.train.Feature:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=[int(value) for value in values]))


def _floats(values: NDArray[np.float64]) -> tf.train.Feature:
    return tf.train.Feature(float_list=tf.train.FloatList(value=values))
