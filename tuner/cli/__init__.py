from tuner.cli import commands, export_commands  # noqa: F401 - importing a module of commands adds them
from tuner.cli.app import main

__all__ = ["main"]
