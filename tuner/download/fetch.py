"""One file over HTTP: resumed where it was cut, checked by size and SHA-256, and either whole or absent."""

import http.client
import logging
import os
import re
import shutil
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError, URLError
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
    UnknownHandler,
)

from tuner.download.archives import Archive
from tuner.errors import TunerError
from tuner.exclusive import lock, no_link
from tuner.files import file_sha256
from tuner.progress import Progress

_log = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 16
_MEGABYTE = 10**6
_PASSING = {408, 429, 500, 502, 503, 504}
# No file's size has more, and Python converts no more than some thousand.
_MOST_DIGITS = 18
_NUMBER = rf"[0-9]{{1,{_MOST_DIGITS}}}"
_CONTENT_RANGE = re.compile(rf"bytes (?P<start>{_NUMBER})-{_NUMBER}/(?P<total>{_NUMBER}|\*)")
_MOST_SAID = 200


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a silent server is listened to, and the waits before further tries.

    The waits begin again when more of the file has arrived than ever before.
    """

    timeout_s: float = 30.0
    waits_s: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)


DEFAULT_PATIENCE = Patience()


class _Cut(Exception):
    """A try that failed for a reason that may pass."""


class _Misfit(_Cut):
    """What the server has does not go on from what is there already."""


def fetch(archive: Archive, target: Path, progress: Progress, patience: Patience = DEFAULT_PATIENCE) -> None:
    """Download `archive` to `target`; nothing is transferred where `target` is that file already.

    What has arrived lies in `target`.part until it is whole and its SHA-256 is right. A later call goes on from there
    (HTTP Range; with If-Range where the server gave an ETag or a date, so that parts of two files are never joined).

    Raises TunerError for what the server or the network refuses, for a disk that is full or cannot be written, for a
    file of another size or checksum, and when another process is at it.
    """
    part, version = _beside(target, ".part"), _beside(target, ".part.version")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if _is_whole(target, archive):
            return
        with open(part, "ab", opener=no_link) as file:
            lock(file, part, "downloading")
            try:
                _check_free_space(archive, part)
                _download(archive, file, version, progress, patience)
            finally:
                if not file.tell():
                    part.unlink()
                    version.unlink(missing_ok=True)
            file.flush()
            os.fsync(file.fileno())
            with progress.stage("verify"):
                found = file_sha256(part)
            version.unlink(missing_ok=True)
            if found != archive.sha256:
                part.unlink()
                raise TunerError(
                    f"{archive.address}: SHA-256 is {found}; expected {archive.sha256}; what was downloaded is removed"
                )
            part.replace(target)
    except OSError as error:
        raise TunerError(f"{part}: cannot be written: {error.strerror or error}") from error


def _download(archive: Archive, file: BinaryIO, version: Path, progress: Progress, patience: Patience) -> None:
    with progress.stage("download") as stage:
        tries = _transfer(archive, file, version, patience)
        for _ in progress.track(tries, archive.size_bytes // _MEGABYTE, f"{archive.file_name}, MB"):
            pass
        stage.note(f"{archive.file_name}, {archive.size_bytes / _MEGABYTE:.1f} MB")


def _beside(target: Path, suffix: str) -> Path:
    return target.with_name(target.name + suffix)


def _is_whole(target: Path, archive: Archive) -> bool:
    return target.is_file() and target.stat().st_size == archive.size_bytes and file_sha256(target) == archive.sha256


def _check_free_space(archive: Archive, part: Path) -> None:
    needed, free = archive.size_bytes - part.stat().st_size, shutil.disk_usage(part.parent).free
    if needed > free:
        raise TunerError(
            f"{part}: {needed / _MEGABYTE:,.1f} MB are still to come, and the disk has {free / _MEGABYTE:,.1f} MB free"
        )


def _transfer(archive: Archive, file: BinaryIO, version: Path, patience: Patience) -> Iterator[None]:
    """Append to `file` until all is there; one item for each megabyte, those that were there before included."""
    told, furthest, waits = 0, file.tell(), iter(patience.waits_s)
    while True:
        try:
            for held in _try(archive, file, version, patience.timeout_s):
                while told < held // _MEGABYTE:
                    told += 1
                    yield
            return
        except _Cut as cut:
            if isinstance(cut, _Misfit):
                _empty(file)
            # A server that only ever starts from the front may be cut in the same place again and again.
            if file.tell() > furthest:
                furthest, waits = file.tell(), iter(patience.waits_s)
            wait_s = next(waits, None)
            if wait_s is None:
                raise TunerError(
                    f"{archive.address}: {cut}, with {file.tell():,} of {archive.size_bytes:,} bytes here; "
                    "the same command goes on from there"
                ) from None
            _log.warning("%s: %s; trying again in %g s", archive.address, cut, wait_s)
            time.sleep(wait_s)


def _try(archive: Archive, file: BinaryIO, version: Path, timeout_s: float) -> Iterator[int]:
    """One request; tells how many bytes are there, as they arrive. Raises _Cut when it ends before all are."""
    if file.tell() > archive.size_bytes:
        _empty(file)
    held = file.seek(0, os.SEEK_END)
    if held < archive.size_bytes:
        with _open(archive.address, held, version, timeout_s) as response:
            if not _continues(response, held, archive):
                held = _empty(file) if held else 0
                _remember_version(response, version)
            while held < archive.size_bytes and (chunk := _read(response, archive.size_bytes - held)):
                file.write(chunk)
                held += len(chunk)
                yield held
    if held < archive.size_bytes:
        raise _Cut("the connection was cut")
    yield held


def _empty(file: BinaryIO) -> int:
    file.truncate(0)
    return file.seek(0)


def _opener() -> OpenerDirector:
    # No FTP and no files, wherever a redirect points. Proxies are those of the environment.
    opener = OpenerDirector()
    for handler in (
        *(ProxyHandler(), HTTPHandler(), HTTPSHandler(), UnknownHandler()),
        *(HTTPDefaultErrorHandler(), HTTPRedirectHandler(), HTTPErrorProcessor()),
    ):
        opener.add_handler(handler)
    return opener


def _open(address: str, held: int, version: Path, timeout_s: float) -> http.client.HTTPResponse:
    """Ask for what comes after the bytes that are there; redirects are followed, at most ten."""
    headers = {"User-Agent": "tuner", "Accept-Encoding": "identity"}
    if held:
        headers["Range"] = f"bytes={held}-"
        if version.is_file():
            with open(version, encoding="latin-1", opener=no_link) as file:
                headers["If-Range"] = " ".join(file.read().split())
    try:
        response: http.client.HTTPResponse = _opener().open(Request(address, headers=headers), timeout=timeout_s)
    except HTTPError as error:
        raise _refused(address, error) from None
    except URLError as error:
        raise _unreachable(address, error.reason, resuming=held > 0) from None
    except (http.client.InvalidURL, ValueError) as error:
        raise TunerError(f"{address}: is no address: {_printable(error)}") from None
    except (OSError, http.client.HTTPException) as error:
        raise _cut_by(error) from None
    return response


def _refused(address: str, error: HTTPError) -> Exception:
    said = f"{error.code} {http.client.responses.get(error.code, '')}".rstrip()
    error.close()
    if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        return _Misfit(f"the server says {said}")
    if error.code in _PASSING:
        return _Cut(f"the server says {said}")
    if error.code // 100 == 3:
        return TunerError(f"{address}: redirected in a circle, more than ten times, or to what is not HTTP ({said})")
    return TunerError(f"{address}: the server says {said}")


def _unreachable(address: str, reason: object, *, resuming: bool) -> Exception:
    host = Request(address).host
    if isinstance(reason, ssl.SSLError):
        return TunerError(f"{address}: no trusted connection: {_printable(reason)}")
    if isinstance(reason, socket.gaierror | ConnectionRefusedError) and not resuming:
        # No network at all, most likely: there is nothing to wait for.
        return TunerError(f"{address}: {host} cannot be reached: {reason.strerror or reason}")
    if isinstance(reason, OSError):
        return _cut_by(reason)
    return TunerError(f"{address}: cannot be opened: {_printable(reason)}")


def _cut_by(error: OSError | http.client.HTTPException) -> _Cut:
    said = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return _Cut(_printable(said))


def _printable(said: object) -> str:
    """What may be a server's text, as a piece of one line."""
    return "".join(char if char.isprintable() else "?" for char in str(said).strip()[:_MOST_SAID])


def _read(response: http.client.HTTPResponse, most: int) -> bytes:
    try:
        return response.read(min(_CHUNK_BYTES, most))
    except (OSError, http.client.HTTPException) as error:
        raise _cut_by(error) from None


def _continues(response: http.client.HTTPResponse, held: int, archive: Archive) -> bool:
    """Whether the answer begins behind the bytes that are there, not at the front.

    Raises TunerError when the file behind the address has another size, and _Misfit for a part not asked for.
    """
    total = response.headers.get("Content-Length")
    partial = None
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        partial = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if partial is None or int(partial["start"]) != held:
            raise _Misfit("the server sent another part than was asked for")
        total = partial["total"]
    if total is not None and total.isdecimal():
        if len(total) > _MOST_DIGITS:
            raise TunerError(f"{archive.address}: the server sent a Content-Length of {len(total)} digits")
        if int(total) != archive.size_bytes:
            raise TunerError(
                f"{archive.address}: the server's file has {int(total):,} bytes; expected {archive.size_bytes:,}"
            )
    return partial is not None


def _remember_version(response: http.client.HTTPResponse, version: Path) -> None:
    """Keep what tells this content from a later one at the same address. A weak ETag does not (RFC 9110, 13.1.5)."""
    etag = response.headers.get("ETag", "")
    value = etag if etag.startswith('"') else response.headers.get("Last-Modified", "")
    if value:
        with open(version, "w", encoding="latin-1", opener=no_link) as file:
            file.write(value)
    else:
        version.unlink(missing_ok=True)
