# Importing a module of commands adds them to the application.
from tuner.cli import commands, export_commands, graph_commands, measure_commands, model_commands  # noqa: F401
from tuner.cli.app import main

__all__ = ["main"]
