"""What was computed once, on disk under the hash of all that it depends on; damaged or foreign files do not count."""

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.files import json_sha256, write_bytes, write_text

_DIGEST_BYTES = hashlib.sha256().digest_size
_DAMAGED = (OSError, ValueError, KeyError, EOFError, RuntimeError, TypeError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Cache:
    """A folder of results. Each is of one `kind`, and named by the hash of what it depends on.

    Each file has a checksum of its place and of all that it holds: one that was put in the place of another is foreign.
    reads: whether what earlier runs kept is of use.
    """

    folder: Path
    reads: bool = True

    def read_json(self, kind: str, dependencies: Iterable[str]) -> Any:
        """What `write_json` kept; None where it is absent or damaged."""
        if not self.reads:
            return None
        path = self._file(kind, dependencies, "json")
        try:
            envelope = json.loads(path.read_text("utf-8"))
            content = envelope["content"]
            return content if envelope["sha256"] == json_sha256([_place(path), content]) else None
        except _DAMAGED:
            return None

    def write_json(self, kind: str, dependencies: Iterable[str], content: object) -> None:
        """Keep a value of numbers, strings, lists and mappings. Raises TunerError when it cannot be written."""
        path = self._file(kind, dependencies, "json")
        envelope = {"sha256": json_sha256([_place(path), content]), "content": content}
        write_text(path, json.dumps(envelope) + "\n")

    def read_arrays(
        self, kind: str, dependencies: Iterable[str], *, always: bool = False
    ) -> dict[str, NDArray[Any]] | None:
        """What `write_arrays` kept; None where it is absent or damaged.

        always: also where what earlier runs kept is of no use, for what this run has kept.
        """
        if not (self.reads or always):
            return None
        path = self._file(kind, dependencies, "npz")
        try:
            # Nothing in it is believed before all of it is known to be what was written.
            content = path.read_bytes()
            packed, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
            if digest != _digest(path, packed):
                return None
            with zipfile.ZipFile(io.BytesIO(packed)) as archive:
                return {name.removesuffix(".npy"): _read(archive, name) for name in archive.namelist()}
        except _DAMAGED:
            return None

    def write_arrays(self, kind: str, dependencies: Iterable[str], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Keep arrays by name, without pickle. Raises TunerError when they cannot be written."""
        buffer = io.BytesIO()
        # numpy's own archives are packed four times as long, to save a tenth of the bytes.
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name, array in arrays.items():
                content = io.BytesIO()
                np.lib.format.write_array(content, np.asarray(array), allow_pickle=False)
                archive.writestr(f"{name}.npy", content.getvalue())
        path, packed = self._file(kind, dependencies, "npz"), buffer.getvalue()
        # Readers of archives pass over what follows their end.
        write_bytes(path, packed + _digest(path, packed))

    def _file(self, kind: str, dependencies: Iterable[str], suffix: str) -> Path:
        name = hashlib.sha256("\n".join(dependencies).encode()).hexdigest()
        return self.folder / kind / f"{name}.{suffix}"


def _place(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def _digest(path: Path, content: bytes) -> bytes:
    return hashlib.sha256(_place(path).encode() + content).digest()


def _read(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    array: NDArray[Any] = np.lib.format.read_array(io.BytesIO(archive.read(name)), allow_pickle=False)
    return array
