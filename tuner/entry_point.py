"""Objects that users name as `package.module:name` in YAML."""

import importlib
import sys
from pathlib import Path
from typing import Any

from tuner.errors import ConfigError


def load_entry_point(spec: str, key: str) -> Any:
    """The object that `spec` names. key: the setting that named it, for messages.

    Raises ConfigError when the module cannot be imported or has no such name.
    """
    module_name, _, name = spec.partition(":")
    if not {"", str(Path.cwd())}.intersection(sys.path):
        sys.path.insert(0, str(Path.cwd()))  # as `python -m` does; the installed command does not
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        # Whatever a user's module raises while it is imported is the user's to mend.
        raise ConfigError(
            f"{key}: {spec!r}: module {module_name} cannot be imported: "
            f"{type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
    if not hasattr(module, name):
        raise ConfigError(f"{key}: {spec!r}: module {module_name} has no {name!r}")
    return getattr(module, name)
