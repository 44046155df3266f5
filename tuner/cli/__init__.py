from tuner.cli import commands, model_commands  # noqa: F401 - importing a module of commands adds them to the application
from tuner.cli.app import main

__all__ = ["main"]
