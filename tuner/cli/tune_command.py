"""Tuning: arguments in, one call of the pipeline, a table and an exit code out."""

import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from tuner.cli.app import (
    MISTAKE,
    TUNE_EXAMPLE,
    AllowCode,
    AllowOps,
    CacheMb,
    Cluster,
    Config,
    Location,
    Quiet,
    SkipBadRecords,
    Topology,
    Verbose,
    app,
    console_on,
    show,
)
from tuner.cli.json_lines import JsonLines
from tuner.cli.progress import progress_on
from tuner.cli.settings import FlagSetting, load_settings
from tuner.cli.terminal import hushed, steady
from tuner.config import workspace_of
from tuner.errors import ConfigError, TunerError
from tuner.progress import Progress
from tuner.report.result import TuningResult, result_json
from tuner.report.table import tuning_table
from tuner.storage_url import shown_storage

NOT_ACCEPTED, INTERRUPTED = 3, 130
EXIT_CODES = {"accepted": 0, "best_effort": NOT_ACCEPTED, "failed": NOT_ACCEPTED, "interrupted": INTERRUPTED}


@app.command(epilog=f"Example:\n\n{TUNE_EXAMPLE}")
def tune(
    context: typer.Context,
    *,
    input_model: Annotated[
        Path | None,
        typer.Option("--input_model", metavar="PATH", help="Frozen .pb, TF1 checkpoint, SavedModel or Keras file."),
    ] = None,
    output_model: Annotated[
        Path | None,
        typer.Option("--output_model", metavar="PATH", help="The int8 graph: NAME.pb, or a folder for a SavedModel."),
    ] = None,
    dataset_location: Location = None,
    topology: Topology = None,
    config: Config = None,
    calibration_location: Annotated[
        str | None,
        typer.Option(
            "--calibration_location",
            metavar="PATH",
            help="Calibration images, if not the config's or the evaluation set's first.",
        ),
    ] = None,
    workspace: Annotated[
        Path | None,
        typer.Option("--workspace", metavar="DIR", help="Record and report; ./tuner_workspace/NAME if not given."),
    ] = None,
    accuracy_loss: Annotated[
        str | None,
        typer.Option("--accuracy_loss", metavar="SHARE", help="Relative loss allowed, as 0.01 or 1%."),
    ] = None,
    max_trials: Annotated[int | None, typer.Option("--max_trials", metavar="N", help="Plans to try, at most.")] = None,
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", metavar="S", help="Seconds to look for a better plan; 0: stop when one is found."),
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option("--strategy", metavar="NAME", help="guided, or basic, mse, bayesian, tpe, random, exhaustive."),
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option("--objective", metavar="NAME", help="performance, footprint, modelsize or accuracy."),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option("--alpha", metavar="SHARE", help="Plans wrongly dropped before all images are seen; 0: none."),
    ] = None,
    confirm: Annotated[
        float | None,
        typer.Option("--confirm", metavar="SHARE", help="Share of the images kept from the search, to confirm it."),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option("--labels", metavar="KIND", help="annotations, or model: what the float model finds is true."),
    ] = None,
    label_score: Annotated[
        float | None,
        typer.Option("--label_score", metavar="SCORE", help="The least score of what --labels=model counts (0.3)."),
    ] = None,
    iou_type: Annotated[
        str | None, typer.Option("--iou_type", metavar="KIND", help="What is compared: bbox, segm (masks) or both.")
    ] = None,
    engine: Annotated[
        str | None, typer.Option("--engine", metavar="NAME", help="lowering, or inc for neural-compressor.")
    ] = None,
    optimize_postprocess: Annotated[
        bool | None,
        typer.Option(
            "--optimize-postprocess/--no-optimize-postprocess",
            help="Batch the Object Detection API's loops and suppression where detections stay the same (default: on).",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the workspace's last run stopped.")] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Use nothing of earlier runs in the workspace, calibration neither.")
    ] = False,
    storage: Annotated[
        str | None, typer.Option("--storage", metavar="URL", help="SQLAlchemy URL instead of the workspace's study.db.")
    ] = None,
    cluster: Cluster = None,
    skip_bad_records: SkipBadRecords = False,
    cache_mb: CacheMb = 512,
    allow_code: AllowCode = False,
    allow_ops: AllowOps = False,
    quiet: Quiet = False,
    json_lines: Annotated[
        bool, typer.Option("--json-lines", help="One JSON object for each event on stdout, and nothing else.")
    ] = False,
    verbose: Verbose = False,
) -> int:
    """Find the fastest int8 graph that keeps the accuracy, and write it."""
    missing = [name for name, path in (("--input_model", input_model), ("--output_model", output_model)) if not path]
    if input_model is None or output_model is None:
        raise ConfigError(f"{' and '.join(missing)} missing; for example: {TUNE_EXAMPLE}")
    if resume and fresh:
        raise ConfigError("--resume and --fresh: got both; --resume goes on, --fresh starts anew")
    flags = [
        FlagSetting("--accuracy_loss", "tuning.accuracy_criterion.relative", accuracy_loss, instead_of="absolute"),
        FlagSetting("--max_trials", "tuning.exit_policy.max_trials", max_trials),
        FlagSetting("--timeout", "tuning.exit_policy.timeout", timeout),
        FlagSetting("--strategy", "tuning.strategy.name", strategy),
        FlagSetting("--objective", "tuning.objective", objective, instead_of="multi_objectives"),
        FlagSetting("--alpha", "tuning.early_rejection_alpha", alpha),
        FlagSetting("--confirm", "tuning.confirm", confirm),
        FlagSetting("--labels", "evaluation.accuracy.labels", labels),
        FlagSetting("--label_score", "evaluation.accuracy.label_score", label_score),
        FlagSetting("--iou_type", "evaluation.accuracy.metric.COCOmAP.iouType", iou_type),
        FlagSetting("--engine", "quantization.engine", engine),
        FlagSetting("--optimize-postprocess", "quantization.optimize_postprocess", optimize_postprocess),
    ]
    settings = load_settings(
        config,
        topology,
        input_model,
        flags=flags,
        dataset_location=dataset_location,
        calibration_location=calibration_location,
    )
    folder = workspace or workspace_of(settings.tuning, settings.model.name)
    console = console_on(verbose=verbose)
    with hushed(verbose=verbose):
        from tuner import job as jobs  # noqa: PLC0415 - as below
        from tuner import pipeline  # noqa: PLC0415 - TensorFlow takes seconds; help and mistakes do not wait
    job = jobs.TuningJob(
        config=settings,
        input_model=input_model,
        output_model=output_model,
        workspace=folder,
        storage=storage,
        cluster=cluster,
        resume=resume or (settings.tuning.workspace.resume is not None and not fresh),
        fresh=fresh,
        skip_bad_records=skip_bad_records,
        cache_mb=cache_mb,
        allow_code=allow_code,
        allow_ops=allow_ops,
    )
    start = Start(Path.cwd(), context.obj)
    if json_lines:
        lines = JsonLines(steady(sys.stdout))
        with _signals_end_in_order():
            return _told_in_json(lambda progress: pipeline.tune(job, progress), lines, folder, start)
    try:
        # What others print, of a cluster for instance, is no result.
        with _signals_end_in_order(), redirect_stdout(sys.stderr):
            result = pipeline.tune(job, progress_on(console, quiet=quiet))
    except KeyboardInterrupt as stop:
        _tell_how_to_go_on(start.command(resume=bool(stop.args)))
        raise
    show(tuning_table(result, folder))
    if EXIT_CODES[result.status.value] == INTERRUPTED:
        _tell_how_to_go_on(start.command(resume=True))
    return EXIT_CODES[result.status.value]


@contextmanager
def _signals_end_in_order() -> Iterator[None]:
    """Let `kill`, and a terminal that closes, end a run as Ctrl-C does; what `nohup` has it ignore stays ignored."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    caught = [number for number, handler in before.items() if handler == signal.SIG_DFL]
    for number in caught:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in caught:
            signal.signal(number, before[number])


@dataclass(frozen=True)
class Start:
    """How a run was started. folder: the current one. arguments: of the process, the program first.

    A password in --storage is not told.
    """

    folder: Path
    arguments: Sequence[str]

    def command(self, *, resume: bool) -> str:
        """The line for a shell that starts the run again; with `resume` it goes on."""
        program, *rest = map(_shown, self.arguments)
        if rest and Path(rest[0]).name == "tuner":
            program, *rest = rest  # a script that an interpreter was given
        if resume:
            rest = [*(one for one in rest if one not in ("--fresh", "--resume")), "--resume"]
        return f"cd {shlex.quote(str(self.folder))} && {shlex.join([program, *rest])}"


def _shown(argument: str) -> str:
    """An argument as it may be printed."""
    flag, joined, value = argument.rpartition("--storage=")
    return argument if flag else joined + shown_storage(value)


def _told_in_json(run: Callable[[Progress], TuningResult], lines: JsonLines, folder: Path, start: Start) -> int:
    """Run with stdout for `lines` alone: what others print goes to stderr."""
    ended: dict[str, object] = {"exit_code": 1, "error": None, "go_on": None}
    lines.tell("began", command=start.command(resume=False), workspace=str(folder))
    try:
        with redirect_stdout(sys.stderr):
            result = run(lines)
        lines.tell("result", result=result_json(result))
        code = EXIT_CODES[result.status.value]
        ended["exit_code"] = code
        if code == INTERRUPTED:
            ended["go_on"] = start.command(resume=True)
        return code
    except TunerError as error:
        ended |= {"exit_code": MISTAKE, "error": " ".join(str(error).split())}
        raise
    except KeyboardInterrupt as stop:
        ended |= {"exit_code": INTERRUPTED, "go_on": start.command(resume=bool(stop.args))}
        raise
    finally:
        lines.tell("ended", **ended)


def _tell_how_to_go_on(command: str) -> None:
    print(f"\nto go on:\n{command}", file=sys.stderr)
