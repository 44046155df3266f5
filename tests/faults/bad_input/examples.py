"""Record files with damaged frames, and records that parse and are wrong; image files of every kind."""

import io
import struct
from collections.abc import Iterator, Sequence
from random import Random

import numpy as np
import tensorflow as tf
from PIL import Image

from tests.faults.bad_input.mutations import BYTES

Example = tf.train.Example
Values = Sequence[bytes] | Sequence[int] | Sequence[float] | None
_SIDES = [f"image/object/bbox/{side}" for side in ("ymin", "xmin", "ymax", "xmax")]
_HEADER = 12


def wrong_examples(record: bytes, random: Random) -> Iterator[tuple[str, bytes]]:
    """The changed records of a serialised one, each with its name."""
    keys = sorted(Example.FromString(record).features.feature)
    for key in keys:
        yield f"{key} missing", _changed(record, key, None)
        yield f"{key} empty", _changed(record, key, [])
        kind = Example.FromString(record).features.feature[key].WhichOneof("kind")
        yield f"{key} of another kind", _changed(record, key, [1.5] if kind != "float_list" else [b"x"])
        if key == _SIDES[1]:
            for value in (float("nan"), float("inf"), -1.0, 2.0, 3e38):
                yield f"{key} is {value}", _changed(record, key, [value] * _count(record))
            yield f"{key} too short", _changed(record, key, [0.0])
    for key in ("image/height", "image/width"):
        for size in (0, -1, 1, 33, 2**31, 2**63 - 1, -(2**63)):
            yield f"{key} is {size}", _changed(record, key, [size])
        yield f"two of {key}", _changed(record, key, [32, 32])
    for name, content in {
        "a word": b"x",
        "no text": b"\xff\xfe",
        "2**64": b"18446744073709551616",
        "-1": b"-1",
    }.items():
        yield f"source_id is {name}", _changed(record, "image/source_id", [content])
    yield "filename is no text", _changed(record, "image/filename", [b"\xff\0\x1b[31m"])
    for number in (0, -1, 2**31, 2**63 - 1, -(2**63)):
        labels = _changed(record, "image/object/class/label", [number] * _count(record))
        yield f"labels are {number}", _changed(labels, "image/object/class/text", None)
    for word in (b"", b"nobody", b"\xff", b"n" * 70_000):
        yield f"names are {word[:9]!r}", _changed(record, "image/object/class/text", [word] * _count(record))
    for area in (float("nan"), float("inf"), -1.0):
        yield f"areas are {area}", _changed(record, "image/object/area", [area] * _count(record))
    yield "is_crowd is 2**62", _changed(record, "image/object/is_crowd", [2**62] * _count(record))
    yield "no objects", _without_objects(record)
    yield "nothing at all", b""
    yield "no Example", b"\x0a\xff\xff\xff\xff\x7f"
    for name, damage in BYTES.items():
        yield name, damage(record, random)


def wrong_images(record: bytes, random: Random) -> Iterator[tuple[str, bytes]]:
    """The record with other bytes in the place of its JPEG."""
    jpeg = Example.FromString(record).features.feature["image/encoded"].bytes_list.value[0]
    pixels = np.random.default_rng(5).integers(0, 256, (32, 32, 3), np.uint8)
    images = {
        "empty": b"",
        "one byte": b"\xff",
        "its beginning alone": jpeg[:3],
        "text": b"not an image",
        "CMYK": _encoded(Image.fromarray(pixels).convert("CMYK"), "JPEG"),
        "grey": _encoded(Image.fromarray(pixels).convert("L"), "JPEG"),
        "progressive": _encoded(Image.fromarray(pixels), "JPEG", progressive=True),
        "PNG": _encoded(Image.fromarray(pixels), "PNG"),
        "grey PNG": _encoded(Image.fromarray(pixels[..., 0]), "PNG"),
        "PNG of 16 bits": _encoded(Image.fromarray(pixels[..., 0].astype(np.uint16) * 257), "PNG"),
        "PNG with transparency": _encoded(Image.fromarray(pixels).convert("RGBA"), "PNG"),
        "PNG of one bit": _encoded(Image.fromarray(pixels).convert("1"), "PNG"),
        "GIF": _encoded(Image.fromarray(pixels), "GIF"),
        "GIF of two frames": _encoded(
            Image.fromarray(pixels), "GIF", save_all=True, append_images=[Image.fromarray(255 - pixels)]
        ),
        "BMP": _encoded(Image.fromarray(pixels), "BMP"),
        "WebP": _encoded(Image.fromarray(pixels), "WEBP"),
        "of another size": _encoded(Image.fromarray(pixels[:20]), "JPEG"),
        "a JPEG that claims 65,500 x 65,500": _claiming(jpeg, 65_500, 65_500),
        "a JPEG that claims 0 x 0": _claiming(jpeg, 0, 0),
        "a JPEG that claims 9,000 x 9,000": _claiming(jpeg, 9_000, 9_000),
        "without its end": jpeg[:-2],
        "two of them": jpeg + jpeg,
    }
    for name, damage in BYTES.items():
        for turn in range(3):
            images[f"{name}, {turn}"] = damage(jpeg, random)
    for name, image in images.items():
        yield name, _changed(record, "image/encoded", [image])


def wrong_frames(records: Sequence[bytes], random: Random) -> Iterator[tuple[str, bytes]]:
    """Files whose frames are damaged: lengths and checksums."""
    sound = frame_all(records)
    first = len(frame(records[0]))
    yield "a bit of the first length", bytes([sound[0] ^ 4]) + sound[1:]
    yield "a bit of the first content", sound[:20] + bytes([sound[20] ^ 1]) + sound[21:]
    yield "a bit of the second content", sound[: first + 20] + bytes([sound[first + 20] ^ 1]) + sound[first + 21 :]
    yield "a bit of the last checksum", sound[:-1] + bytes([sound[-1] ^ 1])
    for length in (0, 1, 2**20, 2**31, 2**40, 2**63, 2**64 - 1, 2**64 - 20):
        header = struct.pack("<Q", length)
        yield f"a first length of {length} with its checksum", header + _checksum(header) + sound[_HEADER:]
        yield f"a second length of {length}", sound[:first] + header + sound[first + 8 :]
    yield "a frame of nothing", frame(b"") + sound
    yield "cut in a header", sound[: first + 5]
    yield "cut in a content", sound[: first + 50]
    yield "bytes behind the last", sound + b"\0" * 7
    yield "the same records twice", sound + sound
    yield "a header alone", sound[:_HEADER]
    yield "compressed", b"\x1f\x8b\x08\0" + sound
    for name, damage in BYTES.items():
        for turn in range(2):
            yield f"{name}, {turn}", damage(sound, random)


def many_damaged_frames(record: bytes, count: int) -> bytes:
    """A sound record, `count` damaged small ones, and a sound one."""
    damaged = frame(b"x" * 40)[:-1] + b"!"
    return frame(record) + damaged * count + frame(_changed(record, "image/source_id", [b"77"]))


def frame_all(records: Sequence[bytes]) -> bytes:
    """The records as a file."""
    return b"".join(map(frame, records))


def frame(content: bytes) -> bytes:
    """One record as it lies in a file."""
    length = struct.pack("<Q", len(content))
    return length + _checksum(length) + content + _checksum(content)


def _changed(record: bytes, key: str, values: Values) -> bytes:
    example = Example.FromString(record)
    feature = example.features.feature[key]
    feature.Clear()
    if values is None:
        del example.features.feature[key]
    elif all(isinstance(value, bytes) for value in values):
        feature.bytes_list.value.extend(values)
    elif all(isinstance(value, int) for value in values):
        feature.int64_list.value.extend(values)
    else:
        feature.float_list.value.extend(values)
    return bytes(example.SerializeToString(deterministic=True))


def _without_objects(record: bytes) -> bytes:
    for key in [key for key in Example.FromString(record).features.feature if "/object/" in key]:
        record = _changed(record, key, None)
    return record


def _count(record: bytes) -> int:
    return len(Example.FromString(record).features.feature[_SIDES[0]].float_list.value)


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    written = io.BytesIO()
    image.save(written, kind, **options)
    return written.getvalue()


def _claiming(jpeg: bytes, height: int, width: int) -> bytes:
    """The JPEG with another size in its header."""
    at = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:at] + struct.pack(">HH", height, width) + jpeg[at + 4 :]


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        entry = byte
        for _ in range(8):
            entry = (entry >> 1) ^ (0x82F63B78 if entry & 1 else 0)
        table.append(entry)
    return table


_TABLE = _crc_table()


def _checksum(content: bytes) -> bytes:
    """CRC-32C, masked as TFRecords have it."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)
