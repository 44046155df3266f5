"""Two models, or the models of two runs, on the same images."""

import json
from pathlib import Path
from typing import Annotated

import typer

from tuner.cli.app import (
    AllowCode,
    AllowOps,
    CacheMb,
    Config,
    Iterations,
    Location,
    Quiet,
    SkipBadRecords,
    Topology,
    Verbose,
    app,
    console_on,
    show,
)
from tuner.cli.measure_commands import AsJson
from tuner.cli.progress import progress_on
from tuner.cli.settings import load_settings
from tuner.cli.terminal import hushed
from tuner.comparison.sides import find_given

MODELS_EXAMPLE = "tuner compare float.pb int8.pb --dataset_location coco"
WORKSPACES_EXAMPLE = "tuner compare tuner_workspace/one tuner_workspace/other --limit 500"
_HELP = "A model, or the workspace of a run: what it wrote."


@app.command(epilog=f"Examples:\n\n{MODELS_EXAMPLE}\n\n{WORKSPACES_EXAMPLE}")
def compare(
    *,
    a: Annotated[Path, typer.Argument(metavar="A", help=_HELP, show_default=False)],
    b: Annotated[Path, typer.Argument(metavar="B", help=_HELP, show_default=False)],
    dataset_location: Location = None,
    topology: Topology = None,
    config: Config = None,
    limit: Annotated[int | None, typer.Option("--limit", metavar="N", min=1, help="The first N images only.")] = None,
    top: Annotated[int, typer.Option("--top", metavar="N", min=0, help="Images told, those that differ most.")] = 10,
    iters: Iterations = None,
    skip_bad_records: SkipBadRecords = False,
    cache_mb: CacheMb = 512,
    allow_code: AllowCode = False,
    allow_ops: AllowOps = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Compare two models, or what two runs wrote: accuracy by category, images, speed."""
    given = [find_given(a), find_given(b)]
    # A model beside a workspace is measured as that run measured.
    of_runs = [one.settings for one in given if one.settings is not None and topology is None]
    files = [config or (one.settings if one.settings in of_runs else next(iter(of_runs), None)) for one in given]
    read = {
        file: load_settings(file, topology, given[0].model, dataset_location=dataset_location) for file in set(files)
    }
    console = console_on(verbose=verbose)
    with hushed(verbose=verbose):
        from tuner.comparison.compare import Side  # noqa: PLC0415 - TensorFlow takes seconds
        from tuner.comparison.compare import compare as run  # noqa: PLC0415
        from tuner.comparison.table import comparison_table  # noqa: PLC0415
    first, second = (Side(one.model, read[file], one.float_model) for one, file in zip(given, files, strict=True))
    found = run(
        (first, second),
        progress_on(console, quiet=quiet),
        limit=limit,
        most_images=top,
        iterations=iters,
        skip_bad_records=skip_bad_records,
        cache_mb=cache_mb,
        allow_code=allow_code,
        allow_ops=allow_ops,
    )
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
    else:
        show(comparison_table(found))
    return 0
