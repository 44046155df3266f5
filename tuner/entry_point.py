"""Objects that users name as `package.module:name` in YAML."""

import importlib
import sys
from pathlib import Path
from typing import Any

from tuner.errors import ConfigError


def load_entry_point(spec: str, key: str, *, allow_code: bool) -> Any:
    """The object that `spec` names. key: the setting that named it, for messages.

    allow_code: whether it may be imported, which runs the module. A configuration is data, often from elsewhere: that
    it names code does not make the user want to run it.

    Raises ConfigError when it may not be imported, cannot be, or the module has no such name.
    """
    if not allow_code:
        raise ConfigError(
            f"{key}: {spec!r} is code, which is not run because a configuration names it; "
            "give --allow-code (allow_code=True) if you trust it"
        )
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
