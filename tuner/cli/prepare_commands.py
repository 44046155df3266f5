"""Commands that get what tuning starts from: published detectors, and images with annotations as records."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tuner.cli.app import Quiet, SkipBadRecords, Verbose, app, console_on, megabytes, show
from tuner.cli.progress import progress_on
from tuner.cli.terminal import hushed
from tuner.download.archives import COCO_ANNOTATIONS, COCO_IMAGES, MODELS, Archive
from tuner.download.obtain import obtain
from tuner.errors import ConfigError, did_you_mean
from tuner.progress import Progress
from tuner.report.table import facts_table

FETCH_EXAMPLE = "tuner fetch-model ssd_mobilenet_v1 --model_path models"
DATASET_EXAMPLE = "tuner prepare-dataset coco --images val2017 --annotations instances_val2017.json --output records"
DOWNLOAD_EXAMPLE = "tuner prepare-dataset coco --download --output coco"

# In the order of use: what --input_model takes.
_FORMS = {"frozen graph": "frozen_inference_graph.pb", "checkpoint": "model.ckpt.meta", "SavedModel": "saved_model"}

Mirror = Annotated[
    str | None, typer.Option("--mirror", metavar="URL", help="Where the same files lie, if not at their publisher.")
]


class Kind(StrEnum):
    """The data sets that are known."""

    COCO = "coco"


@app.command(epilog=f"Example:\n\n{FETCH_EXAMPLE}")
def fetch_model(
    *,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help=f"One of {', '.join(MODELS)}.", show_default=False)
    ] = None,
    model_name: Annotated[str | None, typer.Option("--model_name", metavar="NAME", help="The same, as a flag.")] = None,
    model_path: Annotated[Path, typer.Option("--model_path", metavar="DIR", help="The folder to put it in.")] = Path(),
    mirror: Mirror = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Replace a folder that was fetched before.")] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Download a published detector: checked, unpacked, and gone on with where it was stopped."""
    if (name is None) == (model_name is None):
        raise ConfigError(f"fetch-model: expected one name; known are {', '.join(MODELS)}")
    asked = name or model_name or ""
    if asked not in MODELS:
        raise ConfigError(
            f"fetch-model: got {asked!r}; expected one of {', '.join(MODELS)}{did_you_mean(asked, MODELS)}"
        )
    archive = _at(mirror, MODELS[asked])
    progress = progress_on(console_on(verbose=verbose), quiet=quiet)
    is_new = obtain(archive, model_path, progress, fresh=fresh)
    folder = model_path / archive.folder
    table = facts_table()
    table.add_row("model", str(folder))
    table.add_row("state", "fetched" if is_new else "was there, complete")
    for form, inside in _FORMS.items():
        if (folder / inside).exists():
            table.add_row(form, str(folder / inside))
    table.add_row("archive", f"{archive.address}, {megabytes(archive.size_bytes)}")
    table.add_row("SHA-256", archive.sha256)
    show(table)
    return 0


@app.command(epilog=f"Examples:\n\n{DATASET_EXAMPLE}\n\n{DOWNLOAD_EXAMPLE}")
def prepare_dataset(
    *,
    kind: Annotated[Kind, typer.Argument(metavar="coco", help="The form of the data set.", show_default=False)],
    output: Annotated[
        Path, typer.Option("--output", "--dataset_location", metavar="DIR", help="Where to write the records.")
    ],
    images: Annotated[
        Path | None, typer.Option("--images", metavar="DIR", help="Folder of the JPEG images.", show_default=False)
    ] = None,
    annotations: Annotated[
        Path | None, typer.Option("--annotations", metavar="JSON", help="Instances of these images.")
    ] = None,
    shards: Annotated[
        int | None, typer.Option("--shards", metavar="N", min=1, help="Files; one for 500 images unless given.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", metavar="N", min=1, help="The first N images only.")] = None,
    no_masks: Annotated[bool, typer.Option("--no-masks", help="Boxes alone.")] = False,
    download: Annotated[
        bool,
        typer.Option("--download", help="Get val2017 (or train2017, if --images names it) with its annotations first."),
    ] = False,
    mirror: Mirror = None,
    skip_bad_records: SkipBadRecords = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Keep nothing of what is there.")] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Write images and their annotations as TFRecords, with masks; a stopped run keeps its finished files."""
    if mirror is not None and not download:
        raise ConfigError("--mirror is for --download")
    if download and annotations is not None:
        raise ConfigError("--download brings its own annotations: no --annotations")
    progress = progress_on(console_on(verbose=verbose), quiet=quiet)
    if download:
        images, annotations = _download(images or output / "val2017", mirror, progress, fresh=fresh)
    elif images is None or annotations is None:
        raise ConfigError(f"{kind}: expected --images and --annotations, or --download")
    with hushed(verbose=verbose):
        from tuner.data.conversion import convert_coco  # noqa: PLC0415 - TensorFlow takes seconds
    made = convert_coco(
        images,
        annotations,
        output,
        progress,
        shards=shards,
        limit=limit,
        masks=not no_masks,
        skip_bad_records=skip_bad_records,
        fresh=fresh,
    )
    count = len(made.files)
    location = made.files[0] if count == 1 else output / f"{made.files[0].name[:-14]}?????-of-{count:05d}"
    table = facts_table()
    table.add_row("records", f"{location}, {megabytes(sum(path.stat().st_size for path in made.files))}")
    table.add_row("files", f"{count}, of which {made.kept} were there")
    table.add_row("images", str(made.images))
    table.add_row("objects", f"{made.objects}, {'with' if made.has_masks else 'without'} masks")
    if made.skipped:
        table.add_row("left out", f"{len(made.skipped)} bad images; the first: {made.skipped[0]}")
    show(table)
    return 0


def _download(images: Path, mirror: str | None, progress: Progress, *, fresh: bool) -> tuple[Path, Path]:
    """Have the published images as the folder `images`, and their annotations beside it; returns both places."""
    if images.name not in COCO_IMAGES:
        raise ConfigError(f"--images {images}: --download has {' and '.join(COCO_IMAGES)}; expected a folder named so")
    for archive in (COCO_ANNOTATIONS, COCO_IMAGES[images.name]):
        obtain(_at(mirror, archive), images.parent, progress, fresh=fresh)
    return images, images.parent / COCO_ANNOTATIONS.folder / f"instances_{images.name}.json"


def _at(mirror: str | None, archive: Archive) -> Archive:
    if mirror is None:
        return archive
    if not mirror.startswith(("http://", "https://")):
        raise ConfigError(f"--mirror: got {mirror!r}; expected an address that begins with http:// or https://")
    return archive.at(mirror)
