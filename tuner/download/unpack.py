"""An archive as a folder: nothing of it outside, no links, no devices, and either whole or absent."""

import json
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Generator
from contextlib import closing
from gzip import BadGzipFile
from pathlib import Path, PurePosixPath
from typing import IO

from tuner.errors import TunerError
from tuner.files import write_folder

# Weights and JPEG hardly shrink when packed, annotations several times; gzip packs a bomb up to a thousand times.
LARGEST_GROWTH = 20

_CHUNK_BYTES = 1 << 20
_CONTENTS = ".unpacked"
_DAMAGED = (
    *(tarfile.TarError, zipfile.BadZipFile, BadGzipFile, EOFError, zlib.error, lzma.LZMAError),
    *(RuntimeError, ValueError, IndexError),
)
_Member = tuple[str, IO[bytes] | None]


def unpack(archive: Path, folder: Path, sha256: str) -> None:
    """Unpack what lies in `archive` (.zip or .tar.gz) below the folder of `folder`'s name, and replace `folder` by it.

    sha256: of the archive; kept in the folder with the sizes of its files, for `is_complete`.
    Modes, owners and times are not taken over. What lies beside that folder in the archive is left out.

    Raises TunerError, and leaves `folder` as it was, when the archive is damaged, when anything in it is a link, a
    device, or has a path that leads out, when it grows more than `LARGEST_GROWTH` times, and when the disk is full.
    """
    limit_bytes = LARGEST_GROWTH * archive.stat().st_size

    def fill(temporary: Path) -> None:
        sizes: dict[str, int] = {}
        left_bytes = limit_bytes
        with closing(_members(archive)) as members:
            for name, content in members:
                path = _path_inside(name, archive)
                if path.parts[:1] != (folder.name,):
                    continue
                place = temporary.joinpath(*path.parts[1:])
                if content is None:
                    place.mkdir(parents=True, exist_ok=True)
                    continue
                place.parent.mkdir(parents=True, exist_ok=True)
                size_bytes = _write(content, place, left_bytes)
                left_bytes -= size_bytes
                if left_bytes < 0:
                    raise TunerError(
                        f"{archive}: unpacks to more than {limit_bytes:,} bytes, {LARGEST_GROWTH} times its size"
                    )
                sizes[str(PurePosixPath(*path.parts[1:]))] = size_bytes
        if not sizes:
            raise TunerError(f"{archive}: holds no files in {folder.name}/")
        (temporary / _CONTENTS).write_text(json.dumps({"sha256": sha256, "files": sizes}))

    try:
        write_folder(folder, fill)
    except TunerError as error:
        # A damaged gzip file is an OSError, which writing takes for one of its own.
        if isinstance(error.__cause__, _DAMAGED):
            raise _damaged(archive, error.__cause__) from None
        raise
    except _DAMAGED as error:
        raise _damaged(archive, error) from None


def is_unpacked(folder: Path) -> bool:
    """Whether `folder` was unpacked from some archive, whatever became of its files."""
    return (folder / _CONTENTS).is_file()


def is_complete(folder: Path, sha256: str) -> bool:
    """Whether `folder` was unpacked from the archive of that SHA-256, and each file still has its size."""
    try:
        contents = json.loads((folder / _CONTENTS).read_bytes())
        return contents["sha256"] == sha256 and all(
            (folder / name).stat().st_size == size_bytes for name, size_bytes in contents["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _damaged(archive: Path, error: BaseException) -> TunerError:
    return TunerError(f"{archive}: cannot be unpacked: {error}")


def _members(archive: Path) -> Generator[_Member]:
    """The names in the archive with their contents; None for a folder. Links and devices raise TunerError."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as zipped:
            for entry in zipped.infolist():
                kind = stat.S_IFMT(entry.external_attr >> 16)
                if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise _foreign(archive, entry.filename)
                if entry.is_dir():
                    yield entry.filename, None
                else:
                    with zipped.open(entry) as content:
                        yield entry.filename, content
    else:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                if not (member.isreg() or member.isdir()):
                    raise _foreign(archive, member.name)
                yield member.name, tar.extractfile(member)
            # A tar ends before its gzip stream does, and the checksum of that is at its end.
            while tar.fileobj is not None and tar.fileobj.read(_CHUNK_BYTES):
                pass


def _foreign(archive: Path, name: str) -> TunerError:
    return TunerError(f"{archive}: {name!r} is a link or a device; only files and folders are unpacked")


def _path_inside(name: str, archive: Path) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise TunerError(f"{archive}: {name!r} leads out of the folder that it is unpacked to")
    return path


def _write(content: IO[bytes], place: Path, most_bytes: int) -> int:
    """Write a new file; returns its size. Stops soon after `most_bytes`."""
    size_bytes = 0
    with place.open("xb") as file:
        while size_bytes <= most_bytes and (chunk := content.read(_CHUNK_BYTES)):
            size_bytes += file.write(chunk)
    return size_bytes
