"""Ranges on disk, named by what they depend on, so that a run that goes on need not calibrate again."""

import hashlib
import io
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.files import write_bytes
from tuner.quantization.ranges import Ranges, TensorRange


def range_file(folder: Path, dependencies: Iterable[str]) -> Path:
    """The file of the ranges that depend on `dependencies`: model hash, image hash, number of images."""
    name = hashlib.sha256("\n".join(dependencies).encode()).hexdigest()
    return folder / f"{name}.npz"


def save_ranges(path: Path, ranges: Ranges) -> None:
    """Write ranges as arrays, without pickle. Raises TunerError when the file cannot be written."""
    buffer = io.BytesIO()
    # numpy's own archives are packed four times as long, to save a tenth of the bytes.
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for tensor, observed in ranges.items():
            _write(archive, f"lows:{tensor}", observed.lows)
            _write(archive, f"highs:{tensor}", observed.highs)
            _write(archive, f"counts:{tensor}", observed.counts)
            _write(archive, f"shape:{tensor}", np.array(observed.shape, np.int64))
    write_bytes(path, buffer.getvalue())


def load_ranges(path: Path, tensors: Iterable[str]) -> Ranges | None:
    """Read ranges back, or None when the file is absent, damaged (zip checksums), or lacks one of `tensors`."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                tensor: TensorRange(
                    _read(archive, f"lows:{tensor}"),
                    _read(archive, f"highs:{tensor}"),
                    _read(archive, f"counts:{tensor}"),
                    tuple(_read(archive, f"shape:{tensor}").tolist()),
                )
                for tensor in tensors
            }
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error):
        return None


def _write(archive: zipfile.ZipFile, name: str, array: NDArray[Any]) -> None:
    content = io.BytesIO()
    np.lib.format.write_array(content, array, allow_pickle=False)
    archive.writestr(f"{name}.npy", content.getvalue())


def _read(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    # Whole, which checks the checksum, before anything in it is believed.
    array: NDArray[Any] = np.lib.format.read_array(io.BytesIO(archive.read(f"{name}.npy")), allow_pickle=False)
    return array
