"""What one process alone works on: files that are locked, and the workspace of a run."""

import errno
import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from tuner.errors import TunerError

_DRIVER = "driver.json"
_STUDY = "study.db"
# Between having the lock and saying who has it lies a write of some bytes.
_PATIENCE_S = 2.0


def lock(file: IO[Any], path: Path, doing: str) -> None:
    """Keep `file` locked until it is closed. Raises TunerError, with what the other is `doing`, if it is locked."""
    if not _is_locked(file, path):
        raise TunerError(f"{path}: another process is {doing} it")


def no_link(path: str, flags: int) -> int:
    """An opener that opens a file, not what a symbolic link in its place points to."""
    try:
        return os.open(path, flags | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise TunerError(f"{path}: is a symbolic link; remove it") from None
        raise


@contextmanager
def only_driver(workspace: Path, study: Path | None = None) -> Iterator[None]:
    """Keep the folder for this process: two runs in one workspace would each spoil the record of the other.

    study: a file with the run's record, which is kept too, wherever it is, by a file beside it.

    The lock is the system's, so it goes with the process, however that ends, and with a restart of the machine; nothing
    stale is left to be judged. The file says whose it is. The folder is made where it is missing.

    Raises TunerError when the folder cannot be written, and when another process has it, with its number and start.
    """
    driver = workspace / _DRIVER
    try:
        workspace.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TunerError(f"{workspace}: cannot be used as workspace: {error.strerror or error}") from error
    with ExitStack() as held:
        held.enter_context(_only_one(driver, workspace, "a --workspace"))
        # A study in its workspace is kept with that.
        if study is not None and (beside := _lock_of(study)) != driver.resolve():
            held.enter_context(_only_one(beside, study, "another --storage"))
        yield


def _lock_of(study: Path) -> Path:
    """What is locked for a study; for the one of a workspace, what is locked for that."""
    return study.resolve().with_name(_DRIVER if study.name == _STUDY else f"{study.name}.{_DRIVER}")


@contextmanager
def _only_one(path: Path, place: Path, flag: str) -> Iterator[None]:
    """Lock a file that says whose `place` is. flag: what else may be named, for an error message."""
    with _driver_file(path, place, flag.split("--")[1]) as file:
        if not _is_locked(file, path):
            raise TunerError(f"{place}: another run works there{_whose(path)}; wait for it, or name {flag}")
        try:
            _say_whose(file)
            yield
        finally:
            file.truncate(0)


def _driver_file(path: Path, place: Path, purpose: str) -> IO[str]:
    try:
        return open(path, "a+", opener=no_link, encoding="utf-8")
    except OSError as error:
        raise TunerError(f"{place}: cannot be used as {purpose}: {error.strerror or error}") from error


def _is_locked(file: IO[Any], path: Path) -> bool:
    """Lock `file`; False where another process has locked it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise TunerError(f"{path}: the file system cannot lock files: {error.strerror or error}") from error
    return True


def _say_whose(file: IO[str]) -> None:
    started = datetime.now().astimezone().isoformat(" ", timespec="seconds")
    file.truncate(0)  # what a run that was killed has left
    try:
        json.dump({"process": os.getpid(), "machine": platform.node(), "started": started}, file)
        file.flush()
    except OSError as error:
        raise TunerError(f"{file.name}: cannot be written: {error.strerror or error}") from error


def _whose(path: Path) -> str:
    """Of a locked file, who has it, for an error message."""
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        try:
            found = json.loads(path.read_text("utf-8"))
            # A run that was killed may have left the file, and the one that has the lock not written it yet.
            if found["machine"] != platform.node() or Path(f"/proc/{found['process']}").exists():
                return f": process {found['process']} on {found['machine']}, since {found['started']}"
        except (OSError, ValueError, KeyError, TypeError):
            pass
        time.sleep(0.05)
    return ""
