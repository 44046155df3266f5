# Importing a module of commands adds them to the application, in this order.
from tuner.cli import tune_command, measure_commands, model_commands, graph_commands, export_commands, prepare_commands  # noqa: F401, I001
from tuner.cli import report_command, compare_command, explain_command, dashboard_command  # noqa: F401
from tuner.cli.app import main

__all__ = ["main"]
