"""Encoded images that were fetched from an address, on the local disk: each is fetched once, whoever asks again.

They lie in a folder of this user's below the system's temporary one (`tuner-images-UID`; on a cluster that is usually
the node's own disk), or in the one that TUNER_REMOTE_CACHE names, each in a file with the SHA-256 of its content as
its name. So sets and runs share them, and a file that is damaged is noticed. Processes share the folder without locks:
a file appears whole, and one that another process removed is fetched again.

At most 4096 MiB are kept, or as many as TUNER_REMOTE_CACHE_MB says; 0 keeps nothing. Each process measures the folder
when it has written a 64th of that, so as many processes may exceed the bound by so many 64ths. Images that were last
used before this process began make room for new ones. Others do not: a set is read from front to back again and again,
so keeping what fits serves more reads than dropping the least recently used, which would serve none.
"""

import hashlib
import logging
import math
import os
import secrets
import tempfile
import threading
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

from tuner.errors import DatasetError

FOLDER, SIZE = "TUNER_REMOTE_CACHE", "TUNER_REMOTE_CACHE_MB"
_DEFAULT_MB = 4096
_BEGAN_S = time.time()

_log = logging.getLogger(__name__)


class KeptRanges:
    """Content by its SHA-256, in a folder of at most `most_bytes`. Threads and processes may share it.

    began_s: what was last used before this time (of `time.time()`) makes room for new content.
    """

    def __init__(self, folder: Path, most_bytes: int, began_s: float = _BEGAN_S) -> None:
        self._folder = folder
        self._most_bytes = most_bytes
        self._began_s = began_s
        self._lock = threading.Lock()
        self._free_bytes = 0
        self._unmeasured_bytes = math.inf

    def get(self, sha256: str) -> bytes | None:
        """The content with this hash; None where it is not here, or not any more what it was."""
        path = self._folder / sha256
        with suppress(OSError):
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest() == sha256:
                self._touch(path)
                return content
            path.unlink()
        return None

    def put(self, sha256: str, content: bytes) -> None:
        """Keep the content with this hash, if there is room for it and the disk takes it."""
        path = self._folder / sha256
        if path.exists():
            self._touch(path)
        elif self._has_room(len(content)):
            temporary = self._folder / f"{sha256}.{secrets.token_hex(8)}"
            try:
                # No fsync: a file that a crash of the machine cuts off is noticed by its hash.
                temporary.write_bytes(content)
                temporary.replace(path)
            except OSError as error:
                self._give_up(error)
                with suppress(OSError):
                    temporary.unlink()

    def _has_room(self, size: int) -> bool:
        with self._lock:
            if not self._most_bytes:
                return False
            if self._unmeasured_bytes + size > self._most_bytes / 64:
                self._measure(max(size, self._most_bytes // 64))
            if size > self._free_bytes:
                return False
            self._free_bytes -= size
            self._unmeasured_bytes += size
            return True

    def _measure(self, wanted_bytes: int) -> None:
        """Count what lies in the folder, without what has to go so that so many bytes are free."""
        files = []
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for file in os.scandir(self._folder):
                with suppress(FileNotFoundError):
                    status = file.stat()
                    files.append((status.st_mtime, status.st_size, file.path))
        except OSError as error:
            self._give_up(error)
        used_bytes = sum(size for _, size, _ in files)
        for last_used_s, size, path in sorted(files):
            if used_bytes + wanted_bytes <= self._most_bytes or last_used_s >= self._began_s:
                break
            with suppress(OSError):
                Path(path).unlink()
                used_bytes -= size
        self._free_bytes, self._unmeasured_bytes = self._most_bytes - used_bytes, 0

    def _give_up(self, error: OSError) -> None:
        _log.warning("%s: images are not kept: %s", self._folder, error.strerror or error)
        self._most_bytes = 0

    @staticmethod
    def _touch(path: Path) -> None:
        with suppress(OSError):
            os.utime(path)


def kept_ranges() -> KeptRanges:
    """Where this process keeps what it fetched. Raises DatasetError for a TUNER_REMOTE_CACHE_MB that is no number."""
    size_mb = os.environ.get(SIZE, str(_DEFAULT_MB))
    if not size_mb.isdecimal():
        raise DatasetError(f"{SIZE}: got {size_mb!r}; expected a whole number of MiB, 0 to keep nothing")
    return _kept_in(os.environ.get(FOLDER, ""), int(size_mb) * 2**20)


@cache
def _kept_in(named: str, most_bytes: int) -> KeptRanges:
    folder = Path(named or Path(tempfile.gettempdir(), f"tuner-images-{os.getuid()}"))
    if not named and (folder.is_symlink() or (folder.exists() and folder.stat().st_uid != os.getuid())):
        _log.warning("%s: images are not kept: it belongs to somebody else; %s names another folder", folder, FOLDER)
        most_bytes = 0
    return KeptRanges(folder, most_bytes)
