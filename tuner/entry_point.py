"""Objects that users name as `package.module:name` in YAML."""

import importlib
from typing import Any

from tuner.errors import ConfigError


def load_entry_point(spec: str, key: str) -> Any:
    """The object that `spec` names. key: the setting that named it, for messages.

    Raises ConfigError when the module cannot be imported or has no such name.
    """
    module_name, _, name = spec.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"{key}: {spec!r}: module {module_name} cannot be imported: {error}") from error
    if not hasattr(module, name):
        raise ConfigError(f"{key}: {spec!r}: module {module_name} has no {name!r}")
    return getattr(module, name)
