"""Files at addresses, through fsspec: what is there, and ranges of their bytes.

Where a file system takes its credentials and its server from is its own affair and fsspec's: files of its vendor,
environment variables, `~/.config/fsspec`. Whatever goes wrong is told in one line, without passwords.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from tuner.address import Address, without_secrets
from tuner.errors import DatasetError, did_you_mean

_Answer = TypeVar("_Answer")

# A connection that breaks is tried again after each of these.
_PAUSES_S = (0.2, 1.0)


class NotThere(DatasetError):
    """An address at which nothing lies."""


@dataclass(frozen=True, slots=True)
class Found:
    """What lies at an address. size: of a file, in bytes; None where the server does not tell it."""

    is_folder: bool
    size: int | None


def look_up(address: Address) -> Found:
    """What lies there. Raises NotThere where nothing does, DatasetError where it cannot be reached."""
    info = _ask(address, lambda files, path: files.info(path))
    # A web server knows no folders, only pages.
    return Found(info["type"] == "directory" or address.url.endswith("/"), info["size"])


def files_in(folder: Address) -> list[Address]:
    """The files directly in a folder, by name. Raises DatasetError as `look_up`."""

    def listed(files: Any, path: str) -> list[Address]:
        found = files.ls(path, detail=True)
        return [_address(folder, path, files, one["name"]) for one in found if one["type"] == "file"]

    return sorted(_ask(folder, listed), key=lambda address: address.url)


def files_like(pattern: Address) -> list[Address]:
    """The files that match a pattern, by name. Raises NotThere where none do, and DatasetError as `look_up`."""

    def listed(files: Any, path: str) -> list[Address]:
        found = [name for name, one in files.glob(path, detail=True).items() if one["type"] == "file"]
        if not found:
            raise FileNotFoundError
        return [_address(pattern, path, files, name) for name in found]

    return sorted(_ask(pattern, listed), key=lambda address: address.url)


def names_beside(address: Address) -> list[str]:
    """The names of the files in the folder of an address; none where they cannot be listed."""
    with suppress(DatasetError):
        return [one.name for one in files_in(Address(address.url.rpartition("/")[0]))]
    return []


def is_pattern(address: Address) -> bool:
    """Whether it names files by a pattern."""
    return any(letter in address.url for letter in ("*[" if address.of_the_web else "*?["))


def read_range(address: Address, start: int, stop: int) -> bytes:
    """The bytes from `start` to `stop` of a file, which has as many; nothing else is fetched.

    Raises DatasetError where they cannot be read, after a few tries, or the server gives other ones.
    """

    def read(files: Any, path: str) -> bytes:
        content: bytes = files.cat_file(path, start=start, end=stop)
        if len(content) > stop - start:
            raise DatasetError(f"{address}: cannot be read: the server sends whole files, not the range asked for")
        if len(content) < stop - start:
            raise ConnectionError(f"got {len(content)} of the {stop - start} bytes from {start} on")
        return content

    return _ask(address, read)


def _ask(address: Address, question: Callable[[Any, str], _Answer]) -> _Answer:
    """The answer of the address's file system to a question about the path in it."""
    files, path = _file_system(address)
    pauses_s = iter(_PAUSES_S)
    while True:
        try:
            return question(files, path)
        except DatasetError:
            raise
        except Exception as error:  # each file system has a family of errors of its own
            refusal, for_good = _refusal(error, address)
        pause_s = None if for_good else next(pauses_s, None)
        if pause_s is None:
            raise refusal
        time.sleep(pause_s)


def _file_system(address: Address) -> tuple[Any, str]:
    """The file system of an address, and the path in it."""
    if address.lacks_a_secret:
        raise DatasetError(f"{address}: its password is not kept in files; name the set with --dataset_location")
    try:
        import fsspec  # noqa: PLC0415 - only who names an address needs it
        from fsspec.registry import known_implementations, registry  # noqa: PLC0415
    except ImportError:
        raise DatasetError(f"{address}: an address needs fsspec: pip install 'tuner[remote]'") from None
    if address.protocol not in (protocols := {*known_implementations, *registry}):
        near = did_you_mean(address.protocol, protocols)
        raise DatasetError(f"{address}: fsspec knows no protocol {address.protocol!r}{near}")
    try:
        files, path = fsspec.core.url_to_fs(address.url)
    except ImportError as error:
        package = str(known_implementations[address.protocol]["class"]).partition(".")[0]
        needs = f"needs {package}: pip install {package}" if package != "fsspec" else _one_line(error)
        raise DatasetError(f"{address}: {address.protocol}:// {needs}") from None
    except Exception as error:  # as above: credentials, for some, are looked for here
        raise DatasetError(f"{address}: {_one_line(error)}") from None
    return files, str(path)


def _address(asked: Address, path: str, files: Any, found: str) -> Address:
    """The address of a path found where `asked` is `path`: with the server and the user that `asked` names."""
    if asked.url.endswith(path) or asked.url.endswith(path + "/"):
        return Address(asked.url[: asked.url.rindex(path)] + found)
    return Address(files.unstrip_protocol(found))


def _refusal(error: Exception, address: Address) -> tuple[DatasetError, bool]:
    """What is told of a question that was not answered, and whether asking again is of no use."""
    cause: BaseException = error
    if address.of_the_web and error.__cause__ is not None:
        cause = error.__cause__  # fsspec calls all of the web's errors FileNotFoundError
    status = getattr(cause, "status", None)
    if isinstance(cause, PermissionError) or status in (401, 403):
        return DatasetError(f"{address}: cannot be read: access is refused"), True
    if isinstance(cause, FileNotFoundError | NotADirectoryError) or status in (404, 410):
        return NotThere(f"{address}: no such file or folder"), True
    # Who waited for minutes in vain is told, not made to wait again.
    for_good = isinstance(cause, IsADirectoryError | TimeoutError)
    return DatasetError(f"{address}: cannot be read: {_one_line(cause)}"), for_good


def _one_line(error: BaseException) -> str:
    return without_secrets(" ".join(str(error).split())) or type(error).__name__
