"""From a YAML file and the flags beside it to one checked config."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuner.address import Address, place
from tuner.config import TuningConfig, parse_config, read_yaml
from tuner.errors import ConfigError, did_you_mean

_OWN_CONFIGS = Path(__file__).parents[2] / "configs"

_EVALUATION_SET = "evaluation.accuracy.dataloader.dataset"
_CALIBRATION = "quantization.calibration"
_CALIBRATION_SET = f"{_CALIBRATION}.dataloader.dataset"


@dataclass(frozen=True, slots=True)
class FlagSetting:
    """A flag that stands for a key of the YAML file.

    instead_of: a key beside it that the flag takes the place of.
    """

    flag: str
    key: str
    value: object
    instead_of: str = ""


def load_settings(
    config: Path | None,
    topology: str | None,
    model: Path,
    *,
    flags: Sequence[FlagSetting] = (),
    dataset_location: str | Path | None = None,
    calibration_location: str | Path | None = None,
) -> TuningConfig:
    """The config of a run: the YAML file, with the flags that are given (not None) over it.

    config: goes before `topology`, the name of a file in a folder configs; without both, the defaults, under the name
    of `model`. dataset_location: the evaluation set, and the calibration set where there is no other.
    Raises ConfigError that names the flag or the file at fault.
    """
    path = config or (None if topology is None else find_config(topology))
    name = model.resolve().name
    settings = {"model": {"name": name.partition(".")[0] or name}} if path is None else read_yaml(path)
    source, folder = ("defaults", Path()) if path is None else (str(path), path.absolute().parent)
    parsed = parse_config(settings, source, folder)
    given = []
    if dataset_location is not None:
        section = dataset_section(dataset_location, "--dataset_location")
        given.append(FlagSetting("--dataset_location", _EVALUATION_SET, section))
        calibration = parsed.quantization.calibration
        if calibration.dataset is None and calibration.q_dataloader is None:
            given.append(FlagSetting("--dataset_location", _CALIBRATION_SET, section))
    if calibration_location is not None:
        # What the file says to do with images is done to these, too.
        section = dataset_section(calibration_location, "--calibration_location")
        loader = parsed.quantization.calibration.dataloader
        kept = {} if loader is None else loader.model_dump(mode="json", by_alias=True, exclude_unset=True)
        setting = {**kept, "dataset": section}
        key = f"{_CALIBRATION}.dataloader"
        given.append(FlagSetting("--calibration_location", key, setting, instead_of="q_dataloader"))
    for flag in [*given, *(flag for flag in flags if flag.value is not None)]:
        # One after the other: what was right before and is wrong now is told under the flag's name.
        settings = _with(settings, flag.key.split("."), flag.value, flag.instead_of)
        parsed = parse_config(settings, flag.flag, folder)
    return parsed


def find_config(topology: str) -> Path:
    """configs/TOPOLOGY.yaml of the current folder, else of the project. Raises ConfigError that lists what is there."""
    found = {path.stem: path for folder in (_OWN_CONFIGS, Path("configs")) for path in sorted(folder.glob("*.yaml"))}
    if topology in found:
        return found[topology]
    raise ConfigError(
        f"--topology: got {topology!r}; expected one of {', '.join(sorted(found)) or 'none: no configs/*.yaml here'}"
        + did_you_mean(topology, found)
    )


def dataset_section(given: str | Path, flag: str) -> dict[str, dict[str, str]]:
    """The `dataset` section for a record file, a glob or folder of shards, a COCO folder or an instances JSON.

    given: a path, or the address of records. Raises ConfigError, naming `flag`, for a folder with several annotation
    files.
    """
    location = place(str(given))
    if isinstance(location, Address):
        return {"COCORecord": {"root": location.url}}
    location = location.absolute()
    kind, root = "COCORecord", location
    if location.suffix == ".json":
        kind = "COCORaw"
    elif location.is_dir() and not any(_is_record_file(path.name) for path in location.iterdir()):
        # LPOT's default name first: a COCO folder has the training set's annotations, too.
        for name in ("instances_val2017.json", "instances*.json", "*.json"):
            found = [*location.glob(name), *location.glob(f"annotations/{name}")]
            if len(found) > 1:
                names = ", ".join(sorted(str(path.relative_to(location)) for path in found))
                raise ConfigError(f"{flag}: {location}: holds several annotation files; name one of {names}")
            if found:
                kind, root = "COCORaw", found[0]
                break
    return {kind: {"root": str(root)}}


def _is_record_file(name: str) -> bool:
    return re.search(r"\.(tf)?records?$|-\d{5}-of-\d{5}", name) is not None


def _with(section: Any, keys: Sequence[str], value: object, instead_of: str) -> dict[Any, Any]:
    """A copy of a section that was parsed, so that it is a mapping or null, with `value` under the nested keys."""
    first, *rest = keys
    kept = {} if section is None else {key: item for key, item in section.items() if rest or key != instead_of}
    return {**kept, first: _with(kept.get(first), rest, value, instead_of) if rest else value}
