"""Commands about one graph: optimise it for inference, summarise it, quantise it without tuning."""

import json
from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuner.address import place
from tuner.cli.app import (
    AllowCode,
    AllowOps,
    Config,
    Location,
    Model,
    SkipBadRecords,
    Topology,
    Verbose,
    app,
    console_on,
    names_in,
    show,
)
from tuner.cli.settings import load_settings
from tuner.cli.terminal import hushed
from tuner.errors import ConfigError, ModelError, TunerError

if TYPE_CHECKING:
    from tuner.model.detection_model import DetectionModel

OPTIMIZE_EXAMPLE = "tuner optimize frozen.pb optimized.pb --dataset_location coco"
SUMMARIZE_EXAMPLE = "tuner summarize frozen.pb --shape 1,320,320,3"
QUANTIZE_EXAMPLE = "tuner quantize frozen.pb q.pb --mode eightbit --calibration_location coco"

REAL_IMAGES = 10

Output = Annotated[
    Path,
    typer.Argument(
        metavar="OUT", help="NAME.pb for a frozen graph, else a folder for a SavedModel.", show_default=False
    ),
]
Names = Annotated[str | None, typer.Option(metavar="A,B", help="Tensor names, if not those that are found.")]


class Mode(StrEnum):
    """What `quantize` makes a graph into."""

    EIGHTBIT = "eightbit"
    WEIGHTS = "weights"
    BF16 = "bf16"


@app.command(epilog=f"Example:\n\n{OPTIMIZE_EXAMPLE}")
def optimize(
    *,
    model: Model,
    output: Output,
    inputs: Names = None,
    outputs: Names = None,
    dataset_location: Location = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Run both graphs on the same images and compare.")
    ] = True,
    iters: Annotated[int, typer.Option("--iters", metavar="N", min=0, help="Runs that are timed; 0: none.")] = 20,
    allow_ops: AllowOps = False,
    verbose: Verbose = False,
) -> int:
    """Fold, merge and strip what inference does not need; the results stay the same."""
    console_on(verbose=verbose)
    with hushed(verbose=verbose):
        from tuner import measure  # noqa: PLC0415 - TensorFlow takes seconds; help and mistakes do not wait
        from tuner.cli.model_tables import change_table  # noqa: PLC0415
        from tuner.data.calibration import calibration_images  # noqa: PLC0415
        from tuner.data.dataset import open_dataset  # noqa: PLC0415
        from tuner.export.output import check_output, export_model  # noqa: PLC0415
        from tuner.graph.equivalence import check_same_results, random_images  # noqa: PLC0415
        from tuner.graph.inference import optimize_for_inference  # noqa: PLC0415
        from tuner.model.graph_view import node_name  # noqa: PLC0415
        from tuner.model.loading import load_model  # noqa: PLC0415

        check_output(output, model)
        before = load_model(model, names_in(inputs), names_in(outputs), allow_ops=allow_ops)
        real_images = []
        if dataset_location is not None:
            dataset = open_dataset(place(dataset_location), limit=REAL_IMAGES, cache_mb=0)
            real_images = list(calibration_images(dataset, REAL_IMAGES))
        after = optimize_for_inference(before)
        lost = [name for name in before.inputs if node_name(name) not in after.graph.nodes]
        if lost:
            raise ModelError(f"{model}: input {lost[0]} would be folded away; name the tensor before it")
        notes = []
        if verify:
            images = [*random_images(before), *real_images]
            differences = check_same_results(before, after, images)
            notes += [f"{name} differs by at most {share:.1e}" for name, share in differences.items()]
            notes.append(f"of its largest value, on {len(images)} images")
        latency_ms: list[float] = []
        if iters:
            # Before anything is written: a graph that cannot be timed here may still be wanted.
            image = next(iter(real_images), None)
            try:
                latency_ms = measure.median_latencies_ms([before, after], image, iterations=iters)
            except TunerError as error:
                notes.append(f"latency not measured: {error}")
        export_model(after, output)
    show(change_table(_described(before), _described(after), latency_ms, [*notes, f"written to {output}"]))
    return 0


@app.command(epilog=f"Example:\n\n{SUMMARIZE_EXAMPLE}")
def summarize(
    *,
    model: Model,
    inputs: Names = None,
    outputs: Names = None,
    shape: Annotated[
        str | None, typer.Option("--shape", metavar="N,H,W,C", help="Of the input, for the operations.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="All of it, as JSON.")] = False,
    allow_ops: AllowOps = False,
    verbose: Verbose = False,
) -> int:
    """Tell what a model consists of and computes, and what of it can be int8 or bf16."""
    sizes = None if shape is None else _sizes(shape)
    console_on(verbose=verbose)
    with hushed(verbose=verbose):
        from tuner.cli.model_tables import summary_table  # noqa: PLC0415
        from tuner.model.loading import load_model  # noqa: PLC0415
        from tuner.summary import summarize as summarize_model  # noqa: PLC0415

        loaded = load_model(model, names_in(inputs), names_in(outputs), allow_ops=allow_ops)
        found = summarize_model(loaded, sizes)
    if as_json:
        print(json.dumps(found.to_json(), indent=2))
    else:
        show(summary_table(found))
    return 0


@app.command(epilog=f"Example:\n\n{QUANTIZE_EXAMPLE}")
def quantize(
    *,
    model: Model,
    output: Output,
    mode: Annotated[
        Mode,
        typer.Option(
            "--mode", help="int8 kernels, weights stored in 8 bits, or convolutions in bf16.", show_default=False
        ),
    ],
    calibration_location: Annotated[
        str | None, typer.Option("--calibration_location", metavar="PATH", help="Images for eightbit.")
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option("--plan", metavar="YAML", help="plan.yaml of an earlier run, to make its graph again."),
    ] = None,
    topology: Topology = None,
    config: Config = None,
    skip_bad_records: SkipBadRecords = False,
    allow_code: AllowCode = False,
    allow_ops: AllowOps = False,
    verbose: Verbose = False,
) -> int:
    """Quantise without tuning: no accuracy is measured."""
    if plan is not None and (config is not None or topology is not None):
        raise ConfigError("--plan: got it with --config or --topology; a plan is a whole configuration: give one")
    for flag, path in (("--plan", plan), ("--calibration_location", calibration_location)):
        if path is not None and mode is not Mode.EIGHTBIT:
            raise ConfigError(f"{flag}: --mode {mode} needs no images and follows no plan; it is for eightbit")
    settings = load_settings(plan or config, topology, model, calibration_location=calibration_location)
    console_on(verbose=verbose)
    with hushed(verbose=verbose):
        from tuner import untuned  # noqa: PLC0415
        from tuner.cli.model_tables import precision_table  # noqa: PLC0415
        from tuner.export.output import check_output, export_model  # noqa: PLC0415
        from tuner.model.loading import load_model  # noqa: PLC0415

        check_output(output, model)
        loaded = load_model(model, settings.model.inputs, settings.model.outputs, allow_ops=allow_ops)
        if mode is Mode.EIGHTBIT:
            images = untuned.read_calibration_images(
                settings, loaded, skip_bad_records=skip_bad_records, allow_code=allow_code
            )
            made = untuned.quantize_to_eight_bits(settings, loaded, images)
        elif mode is Mode.WEIGHTS:
            made = untuned.store_weights(loaded)
        else:
            made = untuned.quantize_to_bf16(loaded)
        export_model(made.model, output)
    sizes = loaded.size_bytes, made.model.size_bytes
    show(precision_table(made.ops, sizes, [*made.notes, f"written to {output}"], made.left_in_float))
    return 0


def _described(model: "DetectionModel") -> tuple[Counter[str], int]:
    return Counter(node.op for node in model.graph_def.node), model.size_bytes


def _sizes(given: str) -> list[int]:
    try:
        sizes = [int(size) for size in given.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise ConfigError(f"--shape: got {given!r}; expected numbers from 1 on, as 1,320,320,3")
    return sizes
