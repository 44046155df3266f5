"""The size that an encoded image claims, read from its header: known before anything is decoded."""

import struct

import tensorflow as tf

from tuner.errors import DatasetError

JPEG_MAGIC = b"\xff\xd8\xff"
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_GIF_MAGIC = (b"GIF87a", b"GIF89a")

# A file of some kilobytes can claim any size, and is decoded to all of it. 100 megapixels are 0.3 GB, and 1.2 GB as the
# float32 that a detector makes of them; the images of COCO have 0.3 megapixels, those of large cameras 50 to 100.
MOST_PIXELS = 100_000_000


def check_pixels(height: int, width: int, where: str) -> None:
    """Raise DatasetError for an image of more than MOST_PIXELS. where: names it in the message."""
    if height * width > MOST_PIXELS:
        raise DatasetError(
            f"{where}: image size: got {height} x {width}, {height * width / 1e6:,.0f} megapixels; "
            f"expected at most {MOST_PIXELS // 10**6}"
        )


def check_claimed_size(encoded: bytes, where: str) -> None:
    """Raise DatasetError for a JPEG, PNG or GIF file that would be decoded to more than MOST_PIXELS.

    Passes over what is no such file. Raises tf.errors.OpError for a JPEG file without a header.
    """
    if encoded.startswith(JPEG_MAGIC):
        height, width, _ = tf.io.extract_jpeg_shape(encoded).numpy().tolist()
        check_pixels(height, width, where)
    elif encoded.startswith(_PNG_MAGIC) and len(encoded) >= 24:
        width, height = struct.unpack_from(">II", encoded, 16)
        check_pixels(height, width, where)
    elif encoded.startswith(_GIF_MAGIC):
        check_pixels(*_size_of_frames(encoded), where)


def _size_of_frames(gif: bytes) -> tuple[int, int]:
    """The height of all frames of a GIF file together, and their width: each is decoded at the size of the largest."""
    heights, widths = [0], [0]
    frames, position = 0, 0
    try:
        width, height, flags = struct.unpack_from("<HHB", gif, 6)
        heights.append(height)
        widths.append(width)
        position = 13 + _palette_bytes(flags)
        while gif[position] in (0x21, 0x2C):
            if gif[position] == 0x2C:
                width, height, flags = struct.unpack_from("<HHB", gif, position + 5)
                heights.append(height)
                widths.append(width)
                frames += 1
                position += 11 + _palette_bytes(flags)
            else:
                position += 2
            while gif[position]:
                position += gif[position] + 1
            position += 1
    except (IndexError, struct.error):
        pass  # Cut off: what is there so far counts, and the decoder tells.
    return max(heights) * max(1, frames), max(widths)


def _palette_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0
