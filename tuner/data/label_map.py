"""Files that tell what names and numbers stand for: label maps of data sets, class maps of detectors."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tuner.config import read_yaml
from tuner.config.refusal import describe
from tuner.errors import ConfigError, DatasetError

_SHOWN = 8
_NO_ID = 2**63  # what the evaluators' int64 does not hold


def read_label_map(path: Path) -> dict[str, int]:
    """Read a YAML mapping of category names to ids, such as `person: 1`.

    Raises DatasetError naming the file and the entry when it is anything else.
    """
    content = _read_mapping(path, "label map", "category names to ids")
    for name, number in content.items():
        if isinstance(number, bool) or not isinstance(number, int) or not 0 < number < _NO_ID:
            raise DatasetError(
                f"{path}: {_text(name)}: got {_text(number)[:40]!r}; expected an id, a whole number of at least 1"
            )
    return {_text(name): number for name, number in content.items()}


def read_class_map(path: Path) -> dict[int, int]:
    """Read a YAML mapping of a detector's class numbers to category ids, such as `0: 1`.

    Raises DatasetError naming the file and the entry when it is anything else.
    """
    content = _read_mapping(path, "class map", "class numbers to category ids")
    for number, category_id in content.items():
        if not all(type(one) is int and 0 <= one < _NO_ID for one in (number, category_id)):
            raise DatasetError(
                f"{path}: {_text(number)[:40]}: got {_text(category_id)[:40]!r}; expected `class number: category id`, "
                "whole numbers of at least 0"
            )
    return content


def side_by_side(one: str, ones: Iterable[object], other: str, others: Iterable[object]) -> str:
    """Two sets that have nothing in common, in words: "one (1, 2) and other (a, b and 78 more) have none in common"."""
    return f"{one} ({_first(ones)}) and {other} ({_first(others)}) have none in common"


def _first(values: Iterable[object]) -> str:
    distinct = set(values)
    # Numbers in their order, names in theirs.
    shown = [str(value) for value in sorted(distinct, key=lambda value: (isinstance(value, str), value))]
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return ", ".join(shown[:_SHOWN]) + more


def _text(value: object) -> str:
    try:
        return str(value)
    except ValueError:  # Python refuses to print integers of several thousand digits
        return describe(value)


def _read_mapping(path: Path, kind: str, of: str) -> dict[Any, Any]:
    try:
        content = read_yaml(path)
    except ConfigError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise DatasetError(f"{path}: not a readable {kind}: {reason}") from None
    if not isinstance(content, dict) or not content:
        raise DatasetError(f"{path}: expected a mapping of {of}, got {type(content).__name__}")
    return content
