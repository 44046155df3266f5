"""Ranges on disk, named by what they depend on, so that a run that goes on need not calibrate again."""

import hashlib
import io
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from tuner.files import write_bytes
from tuner.quantization.ranges import Ranges, TensorRange


def range_file(folder: Path, dependencies: Iterable[str]) -> Path:
    """The file of the ranges that depend on `dependencies`: model hash, image hash, number of images."""
    name = hashlib.sha256("\n".join(dependencies).encode()).hexdigest()
    return folder / f"{name}.npz"


def save_ranges(path: Path, ranges: Ranges) -> None:
    """Write ranges as arrays, without pickle. Raises TunerError when the file cannot be written."""
    arrays = {
        f"{kind}:{tensor}": values
        for tensor, observed in ranges.items()
        for kind, values in (("lows", observed.lows), ("highs", observed.highs))
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_bytes(path, buffer.getvalue())


def load_ranges(path: Path, tensors: Iterable[str]) -> Ranges | None:
    """Read ranges back, or None when the file is absent, damaged (zip checksums), or lacks one of `tensors`."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {tensor: TensorRange(arrays[f"lows:{tensor}"], arrays[f"highs:{tensor}"]) for tensor in tensors}
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error):
        return None
