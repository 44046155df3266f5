"""The value of one key in the forms that LPOT's YAML files use: names, lists, fractions, paths, entry points."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, GetCoreSchemaHandler, InstanceOf, PlainSerializer, ValidationInfo
from pydantic_core import CoreSchema, core_schema

from tuner.address import Address, Place, place
from tuner.config.refusal import SettingError, choices, describe
from tuner.errors import ConfigError


@dataclass(frozen=True)
class OneOf:
    """A name out of `values`. The names in `refused` are known and answered with their reason."""

    values: Mapping[str, Any]
    refused: Mapping[str, str] = field(default_factory=dict)

    def parse(self, value: object) -> Any:
        """The value behind the name. Raises SettingError."""
        if isinstance(value, str) and value in self.values:
            return self.values[value]
        if isinstance(value, str) and value in self.refused:
            raise SettingError(f"got {value!r}; {self.refused[value]}")
        expected = choices(value if isinstance(value, str) else "", self.values)
        raise SettingError(f"got {describe(value)}; {expected}")

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Let pydantic parse the value of an `Annotated` field."""
        return core_schema.no_info_before_validator_function(self.parse, handler(source))


@dataclass(frozen=True)
class SomeOf(OneOf):
    """One or several of the names, as a string or a list: a tuple of what they stand for, each once."""

    def parse(self, value: object) -> Any:
        """The values behind the names. Raises SettingError."""
        return tuple(dict.fromkeys(super(SomeOf, self).parse(item) for item in split_list(value)))


def split_list(value: object) -> tuple[object, ...]:
    """Items of a YAML list, of a string with commas or blanks between them, or of one value. Never empty."""
    if isinstance(value, str):
        items: tuple[object, ...] = tuple(value.replace(",", " ").split())
    else:
        items = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not items:
        raise SettingError(f"got {describe(value)}; expected at least one value")
    return items


def _names(value: object) -> object:
    if value in ([], ()):
        return ()
    names = split_list(value)
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise SettingError(f"got {describe(value)}; expected a name, or a list of names")
    return names


def _counts(value: object) -> object:
    counts = []
    for item in split_list(value):
        text = str(item) if isinstance(item, str) or (type(item) is int and abs(item) < 2**63) else ""
        if not re.fullmatch(r"[0-9]{1,18}", text) or int(text) == 0:
            raise SettingError(f"got {describe(value)}; expected whole numbers of at least 1, such as 100 or '50, 100'")
        counts.append(int(text))
    return tuple(dict.fromkeys(counts))


def _fraction(value: object) -> float:
    text = value.strip() if isinstance(value, str) else ""
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        number = float(text.removesuffix("%")) / 100 if text.endswith("%") else float(value)
    except (ValueError, OverflowError):
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise SettingError(f"got {describe(value)}; expected a number above 0, such as 0.01 or '1%'")
    return number


def _path(value: object, info: ValidationInfo) -> Path:
    found = _place(value, info)
    if isinstance(found, Address):
        raise SettingError(f"got {describe(str(found))}; expected a local path: only TFRecords may lie at an address")
    return found


def _place(value: object, info: ValidationInfo) -> Place:
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise SettingError(f"got {describe(value)}; expected a path")
    folder: Path = (info.context or {}).get("folder", Path())
    try:
        return place(value, folder)
    except ConfigError as error:
        raise SettingError(str(error)) from None


def _entry_point(value: str) -> str:
    module, colon, name = value.partition(":")
    if not colon or not all(part.isidentifier() for part in [*module.split("."), name]):
        raise SettingError(f"got {describe(value)}; expected package.module:name")
    return value


def _version(value: object) -> str:
    text = "" if isinstance(value, bool) else describe(value).strip("'\"")
    if not re.fullmatch(r"\d+(\.\d+)*", text):
        raise SettingError(f"got {describe(value)}; expected a version such as 1.0")
    return text


Names = Annotated[tuple[str, ...], BeforeValidator(_names)]
Counts = Annotated[tuple[int, ...], BeforeValidator(_counts)]
PositiveNumber = Annotated[float, BeforeValidator(_fraction)]
LocalPath = Annotated[Path, BeforeValidator(_path)]
# In JSON without passwords: that is what files and reports show.
PathOrAddress = Annotated[
    Path | InstanceOf[Address], BeforeValidator(_place), PlainSerializer(str, when_used="json-unless-none")
]
EntryPoint = Annotated[str, AfterValidator(_entry_point)]
Version = Annotated[str, BeforeValidator(_version)]
