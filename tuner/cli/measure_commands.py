"""One model, or two, as they are: accuracy, speed, and where the time goes."""

import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from tuner.address import place
from tuner.cli.app import (
    BENCHMARK_EXAMPLE,
    EVALUATE_EXAMPLE,
    AllowCode,
    AllowOps,
    BatchSize,
    CacheMb,
    Cluster,
    Config,
    Iterations,
    Location,
    Model,
    Quiet,
    SkipBadRecords,
    Topology,
    Verbose,
    app,
    console_on,
    show,
)
from tuner.cli.progress import progress_on
from tuner.cli.settings import FlagSetting, load_settings
from tuner.cli.terminal import hushed, visible
from tuner.config import PerformanceConfig
from tuner.errors import ConfigError
from tuner.files import write_text
from tuner.report.speed import latency_markdown, latency_table, profile_tables
from tuner.report.table import measurement_table

PROFILE_EXAMPLE = "tuner profile f.pb trace.json --dataset_location coco"
SEVERAL_EXAMPLE = "tuner benchmark f.pb --vs q.pb --batch_size 1,4,8 --warmup 50 --iters 1000 --xla"
ITERATIONS = 100
SCHEMA = 1

AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of tables.")]


@app.command(epilog=f"Example:\n\n{EVALUATE_EXAMPLE}")
def evaluate(
    *,
    model: Model,
    dataset_location: Location = None,
    topology: Topology = None,
    config: Config = None,
    batch_size: BatchSize = None,
    iters: Iterations = None,
    cluster: Cluster = None,
    skip_bad_records: SkipBadRecords = False,
    cache_mb: CacheMb = 512,
    allow_code: AllowCode = False,
    allow_ops: AllowOps = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Measure one model: the COCO figures and the latency."""
    flags = [
        FlagSetting("--batch_size", "evaluation.accuracy.dataloader.batch_size", batch_size),
        FlagSetting("--iters", "evaluation.performance.iteration", iters),
    ]
    settings = load_settings(config, topology, model, flags=flags, dataset_location=dataset_location)
    console = console_on(verbose=verbose)
    with hushed(verbose=verbose):
        from tuner import measure  # noqa: PLC0415
    progress = progress_on(console, quiet=quiet)
    with redirect_stdout(sys.stderr):
        measurement = measure.evaluate(
            settings,
            model,
            progress,
            cluster=cluster,
            skip_bad_records=skip_bad_records,
            cache_mb=cache_mb,
            allow_code=allow_code,
            allow_ops=allow_ops,
        )
    show(measurement_table(measurement, model))
    return 0


@app.command(epilog=f"Examples:\n\n{BENCHMARK_EXAMPLE}\n\n{SEVERAL_EXAMPLE}")
def benchmark(
    *,
    model: Model,
    vs: Annotated[
        Path | None, typer.Option("--vs", metavar="OTHER", help="A second model, run in turns with the first.")
    ] = None,
    dataset_location: Location = None,
    topology: Topology = None,
    config: Config = None,
    batch_size: Annotated[
        list[str] | None,
        typer.Option("--batch_size", metavar="N,N", help="Images per batch; several sizes one after the other."),
    ] = None,
    iters: Iterations = None,
    warmup: Annotated[
        int | None, typer.Option("--warmup", metavar="N", min=0, help="Runs before the clock starts.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", metavar="N", min=0, help="Of each instance; 0: all of its cores.")
    ] = None,
    instances: Annotated[
        int | None, typer.Option("--instances", metavar="N", min=1, help="Processes at once, pinned to their cores.")
    ] = None,
    xla: Annotated[bool, typer.Option("--xla", help="Beside each plain run the same compiled by XLA.")] = False,
    allow_ops: AllowOps = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="A Markdown table instead.")] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> int:
    """Measure the latency and the images per second of one model, or of two in turns."""
    if markdown and as_json:
        raise ConfigError("--markdown and --json: got both; expected one of them")
    settings = None if config is None and topology is None else load_settings(config, topology, model)
    performance = PerformanceConfig() if settings is None else settings.evaluation.performance
    compute = performance.configs
    loader = performance.dataloader
    batch_sizes = _batch_sizes(batch_size or ["1" if loader is None else loader.batch_size])
    if iters is None:
        iters = performance.iteration if performance.iteration > 0 else ITERATIONS
    asked: dict[str, Any] = {
        "warmup": performance.warmup if warmup is None else warmup,
        "iterations": iters,
        "threads": (compute.intra_num_of_threads or compute.cores_per_instance or 0) if threads is None else threads,
        "instances": instances or compute.num_of_instance or 1,
    }
    models = [model] if vs is None else [model, vs]
    names = _different_names(models)
    console_on(verbose=verbose)
    # The processes of several instances write banners of their own.
    with hushed(verbose=verbose):
        from tuner import measure  # noqa: PLC0415 - TensorFlow takes seconds; help and mistakes do not wait

        runs = measure.benchmark(
            settings,
            models,
            names=names,
            dataset_location=None if dataset_location is None else place(dataset_location),
            batch_sizes=batch_sizes,
            xla=xla,
            allow_ops=allow_ops,
            **asked,
        )
    if as_json:
        paths = {name: str(path.absolute()) for name, path in zip(names, models, strict=True)}
        rows = [{"path": paths[run.model], **asdict(run)} for run in runs]
        typer.echo(json.dumps({"schema": SCHEMA, **asked, "runs": rows}, indent=2))
    elif markdown:
        typer.echo(visible(latency_markdown(runs)))
    else:
        show(latency_table(runs))
    return 0


@app.command(epilog=f"Example:\n\n{PROFILE_EXAMPLE}")
def profile(
    *,
    model: Model,
    trace: Annotated[
        Path | None,
        typer.Argument(
            metavar="[OUT.json]", help="The runs as a trace for chrome://tracing and Perfetto.", show_default=False
        ),
    ] = None,
    dataset_location: Location = None,
    runs: Annotated[int, typer.Option("--runs", metavar="N", min=1, help="Runs that are traced.")] = 10,
    warmup: Annotated[int, typer.Option("--warmup", metavar="N", min=0, help="Runs before these.")] = 3,
    top: Annotated[int, typer.Option("--top", metavar="N", min=1, help="Op types and nodes told, the slowest.")] = 10,
    allow_ops: AllowOps = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> int:
    """Tell where a model's time goes: by part of the detector, op type and node."""
    if trace is not None and trace.suffix != ".json":
        raise ConfigError(f"{trace}: the trace is written as JSON; expected a name ending in .json")
    console_on(verbose=verbose)
    with hushed(verbose=verbose):
        from tuner.data.dataset import open_dataset  # noqa: PLC0415
        from tuner.graph.profile import profile as run  # noqa: PLC0415
        from tuner.model.loading import load_model  # noqa: PLC0415
        from tuner.model.runner import grey_image  # noqa: PLC0415

        loaded = load_model(model, allow_ops=allow_ops)
        if dataset_location is None:
            image = grey_image(loaded)
        else:
            image = open_dataset(place(dataset_location), limit=1, cache_mb=0).first_image
        found = run(loaded, image[None], runs=runs, warmup=warmup)
    if trace is not None:
        write_text(trace, json.dumps(found.trace) + "\n")
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
    else:
        show(profile_tables(found.to_json(), top))
    return 0


def _different_names(models: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart; file names where a model is timed against itself."""
    paths = [path.absolute() for path in models]
    for count in range(1, max(len(path.parts) for path in paths) + 1):
        names = [str(Path(*path.parts[-count:])) for path in paths]
        if len(set(names)) == len(set(paths)):
            break
    return names


def _batch_sizes(given: Sequence[str | int]) -> list[int]:
    """The sizes of `--batch_size 1,4 --batch_size 8`, each once. Raises ConfigError for anything but whole numbers."""
    words = [word.strip() for one in given for word in str(one).split(",")]
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise ConfigError(f"--batch_size: got {','.join(words)!r}; expected whole numbers from 1 on, as 1,4,8")
    return list(dict.fromkeys(map(int, words)))
