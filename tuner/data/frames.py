"""The records of one TFRecord file, or what is wrong with them.

A record is its length (uint64), a checksum of the length (uint32), the content, a checksum of the content (uint32),
all little-endian. A checksum is `rotate_right(crc32c(bytes), 15) + 0xa282ead8`, of 32 bits:
https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import tensorflow as tf
from tensorflow.python.lib.io.tf_record import tf_record_random_reader

from tuner.address import Address, Place
from tuner.data.images import map_ahead
from tuner.data.remote import look_up, read_range
from tuner.errors import DatasetError

_LENGTH = struct.Struct("<Q")
_CHECKSUM = struct.Struct("<I")
_HEADER_BYTES = 12
_FRAME_BYTES = 16

# Large enough that a request's latency costs little, small enough that the first image does not cost a whole file.
_CHUNK_BYTES = 2 * 2**20
_CHUNKS_AT_ONCE = 2


class Frame(NamedTuple):
    """The content of one record and where it begins in its file."""

    content: bytes
    offset: int


def read_frames(place: Place) -> Iterator[Frame | str]:
    """The records of a file in order, in the place of a damaged one what is wrong with it.

    Where it hides where the next one begins, the rest of the file is one damaged record.
    Raises DatasetError where the file cannot be read, or tells no size.
    """
    frames = _remote_frames(place) if isinstance(place, Address) else _local_frames(place)
    for content, offset in frames:
        if content is None:
            yield f"is damaged at byte {offset}: truncated, or content and checksum differ"
        else:
            yield Frame(content, offset + _HEADER_BYTES)


def _local_frames(path: Path) -> Iterator[tuple[bytes | None, int]]:
    """The content of each record, None where it is damaged, and where its frame begins.

    TensorFlow believes a length whose checksum is right, and allocates it: none beyond the file's end is handed to it.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            reader = tf_record_random_reader(str(path))
            offset = 0
            while offset < size:
                file.seek(offset)
                following = _following(offset, file.read(_LENGTH.size), size)
                try:
                    content = reader.read(offset)[0] if following <= size else None
                except (IndexError, tf.errors.DataLossError):
                    content = None
                yield content, offset
                offset = following
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror or error}") from None
    except tf.errors.OpError as error:
        raise DatasetError(f"{path}: cannot be read: {error.message}") from None


def _remote_frames(address: Address) -> Iterator[tuple[bytes | None, int]]:
    """As `_local_frames`, of a file that TensorFlow cannot reach. Each byte is fetched once."""
    size = look_up(address).size
    if size is None:
        raise DatasetError(f"{address}: cannot be read: the server does not tell the file's size")
    stream = _Stream(address, size)
    offset = 0
    while offset < size:
        header = stream.take(_HEADER_BYTES)
        following = _following(offset, header[: _LENGTH.size], size)
        content = None
        if following <= size and _is_whole(header[: _LENGTH.size], header[_LENGTH.size :]):
            body = stream.take(following - offset - _HEADER_BYTES)
            if _is_whole(body[: -_CHECKSUM.size], body[-_CHECKSUM.size :]):
                content = body[: -_CHECKSUM.size]
        yield content, offset
        stream.skip_to(min(following, size))
        offset = following


def _following(offset: int, length: bytes, size: int) -> int:
    """Where the next record begins: beyond the file's end where this one is cut off."""
    known = len(length) == _LENGTH.size
    return offset + _FRAME_BYTES + (_LENGTH.unpack(length)[0] if known else size)


def _is_whole(content: bytes, checksum: bytes) -> bool:
    import google_crc32c  # noqa: PLC0415 - only who names an address needs it

    crc: int = google_crc32c.value(content)
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    return checksum == _CHECKSUM.pack(masked)


class _Stream:
    """The bytes of a file from front to back, the next ones fetched while these are looked at."""

    def __init__(self, address: Address, size: int) -> None:
        def read(start: int) -> bytes:
            return read_range(address, start, min(start + _CHUNK_BYTES, size))

        self._chunks = map_ahead(read, range(0, size, _CHUNK_BYTES), threads=_CHUNKS_AT_ONCE)
        self._chunk = memoryview(b"")
        self._position = 0

    def take(self, count: int) -> bytes:
        """The next `count` bytes, or as many as are left."""
        taken = bytearray()
        while len(taken) < count and self._fill():
            part = self._chunk[: count - len(taken)]
            taken += part
            self._advance(len(part))
        return bytes(taken)

    def skip_to(self, position: int) -> None:
        """Go on from there, which lies ahead."""
        while self._position < position and self._fill():
            self._advance(min(position - self._position, len(self._chunk)))

    def _fill(self) -> bool:
        if not self._chunk:
            self._chunk = memoryview(next(self._chunks, b""))
        return len(self._chunk) > 0

    def _advance(self, count: int) -> None:
        self._chunk = self._chunk[count:]
        self._position += count
