"""The error family: every error a user can cause or mend is a `TunerError` with a one-line message."""

from collections.abc import Iterable
from difflib import get_close_matches


class TunerError(Exception):
    """An error told to the user in one line: what was found, where, and what is allowed."""


class ConfigError(TunerError):
    """A setting, flag or plan file that cannot be honoured."""


class ModelError(TunerError):
    """A model that cannot be read, has no usable inputs or outputs, or does not run."""


class DatasetError(TunerError):
    """A record, image or annotation that cannot be used."""


class QuantizationError(TunerError):
    """A plan that cannot be lowered to an int8 graph."""


class EvaluationError(TunerError):
    """A graph that ran, but whose accuracy could not be measured."""


class ClusterError(TunerError):
    """A cluster that cannot be reached or used, or has lost its workers."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The nearest of `known` as an appendix to an error message, or nothing."""
    near = get_close_matches(name, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
