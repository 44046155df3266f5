"""Files that are either whole or absent: written under a temporary name, then renamed."""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tuner.errors import ConfigError, TunerError

_REPLACED = "replaced"


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that a reader sees the old file or the new one, never a part.

    Raises TunerError naming the path when the folder cannot be written or the disk is full.
    """

    def fill(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    _write_then_rename(path, fill)


def write_text(path: Path, content: str) -> None:
    """Write UTF-8 text as `write_bytes` does."""
    write_bytes(path, content.encode())


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object and, under `sha256`, the checksum of all the rest, as `write_bytes` does."""
    write_text(path, json.dumps({**content, "sha256": json_sha256(content)}, indent=2) + "\n")


def read_sealed(path: Path, schema: int) -> dict[str, Any]:
    """What `write_sealed` wrote, without the checksum. A file from before there was one is believed.

    Raises FileNotFoundError, and ConfigError for what cannot be read, is damaged, or has not this `schema`.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: cannot be read: expected an object, got {type(content).__name__}")
    if content.get("schema", schema) != schema:
        raise ConfigError(f"{path}: got schema {content['schema']!r}; this version of tuner reads schema {schema}")
    if content.pop("sha256", None) not in (None, json_sha256(content)):
        raise ConfigError(f"{path}: is damaged: its content is not what was written")
    return content


def json_sha256(content: object) -> str:
    """Hex SHA-256 of a JSON value: the same before it is written and after it is read."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` make a folder under a temporary name, then put it in the place of `path`."""
    _write_then_rename(path, fill)


def remove_leftovers(folder: Path, names: str) -> None:
    """Remove what killed writes left in a folder, of paths whose names match a pattern. None may be running.

    A folder that was moved aside for a finished one gets that in its place. What cannot be read or moved stays.
    """
    scratch_name = re.compile(rf"\.({names})\.[a-z0-9_]{{8}}")
    with suppress(OSError):
        for scratch in list(folder.iterdir()):
            match = scratch_name.fullmatch(scratch.name)
            if match is not None and scratch.is_dir() and not scratch.is_symlink():
                _remove_leftover(scratch, folder / match[1])


def _remove_leftover(scratch: Path, path: Path) -> None:
    inside = {entry.name for entry in scratch.iterdir()}
    if inside == {path.name, _REPLACED} and not os.path.lexists(path):
        (scratch / path.name).rename(path)
    if inside <= {path.name, _REPLACED}:
        shutil.rmtree(scratch, ignore_errors=True)


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's content. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_then_rename(path: Path, fill: Callable[[Path], None]) -> None:
    scratch: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        temporary = scratch / path.name
        fill(temporary)
        if temporary.is_dir() and path.is_dir():
            # A folder cannot be replaced in one step: the old one moves aside first, and back if that fails.
            replaced = scratch / _REPLACED
            path.rename(replaced)
            try:
                temporary.rename(path)
            except OSError:
                replaced.rename(path)
                raise
        else:
            temporary.replace(path)
    except OSError as error:
        raise TunerError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
