"""Where a set of records lies: a local path, or an address that fsspec reaches."""

import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tuner.errors import ConfigError

HIDDEN = "***"

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://.+", re.DOTALL)
# Greedy, since a password may have any character in it that was not written as %XX.
_PASSWORD = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://[^:/@\s]*):\S*@")
_VALUE = re.compile(r"([?&][\w.-]+=)[^&#\s'\"]+")


@dataclass(frozen=True, slots=True)
class Address:
    """`protocol://` and what follows it, kept to the letter: a path would lose the second slash.

    url: with its password or signature, if it has one. `str` and `repr` are without them, and fit for every message.
    """

    url: str = field(repr=False)

    def __str__(self) -> str:
        return without_secrets(self.url)

    def __repr__(self) -> str:
        return f"Address({str(self)!r})"

    @property
    def protocol(self) -> str:
        """What stands before `://`, such as `s3`."""
        return self.url.partition("://")[0].lower()

    @property
    def lacks_a_secret(self) -> bool:
        """Whether it was read where it had been written without its password."""
        return f":{HIDDEN}@" in self.url or f"={HIDDEN}" in self.url

    @property
    def of_the_web(self) -> bool:
        """Whether it is of http or https, where a question mark begins a query."""
        return self.protocol in ("http", "https")

    @property
    def name(self) -> str:
        """The last part, such as `val.record`."""
        return PurePosixPath(re.split("[?#]", self.url)[0] if self.of_the_web else self.url).name


# Where records lie.
Place = Path | Address


def place(text: str, folder: Path = Path()) -> Place:
    """The address or the local path that `text` names; relative paths start from `folder`.

    Raises ConfigError for a chain of file systems (`zip://*::s3://...`).
    """
    if not is_address(text):
        return folder / text
    if "::" in text:
        raise ConfigError(f"{without_secrets(text)}: is a chain of file systems; expected one address, without '::'")
    return Address(text)


def is_address(text: str) -> bool:
    """Whether the text names no local path: whether it begins with a protocol and `://`."""
    return _ADDRESS.fullmatch(text) is not None


def without_secrets(text: str) -> str:
    """The text with `***` for passwords and for the values of queries in the addresses in it."""
    shown = _PASSWORD.sub(rf"\1:{HIDDEN}@", text)
    return _VALUE.sub(rf"\1{HIDDEN}", shown) if "://" in shown else shown
