"""What a run left behind, read back in one place: for whatever tells of a run afterwards, finished or not."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from tuner.cache import Cache
from tuner.config import TuningConfig, parse_config
from tuner.criterion import best_trial
from tuner.errors import ConfigError, EvaluationError, TunerError
from tuner.evaluation.match_records import MatchRecords
from tuner.files import read_sealed, write_sealed
from tuner.study import StudyRecord, read_study
from tuner.trial import CompletedTrial, Measurement, Trial

FILE = "run.json"
SCHEMA = 1
# Of result.json, which `tuner.report.result` makes.
RESULT_SCHEMA = 1

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunFacts:
    """What is known of a run when its search begins. It is in `run.json` in the workspace.

    started: local time, ISO 8601. command: what a shell takes to make the run again, in `folder`.
    settings: as `parse_config` reads them; paths are absolute. storage: the study's SQLAlchemy URL, no password in it.
    environment: what results depend on, by name. float_ops: op -> why it stays float, or without int8, in every plan.
    category_names: of the category ids that have one. keys: what results are kept under in the cache: `foresight`, then
    a plan; `matches`, the kind first, after the hash of a graph.
    """

    started: str
    command: str
    folder: str
    input_model: str
    output_model: str
    storage: str
    settings: Mapping[str, Any]
    environment: Mapping[str, str]
    float_ops: Mapping[str, str]
    category_names: Mapping[str, str]
    keys: Mapping[str, Sequence[str]]

    @property
    def model_sha256(self) -> str:
        """Of the float model."""
        return self.environment["model"]


@dataclass(frozen=True)
class RunRecord:
    """A run as far as it got. What is missing, damaged, or of another run is None; a damaged study or result is logged.

    config: the settings. study: identity, baseline and trials of the latest run, None where the storage has none or
    cannot be read. result: what `result.json` holds, None for a run that did not end. damage: op -> how much more wrong
    the results are with it in int8. costs: op -> the times of `OpCosts` by name, in microseconds.
    op_times: what takes the time in the float model and in the best graph: name -> op type -> microseconds in a run.
    op_values: op -> its histograms and ranges, as `tuner.evidence` keeps them.
    """

    workspace: Path
    facts: RunFacts
    config: TuningConfig
    study: StudyRecord | None
    result: Mapping[str, Any] | None
    damage: Mapping[str, float] | None = None
    costs: Mapping[str, Mapping[str, float]] | None = None
    op_times: Mapping[str, Mapping[str, float]] | None = None
    op_values: Mapping[str, Mapping[str, Any]] | None = None

    @property
    def baseline(self) -> Measurement | None:
        """The float model, as it was measured before the search."""
        return None if self.study is None else self.study.baseline

    @property
    def trials(self) -> Sequence[Trial]:
        """All that were finished, in the order in which they began."""
        return () if self.study is None else self.study.trials

    @property
    def best(self) -> CompletedTrial | None:
        """The trial that was handed over; of a run that did not end, the one that would be now."""
        return _best(self.config, self.study, self.result)

    def matches(self, graph_sha256: str) -> MatchRecords | None:
        """Which detections of a graph found an object: of the float model, and of graphs measured on all images."""
        arrays = Cache(self.workspace).read_arrays(self.facts.keys["matches"][0], self.records_key(graph_sha256))
        try:
            return None if arrays is None else MatchRecords.from_arrays(arrays)
        except EvaluationError:
            return None

    def records_key(self, graph_sha256: str) -> list[str]:
        """What the results that are of one graph are kept under."""
        return records_key(self.facts, graph_sha256)

    def changed_images(self) -> Mapping[str, NDArray[Any]] | None:
        """The images whose detections changed most, as `tuner.evidence.changed_images` keeps them."""
        return (
            None
            if self.best is None
            else Cache(self.workspace).read_arrays("changed", self.records_key(self.best.graph_sha256))
        )


def records_key(facts: RunFacts, graph_sha256: str) -> list[str]:
    """What the results that are of one graph are kept under."""
    return [graph_sha256, *facts.keys["matches"][1:]]


def write_run(workspace: Path, facts: RunFacts) -> None:
    """Put `run.json` in a workspace. Raises TunerError when it cannot be written."""
    write_sealed(workspace / FILE, {"schema": SCHEMA, **asdict(facts)})


def read_run(workspace: Path) -> RunRecord:
    """Read what the latest run left in a workspace.

    Raises ConfigError for a folder in which no run left its record, or whose `run.json` cannot be read.
    """
    facts = _read_facts(workspace)
    config = parse_config(facts.settings, f"{workspace / FILE}: settings")
    study = _read_study(workspace, facts)
    result = _read_result(workspace, study)
    cache, best = Cache(workspace), _best(config, study, result)
    of_best = None if best is None else records_key(facts, best.graph_sha256)
    return RunRecord(
        workspace,
        facts,
        config,
        study,
        result,
        damage=_read_damage(cache, facts, study),
        costs=cache.read_json("costs", facts.keys["foresight"]),
        op_times=None if of_best is None else cache.read_json("times", of_best),
        op_values=None if of_best is None else cache.read_json("values", of_best),
    )


def _read_facts(workspace: Path) -> RunFacts:
    path = workspace / FILE
    try:
        content = read_sealed(path, SCHEMA)
    except FileNotFoundError:
        raise ConfigError(f"{workspace}: no workspace of a run: it has no {FILE}, which tune writes") from None
    names = [field.name for field in fields(RunFacts)]
    if not set(names) <= content.keys():
        raise ConfigError(f"{path}: not the record of a run, schema {SCHEMA}")
    return RunFacts(**{name: content[name] for name in names})


def _read_study(workspace: Path, facts: RunFacts) -> StudyRecord | None:
    # Where the workspace was moved, its study went with it. A file that is not there would be made.
    beside = workspace / "study.db"
    url = f"sqlite:///{beside.resolve()}" if facts.storage.endswith("/study.db") and beside.is_file() else facts.storage
    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).is_file():
        return None
    try:
        return read_study(url)
    except TunerError as error:
        _log.warning("left out: %s", error)
        return None


def _read_result(workspace: Path, study: StudyRecord | None) -> dict[str, Any] | None:
    """`result.json`, unless it is of an earlier run, or the run went on since."""
    try:
        result = read_sealed(workspace / "result.json", RESULT_SCHEMA)
        if study is None:
            return result
        known = {trial.graph_sha256 for trial in study.trials if isinstance(trial, CompletedTrial)}
        best = result["best"]
        current = result["trials"] == len(study.trials) and (best is None or best["graph_sha256"] in known)
        return result if current else None
    except ConfigError as error:
        _log.warning("left out: %s", error)
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _read_damage(cache: Cache, facts: RunFacts, study: StudyRecord | None) -> Mapping[str, float] | None:
    """Of the plan for which it was measured first: the one that the search began with."""
    for trial in () if study is None else study.trials:
        asked = trial.proposal
        key = [*facts.keys["foresight"], asked.plan.sha256, str(asked.calibration_images)]
        found: Mapping[str, float] | None = cache.read_json("damage", key)
        if found:
            return found
    return None


def _best(config: TuningConfig, study: StudyRecord | None, result: Mapping[str, Any] | None) -> CompletedTrial | None:
    if study is None or study.baseline is None:
        return None
    if result is not None and result["best"] is not None:
        made = result["best"]["graph_sha256"]
        return next(trial for trial in study.trials if isinstance(trial, CompletedTrial) and trial.graph_sha256 == made)
    criterion, weights = config.tuning.accuracy_criterion, config.tuning.weights
    return best_trial(weights, criterion, study.baseline, study.trials)
