"""Optuna's dashboard on the study of a run."""

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from tuner.cli.app import Verbose, app, console_on

EXAMPLE = "tuner dashboard tuner_workspace/shapes --port 0"


@app.command(epilog=f"Example:\n\n{EXAMPLE}")
def dashboard(
    *,
    workspace: Annotated[
        Path, typer.Argument(metavar="WORKSPACE", help="Workspace of a run, ended or not.", show_default=False)
    ],
    storage: Annotated[
        str | None, typer.Option("--storage", metavar="URL", help="The run's study, if not in the workspace.")
    ] = None,
    port: Annotated[
        int, typer.Option("--port", metavar="P", min=0, max=65535, help="Where it listens; 0 for any that is free.")
    ] = 8080,
    verbose: Verbose = False,
) -> int:
    """Look at a run's trials in optuna-dashboard, until Ctrl-C."""
    console_on(verbose=verbose)
    from tuner.dashboard import find_storage, report_files, serve  # noqa: PLC0415 - they take a second; help does not

    with suppress(KeyboardInterrupt):
        serve(find_storage(workspace, storage), port, _announce, report_files(workspace))
    return 0


def _announce(address: str) -> None:
    print(f"{address} (Ctrl-C ends it)", flush=True)
