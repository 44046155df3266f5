"""Settings drawn from the definitions of the settings: what each field's type, choices and bounds allow."""

import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union

import annotated_types
from hypothesis import assume
from hypothesis import strategies as st
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from tuner.config import TuningConfig
from tuner.config.op_rules import OpPattern
from tuner.config.section import Section
from tuner.config.setting import (
    Counts,
    EntryPoint,
    LocalPath,
    Names,
    OneOf,
    PathOrAddress,
    PositiveNumber,
    SomeOf,
    Version,
)
from tuner.config.transforms import ImageSize, PerChannel, Permutation

Values = st.SearchStrategy[Any]

WORDS = st.from_regex(r"[a-z][a-z0-9_]{0,9}", fullmatch=True)
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=20)
_SIDES = st.integers(1, 16384)
_FRACTIONS = st.floats(1e-6, 0.9)
# What the forms take that a function reads, and no type tells.
_READ_BY_A_FUNCTION: Mapping[Any, Values] = {
    Names: WORDS | st.lists(WORDS, max_size=4) | st.just("a, b"),
    Counts: st.integers(1, 10**6) | st.lists(st.integers(1, 10**6), min_size=1, max_size=3) | st.just("50, 100"),
    PositiveNumber: _FRACTIONS | st.integers(1, 99).map("{}%".format),
    LocalPath: WORDS | st.lists(WORDS, min_size=1, max_size=3).map("/".join),
    PathOrAddress: WORDS | st.lists(WORDS, min_size=1, max_size=3).map("/".join) | WORDS.map("s3://bucket/{}".format),
    EntryPoint: st.tuples(WORDS, WORDS, WORDS).map(lambda words: "{}.{}:{}".format(*words)),
    Version: st.sampled_from(["1.0", 1.0, 2, "1.2.3"]),
    ImageSize: _SIDES | st.lists(_SIDES, min_size=2, max_size=2),
    PerChannel: _FRACTIONS | st.lists(_FRACTIONS, min_size=3, max_size=3),
    Permutation: st.sampled_from([[2, 0, 1], [0, 1, 2]]),
    OpPattern: WORDS,
}
_BY_FUNCTION = {typing.get_args(form)[1].func: values for form, values in _READ_BY_A_FUNCTION.items()}
# No field takes any of these.
_WRONG = st.sampled_from([{"a": {"b": 1}}, [[{}]], [None]])
_WRONG_NUMBERS = st.sampled_from(["many", "", True, float("nan"), float("-inf"), float("inf")])


@dataclass(frozen=True)
class Place:
    """A field in a file of settings. keys: from the top. sections: those that hold it, from the top, one for each key.

    field: None for a key that is known and refused.
    """

    keys: tuple[str, ...]
    sections: tuple[type[Section], ...]
    field: FieldInfo | None

    def __str__(self) -> str:
        return ".".join(self.keys)

    @property
    def section(self) -> type[Section] | None:
        """The section that the field is, if it is one."""
        annotation = None if self.field is None else self.field.annotation
        kinds = typing.get_args(annotation) if typing.get_origin(annotation) in (Union, UnionType) else [annotation]
        return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)


def places(section: type[Section] = TuningConfig, above: Place | None = None) -> Iterator[Place]:
    """All fields of a section and of those in it, and the keys that it refuses."""
    keys, sections = (above.keys, above.sections) if above else ((), ())
    for key in section.refused:
        yield Place((*keys, key), (*sections, section), None)
    for key, field in fields(section):
        place = Place((*keys, key), (*sections, section), field)
        yield place
        if place.section is not None:
            yield from places(place.section, place)


def fields(section: type[Section]) -> Iterator[tuple[str, FieldInfo]]:
    """The fields by the keys that they have in a file."""
    return ((field.alias or name, field) for name, field in section.model_fields.items())


@st.composite
def sections(draw: st.DrawFn, kind: type[Section] = TuningConfig) -> dict[str, Any]:
    """A section with some of its fields. What its fields allow and a rule of several of them forbids is drawn again."""
    optional = [key for key, field in fields(kind) if not field.is_required()]
    for _ in range(4):
        keys = draw(st.lists(st.sampled_from(optional), unique=True, max_size=3)) if optional else []
        drawn = {key: draw(allowed(field)) for key, field in fields(kind) if field.is_required() or key in keys}
        if not _broken_by_a_rule(kind, drawn):
            return drawn
    required = required_of(draw, kind)
    assume(not _broken_by_a_rule(kind, required))
    return required


def required_of(draw: st.DrawFn, kind: type[Section]) -> dict[str, Any]:
    return {key: draw(allowed(field)) for key, field in fields(kind) if field.is_required()}


def allowed(field: FieldInfo) -> Values:
    """What a field takes."""
    return _allowed(field.annotation, field.metadata)


def wrong(place: Place) -> Values:
    """What the field at a place does not take."""
    field = place.field
    if field is None:
        return st.sampled_from([{"a": {"b": 1}}, "nonsense", 10**6])
    if place.section is not None:
        return st.sampled_from([7, "text", [{}], True, {"no_such_key": 1}])
    return _WRONG | _wrong(field.annotation, field.metadata)


def _allowed(annotation: Any, metadata: list[Any]) -> Values:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    by_function = [_BY_FUNCTION[one.func] for one in metadata if getattr(one, "func", None) in _BY_FUNCTION]
    names = next((one for one in metadata if isinstance(one, OneOf)), None)
    if origin is Annotated:
        found = _allowed(arguments[0], [*arguments[1:], *metadata])
    elif by_function:
        found = by_function[0]
    elif isinstance(names, SomeOf):
        found = st.lists(st.sampled_from(sorted(names.values)), min_size=1, max_size=3, unique=True)
    elif names is not None:
        found = st.sampled_from(sorted(names.values))
    elif origin in (Union, UnionType):
        found = _allowed(next(one for one in arguments if one is not NoneType), metadata)
    elif origin is Literal:
        found = st.sampled_from(arguments)
    elif origin is tuple:
        found = st.lists(_allowed(arguments[0], metadata), max_size=3)
    elif origin is not None and issubclass(origin, Mapping):
        found = st.dictionaries(_allowed(arguments[0], []), _allowed(arguments[1], []), max_size=3)
    elif issubclass(annotation, Section):
        found = sections(annotation)
    else:
        found = _of_a_type(annotation, _Bounds(metadata))
    return found


def _of_a_type(annotation: type, bounds: "_Bounds") -> Values:
    if annotation is bool:
        return st.booleans()
    if annotation is int:
        return st.integers(bounds.low, bounds.high)
    if annotation is float:
        return st.floats(bounds.low, bounds.high, allow_nan=False, allow_infinity=False).filter(bounds.hold)
    if annotation is str:
        return TEXTS.filter(lambda text: len(text) >= bounds.length)
    raise TypeError(f"no values are known of {annotation}")


def _wrong(annotation: Any, metadata: list[Any]) -> Values:
    """What no field of this type takes, besides what none takes at all."""
    names = next((one for one in metadata if isinstance(one, OneOf)), None)
    bounds = _Bounds(metadata)
    if names is not None:
        return st.sampled_from(["nonsense", "", 7, *names.refused])
    if annotation in (int, float, int | None):
        beyond = [number for number in bounds.outside if isinstance(number, int) or annotation is float]
        return _WRONG_NUMBERS | (st.sampled_from(beyond) if beyond else st.nothing())
    if annotation is bool:
        return st.sampled_from([0, 1, "yes", "false"])
    if annotation is str or annotation is Path:
        return st.sampled_from([7, 1.5, True, []] + [""] * (bounds.length > 0))
    return _WRONG


class _Bounds:
    """The bounds that metadata tell of a number, or of the length of a text."""

    def __init__(self, metadata: list[Any]) -> None:
        told = {type(one): one for one in metadata}
        self._above = getattr(told.get(annotated_types.Gt), "gt", None)
        self._below = getattr(told.get(annotated_types.Lt), "lt", None)
        least, most = (told.get(kind) for kind in (annotated_types.Ge, annotated_types.Le))
        self.low: Any = getattr(least, "ge", self._above)
        self.high: Any = getattr(most, "le", self._below)
        self.length: int = getattr(told.get(annotated_types.MinLen), "min_length", 0)

    def hold(self, number: float) -> bool:
        return number not in (self._above, self._below)

    @property
    def outside(self) -> list[Any]:
        """Numbers that are not allowed."""
        below = [] if self.low is None else [self.low - 1, self.low - 0.001]
        above = [] if self.high is None else [self.high + 1, self.high + 0.001]
        return [*below, *above, *(number for number in (self._above, self._below) if number is not None)]


def _broken_by_a_rule(kind: type[Section], drawn: Mapping[str, Any]) -> bool:
    """Whether all that is wrong is told by the section itself, and not by one of its fields."""
    try:
        kind.model_validate(drawn, context={"folder": Path()})
    except ValidationError as error:
        return all(not problem["loc"] for problem in error.errors(include_url=False))
    return False
