"""Encoded images: where their bytes lie, decoding in parallel, and decoded images kept within a memory budget."""

import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.python.eager.context import eager_mode

from tuner.address import Address, Place
from tuner.data.image_size import check_claimed_size
from tuner.data.kept_ranges import kept_ranges
from tuner.data.remote import read_range
from tuner.detections import GroundTruth
from tuner.errors import DatasetError

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

MOST_THREADS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True, slots=True)
class Entry:
    """One annotated image whose bytes are still in their file: plain values, as good in another process or machine.

    where: names the image in error messages. height, width: in pixels, as annotated.
    path, offset, size: the encoded image is `size` bytes at `offset` of `path`; size -1 means the rest of the file.
    category_names: of the annotated objects, in their order; empty where a record carries none, and of other files.
    sha256: of the encoded image, in hex, where the file is remote and was read when the set was opened; else "".
    """

    image_id: int
    name: str
    where: str
    height: int
    width: int
    ground_truth: GroundTruth
    path: Place
    offset: int = 0
    size: int = -1
    category_names: tuple[str, ...] = ()
    sha256: str = ""

    def read(self) -> bytes:
        """The encoded image; of a remote file just these bytes are fetched, once: see `kept_ranges`.

        Raises DatasetError when the file cannot be read, and when a remote one has changed since the set was opened.
        """
        if isinstance(self.path, Address):
            return self._fetch(self.path)
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                return file.read(self.size)
        except OSError as error:
            raise DatasetError(f"{self.where}: {self.path} cannot be read: {error.strerror or error}") from error

    def _fetch(self, address: Address) -> bytes:
        ranges = kept_ranges()
        encoded = ranges.get(self.sha256)
        if encoded is None:
            encoded = read_range(address, self.offset, self.offset + self.size)
            if hashlib.sha256(encoded).hexdigest() != self.sha256:
                raise DatasetError(f"{self.where}: the file has changed since the set was opened")
            ranges.put(self.sha256, encoded)
        return encoded


def decode_image(encoded: bytes, where: str) -> NDArray[np.uint8]:
    """Decode a JPEG, PNG or GIF file to [H, W, 3] uint8, RGB; grey and CMYK images become RGB.

    JPEG pixels are those of libjpeg's accurate integer transform, bit for bit what Pillow gives.
    Raises DatasetError when the bytes are no such file, only a part of one, or one of too many pixels.
    """
    try:
        check_claimed_size(encoded, where)
        # TensorFlow's default transform is a faster approximation, off by 1.2 grey levels on average (24 at most)
        # on COCO images, and not measurably faster here.
        # A caller's session, or code of LPOT's time, may have turned eager mode off.
        with eager_mode():
            image: NDArray[np.uint8] = tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE").numpy()
    except tf.errors.OpError as error:
        reason = error.message.partition("}} ")[2].partition(" [Op:")[0] or error.message
        raise DatasetError(f"{where}: image does not decode: {reason}") from None
    return image


def decode_mask(encoded: bytes, where: str) -> NDArray[np.uint8]:
    """Decode a PNG file of one channel to [H, W] uint8. Raises DatasetError as `decode_image` does."""
    try:
        check_claimed_size(encoded, f"{where}: image/object/mask")
        with eager_mode():
            mask: NDArray[np.uint8] = tf.io.decode_png(encoded, channels=1).numpy()[:, :, 0]
    except tf.errors.OpError:
        raise DatasetError(f"{where}: image/object/mask: is no PNG file") from None
    return mask


class ImageStore:
    """Decodes images and keeps the first ones that fit its budget.

    A data set is read from front to back again and again, so keeping the first images that fit serves more reads
    than dropping the least recently used ones, which would serve none.
    """

    def __init__(self, budget_bytes: int) -> None:
        self._free_bytes = budget_bytes
        self._kept: dict[int, NDArray[np.uint8]] = {}
        self._lock = threading.Lock()

    def load(self, entry: Entry) -> NDArray[np.uint8]:
        """The image of `entry`, [H, W, 3] uint8 RGB, read-only.

        Raises DatasetError when it cannot be read or decoded, or has another size than annotated.
        """
        kept = self._kept.get(entry.image_id)
        if kept is not None:
            return kept
        image = decode_image(entry.read(), entry.where)
        if image.shape[:2] != (entry.height, entry.width):
            raise DatasetError(
                f"{entry.where}: the image is {image.shape[0]} px high and {image.shape[1]} px wide; "
                f"annotated are height {entry.height}, width {entry.width}"
            )
        image.flags.writeable = False
        with self._lock:
            if entry.image_id not in self._kept and image.nbytes <= self._free_bytes:
                self._kept[entry.image_id] = image
                self._free_bytes -= image.nbytes
        return image


def map_ahead(
    function: Callable[[_Item], _Result], items: Iterable[_Item], threads: int = MOST_THREADS
) -> Iterator[_Result]:
    """`map` in several threads, in the order of `items`, at most two results per thread ahead of the reader.

    What `function` or `items` raises is raised in its turn, after the results before it. Work that has not begun is
    dropped, and the threads end, when the reader stops.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="ahead") as pool:
        pending: deque[Future[_Result]] = deque()
        try:
            for future in _submit_each(pool, function, items):
                pending.append(future)
                if len(pending) > 2 * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _submit_each(
    pool: ThreadPoolExecutor, function: Callable[[_Item], _Result], items: Iterable[_Item]
) -> Iterator[Future[_Result]]:
    try:
        for item in items:
            yield pool.submit(function, item)
    except Exception as error:
        fault: Future[_Result] = Future()
        fault.set_exception(error)
        yield fault
