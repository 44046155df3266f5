"""The place on disk where the finished detector goes: checked before a run, filled whole or not at all."""

import tempfile
from pathlib import Path

from tuner.errors import ConfigError, TunerError
from tuner.export.saved_model import build_saved_model
from tuner.files import write_bytes, write_folder
from tuner.model.detection_model import DetectionModel

# Names that end so are of files; all others are of SavedModel folders.
_FILES = (".pb", ".onnx", ".tflite")
_SAVED_MODEL_FILES = ("saved_model.pb", "saved_model.pbtxt")
_SAVED_MODEL_ENTRIES = frozenset(
    (*_SAVED_MODEL_FILES, "variables", "assets", "assets.extra", "debug", "fingerprint.pb", "keras_metadata.pb")
)


def export_model(model: DetectionModel, output: Path) -> None:
    """Write the detector to `output`: a frozen GraphDef where the name ends in `.pb`, else a SavedModel folder.

    An existing graph or SavedModel is replaced, and kept when writing fails. The SavedModel's signature
    `serving_default` maps the input's node name to the outputs by their node names.

    Raises TunerError naming `output` where `check_output` does, or when the disk is full.
    """
    check_output(output)
    if _is_frozen_graph(output):
        write_bytes(output, model.graph_def.SerializeToString(deterministic=True))
    else:
        content = build_saved_model(model).SerializeToString(deterministic=True)

        def fill(folder: Path) -> None:
            folder.mkdir()
            (folder / "saved_model.pb").write_bytes(content)

        # A folder cannot take the place of a link to one, so the link is followed.
        write_folder(output.resolve(), fill)


def check_output(output: Path, input_model: Path | None = None) -> None:
    """Tell before a run whether a model could be written to `output`. What is made to find out is removed again.

    Raises TunerError when the place is taken by `input_model` or something other than a model of the same form, or when
    its folder cannot be written or made.
    """
    # A SavedModel is named by its folder or by the file in it.
    taken = () if input_model is None else (input_model, *(input_model / name for name in _SAVED_MODEL_FILES))
    if output.resolve() in (path.resolve() for path in taken):
        raise ConfigError(f"{output}: the output would replace the input model; give it another name")
    try:
        _check_existing(output)
        _check_folder(output)
    except OSError as error:
        raise TunerError(f"{output}: cannot be written: {error.strerror or error}") from error


def _is_frozen_graph(output: Path) -> bool:
    return output.suffix == ".pb"


def _check_existing(output: Path) -> None:
    if output.suffix in _FILES:
        if output.is_dir():
            raise TunerError(f"{output}: is a folder; a name ending in {output.suffix} is written as a file")
    elif output.is_dir():
        # Replacing a folder deletes what is in it: that may be nothing but an old SavedModel.
        names = sorted(entry.name for entry in output.iterdir())
        foreign = [name for name in names if name not in _SAVED_MODEL_ENTRIES]
        if foreign or (names and not any(name in names for name in _SAVED_MODEL_FILES)):
            shown = ", ".join((foreign or names)[:3])
            raise TunerError(
                f"{output}: a folder that holds {shown} and would be lost; expected a new or empty folder, "
                "a SavedModel to replace, or a name ending in .pb"
            )
    elif output.exists():
        raise TunerError(f"{output}: is a file; expected a folder for a SavedModel, or a name ending in .pb")


def _check_folder(output: Path) -> None:
    """Check the nearest folder that exists: there the file, or the folders above it, must be made."""
    existing = next(folder for folder in output.absolute().parents if folder.exists())
    if not existing.is_dir():
        raise TunerError(f"{output}: cannot be written: {existing} is not a folder")
    # Trying is the only sure way: a privileged user, or a read-only file system, makes permission bits meaningless.
    # Such a file has no name that a kill could leave behind.
    tempfile.TemporaryFile(dir=existing).close()
