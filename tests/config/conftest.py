"""Settings as plain mappings, the smallest that load and the fullest."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tuner.config import TuningConfig, parse_config


def nested(path: str, value: object) -> dict[str, Any]:
    """`{"a": {"b": value}}` for the path `a.b`."""
    for key in reversed(path.split(".")):
        value = {key: value}
    assert isinstance(value, dict)
    return value


@pytest.fixture(scope="session")
def parse() -> Callable[..., TuningConfig]:
    """Parse settings given as paths and values, on top of a model's name."""

    def parse(settings: dict[str, object]) -> TuningConfig:
        merged: dict[str, Any] = {"model": {"name": "m"}}
        for path, value in settings.items():
            merge(merged, nested(path, value))
        return parse_config(merged, "f.yaml", Path("/folder"))

    return parse


def merge(into: dict[str, Any], more: dict[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = value
