"""What all commands share: the application, options of more than one, the console, and `main` with its exit codes."""

import errno
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, cast

import typer
from rich.console import Console, RenderableType

from tuner.cli.terminal import PlainConsole, set_up_logging, steady, visible
from tuner.errors import TunerError

MISTAKE = 2
# What the system says about a path that somebody gave, wherever it is looked at first.
_OF_PATHS = (errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG)
# Characters of an error: names out of files may be megabytes long.
_MOST_TOLD = 1500

# Typer brings its own click: a BadParameter is one of its UsageErrors, which it does not export.
_UsageError = cast("type[typer.BadParameter]", typer.BadParameter.__mro__[1])

TUNE_EXAMPLE = "tuner tune --input_model f.pb --dataset_location coco --output_model q.pb"
EVALUATE_EXAMPLE = "tuner evaluate q.pb --dataset_location coco"
BENCHMARK_EXAMPLE = "tuner benchmark f.pb --vs q.pb"

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    # --max-trials is --max_trials.
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda name: name.replace("-", "_"),
    },
    help="Make a trained TensorFlow detector int8, within a limit of what it may lose.",
    epilog=f"Examples:\n\n{TUNE_EXAMPLE}\n\n{EVALUATE_EXAMPLE}\n\n{BENCHMARK_EXAMPLE}",
)

Topology = Annotated[str | None, typer.Option("--topology", metavar="T", help="Settings from configs/T.yaml.")]
Config = Annotated[Path | None, typer.Option("--config", metavar="YAML", help="Settings; goes before --topology.")]
Location = Annotated[
    str | None,
    typer.Option(
        "--dataset_location",
        metavar="PATH",
        help="Evaluation set: TFRecord file, glob or folder of shards, at a path or an address (s3://...); "
        "COCO folder, or instances JSON.",
    ),
]
BatchSize = Annotated[int | None, typer.Option("--batch_size", metavar="N", min=1, help="Images per batch.")]
Iterations = Annotated[
    int | None, typer.Option("--iters", metavar="N", min=1, help="Runs that are timed, for the latency.")
]
SkipBadRecords = Annotated[bool, typer.Option("--skip-bad-records", help="Leave bad records out and count them.")]
AllowCode = Annotated[bool, typer.Option("--allow-code", help="Import what the settings name as module:name.")]
AllowOps = Annotated[bool, typer.Option("--allow-ops", help="Take a model whose ops reach files, network or code.")]
CacheMb = Annotated[int, typer.Option("--cache-mb", metavar="MIB", min=0, help="Memory for decoded images.")]
Cluster = Annotated[
    str | None,
    typer.Option("--cluster", metavar="WHERE", help="Workers that run graphs: local:N, auto or ray://HOST:PORT (Ray)."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="All that TensorFlow and others log.")]
Model = Annotated[
    Path,
    typer.Argument(metavar="MODEL", help="Frozen .pb, TF1 checkpoint, SavedModel or Keras file.", show_default=False),
]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code. What is nobody's mistake but ours leaves as its exception."""
    try:
        command = typer.main.get_command(app)
        started_as = list(sys.orig_argv) if arguments is None else ["tuner", *arguments]
        return int(command.main(arguments, prog_name="tuner", standalone_mode=False, obj=started_as) or 0)
    except TunerError as error:
        message = str(error)
    except _UsageError as error:
        message = error.format_message()
    except OSError as error:
        if error.errno not in _OF_PATHS or error.filename is None:
            raise
        message = f"{error.filename}: {error.strerror}"
    if message:  # Without a command, the help is all that is said.
        print("error:", _shortened(visible(" ".join(message.split()))), file=sys.stderr)
    return MISTAKE


def _shortened(text: str) -> str:
    """The text without its middle where it is too long: its end often says what was expected."""
    half = _MOST_TOLD // 2
    return text if len(text) <= _MOST_TOLD else f"{text[:half]} ... {text[-half:]}"


def console_on(*, verbose: bool) -> Console:
    """The console on stderr; log records go there from now on."""
    console = PlainConsole(file=steady(sys.stderr))
    set_up_logging(console, verbose=verbose)
    return console


def names_in(given: str | None) -> list[str]:
    """The names of "a, b"; none of what was not given."""
    return [name.strip() for name in (given or "").split(",") if name.strip()]


def megabytes(size_bytes: int) -> str:
    """A size as tables tell it: "1.18 MB"."""
    return f"{size_bytes / 1e6:.2f} MB"


def show(table: RenderableType) -> None:
    """Print a result on stdout."""
    # Not cropped: a path stays whole where the terminal is narrower.
    PlainConsole().print(table, crop=False)
