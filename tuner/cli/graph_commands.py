"""Graph tools: freeze, transform and place. A model in, a frozen graph and a few lines about it out."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text
from typer.core import TyperCommand

from tuner.cli.app import AllowOps, Model, Verbose, app, console_on, megabytes, names_in, show
from tuner.cli.terminal import hushed
from tuner.errors import ConfigError
from tuner.report.table import plain_table

FREEZE_EXAMPLE = "tuner freeze saved_model frozen.pb --outputs detection_boxes,detection_scores"
TRANSFORM_EXAMPLE = (
    "tuner transform frozen.pb smaller.pb --inputs image_tensor --outputs detection_boxes,detection_scores "
    "--transforms 'fold_constants(ignore_errors=true) fold_batch_norms'"
)
PLACE_EXAMPLE = "tuner place frozen.pb placed.pb --op NonMaxSuppression --device /device:CPU:0"

Output = Annotated[Path, typer.Argument(metavar="OUTPUT.pb", help="The graph that is written.", show_default=False)]
Inputs = Annotated[
    str, typer.Option("--inputs", metavar="A,B", help="Tensors that are fed, if not those found.", show_default=False)
]


class _FreezeCommand(TyperCommand):
    """A command whose --input_binary goes with or without a value, as freeze_graph's did."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Write the value that a bare --input_binary stands for."""
        valued = [
            f"{flag}=true"
            if flag.replace("-", "_") == "__input_binary" and not _is_boolean("".join(rest[:1]))
            else flag
            for flag, rest in ((flag, args[index + 1 :]) for index, flag in enumerate(args))
        ]
        return super().parse_args(ctx, valued)


@app.command(cls=_FreezeCommand, epilog=f"Example:\n\n{FREEZE_EXAMPLE}")
def freeze(
    *,
    model: Annotated[
        Path | None,
        typer.Argument(
            metavar="MODEL", help="TF1 checkpoint, SavedModel, Keras file, .pb or .pbtxt.", show_default=False
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Argument(metavar="OUTPUT.pb", help="The frozen graph.", show_default=False)
    ] = None,
    outputs: Annotated[
        str,
        typer.Option(
            "--outputs", "--output_node_names", metavar="A,B", help="What is read, if not found.", show_default=False
        ),
    ] = "",
    inputs: Inputs = "",
    input_graph: Annotated[
        Path | None, typer.Option("--input_graph", metavar="PATH", help="The same as MODEL.", show_default=False)
    ] = None,
    input_checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--input_checkpoint",
            metavar="PREFIX",
            help="Checkpoint with the variables of a .pb, .pbtxt or .meta; without any of them, the model.",
            show_default=False,
        ),
    ] = None,
    input_binary: Annotated[
        str,
        typer.Option(
            "--input_binary", metavar="[true|false]", help="As freeze_graph had it; found out here.", show_default=False
        ),
    ] = "true",
    output_graph: Annotated[
        Path | None, typer.Option("--output_graph", metavar="PATH", help="The same as OUTPUT.pb.", show_default=False)
    ] = None,
    add_constant: Annotated[
        str | None,
        typer.Option("--add-constant", metavar="NAME=FILE", help="Constant of a .npy or .npz (.npz:KEY) file."),
    ] = None,
    add_to: Annotated[
        str | None, typer.Option("--add-to", metavar="TENSOR", help="What the constant is added to.")
    ] = None,
    called: Annotated[
        str | None, typer.Option("--as", metavar="NAME", help="Name of the sum, an output in that tensor's place.")
    ] = None,
    allow_ops: AllowOps = False,
    verbose: Verbose = False,
) -> int:
    """Make variables constants and leave out what only training needs."""
    if model is None and input_graph is None:
        # The checkpoint alone: its own .meta is the graph.
        input_graph, input_checkpoint = input_checkpoint, None
    source, target = _source_and_target(model, output, input_graph, output_graph)
    if not _is_boolean(input_binary):
        raise ConfigError(f"--input_binary: got {input_binary!r}; expected true or false")
    _check_name(target)
    console_on(verbose=verbose)
    with hushed(verbose=verbose):
        from tuner.export.output import check_output, export_model  # noqa: PLC0415 - TensorFlow takes seconds
        from tuner.graph import added_constant, freeze  # noqa: PLC0415

        check_output(target, source)
        constant = None
        if add_constant is not None and add_to is not None and called is not None:
            constant = added_constant.AddedConstant(*added_constant.read_constant(add_constant), add_to, called)
        elif (add_constant, add_to, called) != (None, None, None):
            raise ConfigError("--add-constant, --add-to and --as go together")
        frozen = freeze.freeze(
            source,
            names_in(inputs),
            names_in(outputs),
            checkpoint=input_checkpoint,
            constant=constant,
            allow_ops=allow_ops,
        )
        export_model(frozen, target)
    table = plain_table("", "frozen")
    table.add_row("nodes", str(len(frozen.graph_def.node)))
    table.add_row("file size", megabytes(frozen.size_bytes))
    table.add_row("inputs", "\n".join(frozen.inputs))
    table.add_row("outputs", "\n".join(frozen.outputs))
    show(table)
    show(_written(target))
    return 0


@app.command(epilog=f"Example:\n\n{TRANSFORM_EXAMPLE}")
def transform(
    *,
    model: Model,
    output: Output,
    transforms: Annotated[
        str,
        typer.Option(
            "--transforms",
            metavar="'A(x=1) B'",
            help="Transforms of the Graph Transform Tool in their order, or the name of a list: "
            "optimizing_for_deployment, fix_missing_kernel_errors, optimize_quantize_weights.",
        ),
    ],
    inputs: Inputs = "",
    outputs: Annotated[
        str, typer.Option("--outputs", metavar="A,B", help="What is read, if not found.", show_default=False)
    ] = "",
    shape: Annotated[
        str | None, typer.Option("--shape", metavar="1,H,W,3", help="Input shape of a named list; else 1,299,299,3.")
    ] = None,
    allow_ops: AllowOps = False,
    verbose: Verbose = False,
) -> int:
    """Run TensorFlow's Graph Transform Tool."""
    _check_name(output)
    console_on(verbose=verbose)
    with hushed(verbose=verbose):
        from tuner.export.output import check_output  # noqa: PLC0415
        from tuner.graph.transforms import named_transforms, transform_graph  # noqa: PLC0415

        check_output(output, model)
        listed = named_transforms(transforms, shape)
        done = transform_graph(model, output.parent, output.name, inputs, outputs, listed, allow_ops=allow_ops)
    table = plain_table("", "before", "after")
    graphs = (done.before, done.after)
    table.add_row("nodes", *(str(len(graph.node)) for graph in graphs))
    table.add_row("op types", *(str(len({node.op for node in graph.node})) for graph in graphs))
    table.add_row("file size", *(megabytes(graph.ByteSize()) for graph in graphs))
    show(table)
    show(_written(output))
    return 0


@app.command(epilog=f"Example:\n\n{PLACE_EXAMPLE}")
def place(
    *,
    model: Model,
    output: Output,
    device: Annotated[str, typer.Option("--device", metavar="DEVICE", help="As /device:CPU:0 or /device:GPU:1.")],
    op: Annotated[
        list[str] | None, typer.Option("--op", metavar="TEXT", help="Ops with this in their name or type; repeatable.")
    ] = None,
    op_type: Annotated[
        list[str] | None, typer.Option("--type", metavar="TYPE", help="Ops of just this type; repeatable.")
    ] = None,
    regex: Annotated[
        list[str] | None, typer.Option("--regex", metavar="REGEX", help="Ops whose name it finds; repeatable.")
    ] = None,
    allow_ops: AllowOps = False,
    verbose: Verbose = False,
) -> int:
    """Pin ops to a device."""
    _check_name(output)
    console_on(verbose=verbose)
    with hushed(verbose=verbose):
        from tuner.export.output import check_output, export_model  # noqa: PLC0415
        from tuner.graph.place import place_ops  # noqa: PLC0415
        from tuner.model.loading import load_model  # noqa: PLC0415

        check_output(output, model)
        placed = place_ops(
            load_model(model, allow_ops=allow_ops), device, parts=op or (), types=op_type or (), regexes=regex or ()
        )
        export_model(placed.model, output)
    table = plain_table(f"on {device}", "ops")
    for name, count in placed.pinned.items():
        table.add_row(name, str(count))
    table.add_row("all", str(sum(placed.pinned.values())), style="bold")
    show(table)
    show(_written(output))
    return 0


def _source_and_target(
    model: Path | None, output: Path | None, input_graph: Path | None, output_graph: Path | None
) -> tuple[Path, Path]:
    """What is read and what is written, each as an argument or as freeze_graph's flag."""
    arguments = [path for path in (model, output) if path is not None]
    source = input_graph or (arguments.pop(0) if arguments else None)
    target = output_graph or (arguments.pop(0) if arguments else None)
    if source is None or target is None or arguments:
        problem = f"{arguments[0]} is one path too many" if arguments else "a model and an output are needed"
        raise ConfigError(f"{problem}; for example: {FREEZE_EXAMPLE}")
    return source, target


def _check_name(output: Path) -> None:
    """Refuse what is no name for a frozen graph."""
    if output.suffix != ".pb":
        raise ConfigError(f"{output}: a frozen graph is written to a name ending in .pb")


def _is_boolean(text: str) -> bool:
    return text.lower() in ("true", "false")


def _written(path: Path) -> Text:
    # Whole, however long: a path that is broken into lines cannot be copied.
    return Text(f"graph  {path}", no_wrap=True, overflow="ignore")
