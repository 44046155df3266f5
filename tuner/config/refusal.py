"""What is said about a setting that cannot be honoured: the value found, the values allowed, the reason."""

import difflib
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass


class SettingError(ValueError):
    """A problem with one setting; `key` names it below the section that found the problem, or is empty."""

    def __init__(self, text: str, key: str = "") -> None:
        super().__init__(text)
        self.text = text
        self.key = key


@dataclass(frozen=True, slots=True)
class Refusal:
    """A key that is known and cannot be honoured. `accepted` are the values that ask for nothing, as the default."""

    reason: str
    accepted: tuple[object, ...] = ()

    def accepts(self, value: object) -> bool:
        """Whether `value` is one of the accepted ones; 0 and False are different values."""
        return any(isinstance(value, bool) == isinstance(one, bool) and value == one for one in self.accepted)


EMPTY: tuple[object, ...] = (None, {})

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 100


def describe(value: object) -> str:
    """`value` as Python writes it, shortened."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python refuses to print integers of several thousand digits
        return "a number of thousands of digits"


def choices(found: str, allowed: Iterable[str], known: Iterable[str] = ()) -> str:
    """The allowed names, and which of `allowed` and `known` is nearest to what was found."""
    allowed = list(allowed)
    by_lower_case = {name.lower(): name for name in [*allowed, *known]}
    near = difflib.get_close_matches(found.lower(), by_lower_case, n=1)
    expected = f"expected one of {', '.join(allowed)}" if allowed else "no key is expected here"
    return expected + (f" (did you mean {by_lower_case[near[0]]!r}?)" if near else "")
