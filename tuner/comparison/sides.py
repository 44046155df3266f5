"""What is compared: a model file, or the workspace of a finished run, which stands for the model that it wrote."""

from dataclasses import dataclass
from pathlib import Path

from tuner.errors import ConfigError
from tuner.files import read_sealed
from tuner.report.result import SCHEMA

_RESULT, _PLAN, _STUDY = "result.json", "plan.yaml", "study.db"


@dataclass(frozen=True, slots=True)
class Given:
    """One of the two as it was named.

    model: what is measured. settings: the YAML file of a workspace; None for a model.
    float_model: what a run began with; the model itself where it is no run's.
    """

    path: Path
    model: Path
    float_model: Path
    settings: Path | None = None


def find_given(path: Path) -> Given:
    """A model, or a workspace: a folder that holds a run's result.json.

    Raises ConfigError for a workspace whose run has not written a model.
    """
    result = path / _RESULT
    if not result.is_file():
        if (path / _STUDY).is_file():
            raise ConfigError(f"{path}: its run has not ended: no {_RESULT}; go on with tuner tune --resume")
        return Given(path, path, path)
    try:
        found = read_sealed(result, SCHEMA)
        best, float_model = found["best"], Path(found["model"]["path"])
        output_model = None if best is None else Path(best["output_model"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{result}: is no run's result: {type(error).__name__}: {error}") from error
    if output_model is None:
        raise ConfigError(f"{path}: its run has written no model: no plan could be measured")
    return Given(path, output_model, float_model, path / _PLAN)
