"""The report of a run, made anew from its workspace."""

from pathlib import Path
from typing import Annotated

import typer

from tuner.cli.app import app, console_on
from tuner.cli.terminal import hushed

REPORT_EXAMPLE = "tuner report tuner_workspace/shapes"


@app.command(epilog=f"Example:\n\n{REPORT_EXAMPLE}")
def report(
    *,
    workspace: Annotated[
        Path, typer.Argument(metavar="WORKSPACE", help="The folder in which tune kept its record.", show_default=False)
    ],
) -> int:
    """Make report.html of a run anew, also while it goes on or where it was cut off."""
    console_on(verbose=False)
    with hushed(verbose=False):
        from tuner.report.html.page import write_report  # noqa: PLC0415 - matplotlib takes a second
    print(write_report(workspace))
    return 0
