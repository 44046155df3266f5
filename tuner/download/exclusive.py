"""Files that one process alone works on, and that are files of its own."""

import errno
import fcntl
import os
from pathlib import Path
from typing import IO, Any

from tuner.errors import TunerError


def lock(file: IO[Any], path: Path, doing: str) -> None:
    """Keep `file` locked until it is closed. Raises TunerError, with what the other is `doing`, if it is locked."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise TunerError(f"{path}: another process is {doing} it") from None


def no_link(path: str, flags: int) -> int:
    """An opener that opens a file, not what a symbolic link in its place points to."""
    try:
        return os.open(path, flags | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise TunerError(f"{path}: is a symbolic link; remove it") from None
        raise
