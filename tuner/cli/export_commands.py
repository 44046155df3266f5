"""The exporting command: a detector in the form that another runtime takes."""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from tuner.cli.app import AllowCode, AllowOps, Model, SkipBadRecords, Verbose, app, console_on, megabytes, show
from tuner.cli.settings import FlagSetting, load_settings
from tuner.cli.terminal import hushed
from tuner.config import TuningConfig, resolve_op_rules
from tuner.errors import ConfigError
from tuner.precision import Dtype, PrecisionPlan
from tuner.report.table import facts_table

EXPORT_EXAMPLE = "tuner export f.pb f.onnx --format onnx --plan workspace/plan.yaml"
NO_TF_TRT = (
    "tf-trt: TF-TRT is gone from TensorFlow's CPU builds and from all current ones; "
    "use --format onnx --symmetric, the form that TensorRT asks for (checked in ONNX Runtime only)"
)
NO_INT8 = "the plan has no int8 operators: give no --plan for all int8"
IMAGES = 100
_SAMPLING_SIZE = "quantization.calibration.sampling_size"


class Format(StrEnum):
    """The form to write."""

    SAVED_MODEL = "savedmodel"
    ONNX = "onnx"
    TFLITE = "tflite"
    TF_TRT = "tf-trt"


SUFFIXES = {Format.ONNX: ".onnx", Format.TFLITE: ".tflite"}


@app.command(epilog=f"Example:\n\n{EXPORT_EXAMPLE}")
def export(
    *,
    model: Model,
    output: Annotated[Path, typer.Argument(metavar="OUT", help="What to write.", show_default=False)],
    to: Annotated[Format, typer.Option("--format", help="SavedModel of any graph; the others of a float model.")],
    plan: Annotated[
        Path | None,
        typer.Option("--plan", metavar="YAML", help="ONNX: plan.yaml of a workspace; all in int8 unless given."),
    ] = None,
    calibration_location: Annotated[
        str | None,
        typer.Option("--calibration_location", metavar="PATH", help="Images for ranges, if not those of the plan."),
    ] = None,
    images: Annotated[
        int, typer.Option("--images", metavar="N", min=1, help="For calibration without a plan.")
    ] = IMAGES,
    symmetric: Annotated[
        bool, typer.Option("--symmetric", help="ONNX: int8 with zero point 0 and float biases, as TensorRT asks.")
    ] = False,
    skip_bad_records: SkipBadRecords = False,
    allow_code: AllowCode = False,
    allow_ops: AllowOps = False,
    verbose: Verbose = False,
) -> int:
    """Write a detector for another runtime: SavedModel, ONNX or TFLite."""
    if to is Format.TF_TRT:
        raise ConfigError(NO_TF_TRT)
    if symmetric and to is not Format.ONNX:
        raise ConfigError(f"--format {to}: --symmetric is for onnx")
    if to is Format.SAVED_MODEL:
        if plan is not None or calibration_location is not None:
            raise ConfigError("--format savedmodel writes the graph as it is: no --plan or --calibration_location")
        if output.suffix == ".pb":
            raise ConfigError(f"{output}: a SavedModel is a folder; give a name that does not end in .pb")
    elif output.suffix != SUFFIXES[to]:
        raise ConfigError(f"{output}: expected a name ending in {SUFFIXES[to]} for --format {to}")
    if to is Format.TFLITE and plan is not None:
        raise ConfigError("--format tflite: TensorFlow's converter chooses the precisions; --plan is for onnx")
    if to is not Format.SAVED_MODEL and plan is None and calibration_location is None:
        raise ConfigError("no images: give --calibration_location" + (" or --plan" if to is Format.ONNX else ""))
    console_on(verbose=verbose)
    with hushed(verbose=verbose):
        if to is Format.SAVED_MODEL:
            table = _saved_model(model, output, allow_ops=allow_ops)
        else:
            settings = load_settings(
                plan,
                None,
                model,
                flags=[] if plan is not None else [FlagSetting("--images", _SAMPLING_SIZE, images)],
                calibration_location=calibration_location,
            )
            table = _network(
                to,
                model,
                output,
                settings,
                plan=_plan(settings, plan),
                symmetric=symmetric,
                skip_bad_records=skip_bad_records,
                allow_code=allow_code,
                allow_ops=allow_ops,
            )
    show(table)
    return 0


def _saved_model(path: Path, output: Path, *, allow_ops: bool) -> Table:
    from tuner.export.output import check_output, export_model  # noqa: PLC0415 - TensorFlow takes seconds
    from tuner.model.loading import load_model  # noqa: PLC0415

    check_output(output, path)
    model = load_model(path, allow_ops=allow_ops)
    export_model(model, output)
    table = _table([output])
    table.add_row("inputs", ", ".join(model.inputs))
    table.add_row("outputs", ", ".join(model.outputs))
    return table


def _network(
    to: Format,
    path: Path,
    output: Path,
    settings: TuningConfig,
    *,
    plan: PrecisionPlan | None,
    symmetric: bool,
    skip_bad_records: bool,
    allow_code: bool,
    allow_ops: bool,
) -> Table:
    from tuner.export.output import check_output  # noqa: PLC0415
    from tuner.export.runtimes import export_onnx, export_tflite  # noqa: PLC0415
    from tuner.model.loading import load_model  # noqa: PLC0415
    from tuner.untuned import read_calibration_images  # noqa: PLC0415

    check_output(output, path)
    model = load_model(path, settings.model.inputs, settings.model.outputs, allow_ops=allow_ops)
    quantization = settings.quantization
    images = read_calibration_images(settings, model, skip_bad_records=skip_bad_records, allow_code=allow_code)
    if to is Format.TFLITE:
        exported = export_tflite(model, output, images)
    else:
        exported = export_onnx(
            model,
            output,
            images,
            plan,
            corrections=quantization.corrections if plan is not None else (),
            optimize=quantization.optimize_postprocess,
            matmul_kernel=quantization.has_matmul_kernel,
            symmetric=symmetric,
        )
    table = _table(exported.files)
    table.add_row(
        "int8 operators", "as TensorFlow's converter chose" if to is Format.TFLITE else str(exported.int8_ops)
    )
    if plan is not None and not plan.count()[Dtype.INT8]:
        table.add_row("note", NO_INT8)
    if exported.int8_ops:
        table.add_row("activations", "int8, zero point 0" if symmetric else "u8, with zero points")
        table.add_row("biases", "float" if symmetric else "32-bit integers")
    table.add_row("outputs", ", ".join(exported.outputs))
    return table


def _plan(settings: TuningConfig, path: Path | None) -> PrecisionPlan | None:
    if path is None:
        return None
    rules = settings.quantization.op_wise
    if not rules:
        raise ConfigError(f"{path}: no quantization.op_wise: expected the plan.yaml of a workspace")
    return PrecisionPlan({op: allowed[0] for op, allowed in resolve_op_rules(rules, list(rules)).items()})


def _table(written: Sequence[Path]) -> Table:
    table = facts_table()
    for path in written:
        files = [file for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()]
        table.add_row("written", f"{path}, {megabytes(sum(file.stat().st_size for file in files))}")
    return table
