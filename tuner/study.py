"""The record of a run on an Optuna storage: what was measured is never measured again, whatever happens."""

import re
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning, StorageInternalError
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from tuner.errors import ConfigError, TunerError
from tuner.precision import PrecisionPlan
from tuner.terms import CHOICES, MOST_IMAGES, describe_proposal, describe_trial, lower_is_better
from tuner.trial import CompletedTrial, FailedTrial, Measurement, Proposal, RejectedTrial, Rejection, Trial

_STUDY_NAME = re.compile(r"tuner-(\d+)")
# What a finished trial has one of; without, it was cut off.
_ENDINGS = {"cause", "measurement", "rejection"}
# Each proposal in terms that plots understand. Optuna wants the choices of a name to be the same in all of a study.
_DISTRIBUTIONS: Mapping[str, BaseDistribution] = {
    "int8_share": FloatDistribution(0, 1),
    "bf16_share": FloatDistribution(0, 1),
    "calibration_images": IntDistribution(1, MOST_IMAGES, log=True),
    **{name: CategoricalDistribution(choices) for name, choices in CHOICES.items()},
}
_STORAGE_ERRORS = (ArgumentError, SQLAlchemyError, StorageInternalError, DuplicatedStudyError, ImportError)


@contextmanager
def _storage_errors() -> Iterator[None]:
    """A storage that fails in mid-run, for instance on a full disk, is told in one line."""
    try:
        yield
    except _STORAGE_ERRORS as error:
        raise TunerError(f"the run's record cannot be written: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    # Optuna wraps the database's message in a longer story.
    return str(error.__cause__ or error).splitlines()[0]


@dataclass
class Study:
    """One run: its identity, its baseline and its trials, each written the moment it is known."""

    _study: optuna.Study
    _earlier_s: float
    _first_start: float | None = None
    _running: dict[int, optuna.Trial] = field(default_factory=dict)

    @property
    def baseline(self) -> Measurement | None:
        """The float model's measurement, once it is recorded."""
        found = self._study.user_attrs.get("baseline")
        return None if found is None else Measurement.from_json(found)

    @_storage_errors()
    def record_baseline(self, baseline: Measurement) -> None:
        """Keep the float model's measurement."""
        self._study.set_user_attr("baseline", baseline.to_json())

    @property
    def trials(self) -> list[Trial]:
        """Every finished trial, in the order in which they began; one cut off by a crash is not among them.

        What was found of a trial is recorded last, so where it is known the trial is finished, told to Optuna or not.
        """
        return [
            _read_trial(trial) for trial in self._study.get_trials(deepcopy=False) if _ENDINGS & trial.user_attrs.keys()
        ]

    @property
    def search_s(self) -> float:
        """Wall time since the first trial of this session began, and of the finished trials of earlier ones."""
        return self._earlier_s + (0.0 if self._first_start is None else time.monotonic() - self._first_start)

    @_storage_errors()
    def start(self, proposal: Proposal) -> int:
        """Begin a trial; returns its number."""
        if self._first_start is None:
            self._first_start = time.monotonic()
        self._study.sampler = _AsProposed(describe_proposal(proposal))
        trial = self._study.ask(dict(_DISTRIBUTIONS))
        trial.set_user_attr("proposal", proposal.to_json())
        self._running[trial.number] = trial
        return int(trial.number)

    @_storage_errors()
    def record(self, trial: Trial) -> None:
        """Finish a trial that was begun in this session."""
        running = self._running.pop(trial.number)
        for name, value in describe_trial(trial, self.baseline, self._study.user_attrs.get("identity", {})).items():
            running.set_user_attr(name, value)
        if isinstance(trial, FailedTrial):
            running.set_user_attr("cause", trial.cause)
            self._study.tell(running, state=TrialState.FAIL)
            return
        running.set_user_attr("applied", trial.applied.to_json())
        running.set_user_attr("graph_sha256", trial.graph_sha256)
        running.set_user_attr("quantize_s", trial.quantize_s)
        if isinstance(trial, RejectedTrial):
            running.set_user_attr("rejection", trial.rejection.to_json())
            self._study.tell(running, state=TrialState.PRUNED)
            return
        running.set_user_attr("measurement", trial.measurement.to_json())
        values = (trial.measurement.latency_ms, trial.measurement.accuracy)
        # Studies had one objective once; nothing but plots reads either.
        self._study.tell(running, values[: len(self._study.directions)])


class _AsProposed(optuna.samplers.BaseSampler):
    """Gives a trial the parameters that describe its proposal: what is tried was decided elsewhere."""

    def __init__(self, parameters: Mapping[str, float | int | str]) -> None:
        self._parameters = parameters

    def infer_relative_search_space(self, *_: object) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(self, *_: object) -> dict[str, Any]:
        return {}

    def sample_independent(self, study: object, trial: object, name: str, distribution: object) -> float | int | str:
        return self._parameters[name]


@dataclass(frozen=True)
class StudyRecord:
    """What a storage has of its latest run, to be read only.

    ended_s: trial number -> seconds of search until it ended, pauses between sessions left out.
    """

    identity: Mapping[str, str]
    baseline: Measurement | None
    trials: Sequence[Trial]
    ended_s: Mapping[int, float]


def read_study(storage: str) -> StudyRecord | None:
    """The latest study on a storage, None where there is none. Raises TunerError when the storage cannot be read."""
    _hush_optuna()
    try:
        backend = optuna.storages.RDBStorage(storage)
        numbers = _numbers(backend)
        if not numbers:
            return None
        study = optuna.load_study(study_name=f"tuner-{numbers[-1]}", storage=backend)
        spent_s, ended_s = 0.0, {}
        for trial in study.get_trials(deepcopy=False):
            spent_s += trial.duration.total_seconds() if trial.duration is not None else 0.0
            ended_s[trial.number] = spent_s
        record = Study(study, spent_s)
        return StudyRecord(study.user_attrs.get("identity", {}), record.baseline, record.trials, ended_s)
    except (*_STORAGE_ERRORS, KeyError, TypeError, ValueError) as error:
        raise TunerError(f"{storage}: cannot be read: {_first_line(error)}") from error


def open_study(storage: str, identity: Mapping[str, object], *, resume: bool) -> Study:
    """Open a new study on a storage or, with `resume`, the latest one that it has.

    storage: an SQLAlchemy URL, `sqlite:////folder/study.db`. identity: what must be equal for measurements to be
    comparable (model, data, engine), by name. Raises ConfigError when the study to resume has another identity, and
    TunerError when the storage cannot be opened.
    """
    _hush_optuna()
    try:
        backend = optuna.storages.RDBStorage(storage)
        numbers = _numbers(backend)
        if resume and numbers:
            study = optuna.load_study(study_name=f"tuner-{numbers[-1]}", storage=backend)
            if study.user_attrs or study.get_trials(deepcopy=False):
                _check_identity(storage, study.user_attrs.get("identity", {}), identity)
            else:
                # A run was killed between making it and saying what it is of.
                _begin(study, identity)
        else:
            name = f"tuner-{numbers[-1] + 1 if numbers else 1}"
            better = StudyDirection.MINIMIZE if lower_is_better(identity) else StudyDirection.MAXIMIZE
            study = optuna.create_study(study_name=name, storage=backend, directions=[StudyDirection.MINIMIZE, better])
            _begin(study, identity)
    except _STORAGE_ERRORS as error:
        raise TunerError(f"{storage}: cannot be used as storage: {_first_line(error)}") from error
    durations = [trial.duration for trial in study.get_trials(deepcopy=False)]
    return Study(study, sum(duration.total_seconds() for duration in durations if duration is not None))


def _begin(study: optuna.Study, identity: Mapping[str, object]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study.set_metric_names(["latency_ms", "accuracy"])
    study.set_user_attr("identity", dict(identity))


def open_storage(storage: str) -> optuna.storages.BaseStorage:
    """A storage that holds a run, for Optuna's dashboard. Raises TunerError when it cannot be read or holds none."""
    _hush_optuna()
    try:
        backend = optuna.storages.RDBStorage(storage)
        if _numbers(backend):
            return backend
    except _STORAGE_ERRORS as error:
        raise TunerError(f"{storage}: cannot be read: {_first_line(error)}") from error
    raise ConfigError(f"{storage}: holds no run of tune")


def _hush_optuna() -> None:
    # Optuna prints to stderr by itself; what it says goes through logging like everything else.
    optuna.logging.disable_default_handler()
    optuna.logging.enable_propagation()


def _numbers(backend: optuna.storages.RDBStorage) -> list[int]:
    """Of the studies on a storage, rising."""
    names = optuna.study.get_all_study_names(backend)
    return sorted(int(match[1]) for name in names if (match := _STUDY_NAME.fullmatch(name)))


def _check_identity(storage: str, found: Mapping[str, object], expected: Mapping[str, object]) -> None:
    for key, value in expected.items():
        if found.get(key) != value:
            raise ConfigError(
                f"{storage}: cannot be resumed: its {key} is {found.get(key)!r}, this run's is {value!r}; "
                "start anew with --fresh, or in another --workspace"
            )


def _read_trial(trial: FrozenTrial) -> Trial:
    attributes: dict[str, Any] = trial.user_attrs
    proposal = Proposal.from_json(attributes["proposal"])
    if "cause" in attributes:
        return FailedTrial(trial.number, proposal, attributes["cause"])
    made = PrecisionPlan.from_json(attributes["applied"]), attributes["graph_sha256"]
    quantize_s = attributes["quantize_s"]
    if "rejection" in attributes:
        rejection = Rejection.from_json(attributes["rejection"])
        return RejectedTrial(trial.number, proposal, *made, rejection, quantize_s)
    measurement = Measurement.from_json(attributes["measurement"])
    return CompletedTrial(trial.number, proposal, *made, measurement, quantize_s)
