"""The record of a run on an Optuna storage: what was measured is never measured again, whatever happens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from tuner.errors import ConfigError, TunerError
from tuner.precision import PrecisionPlan
from tuner.trial import CompletedTrial, FailedTrial, Measurement, Trial

_STUDY_PREFIX = "tuner-"


@dataclass
class Study:
    """One run: its identity, its baseline, its op order and its trials, each written the moment it is known."""

    _study: optuna.Study
    _running: dict[int, optuna.Trial] = field(default_factory=dict)

    @property
    def baseline(self) -> Measurement | None:
        """The float model's measurement, once it is recorded."""
        found = self._study.user_attrs.get("baseline")
        return None if found is None else Measurement.from_json(found)

    def record_baseline(self, baseline: Measurement) -> None:
        """Keep the float model's measurement."""
        self._study.set_user_attr("baseline", baseline.to_json())

    @property
    def order(self) -> Sequence[str] | None:
        """The operators by sensitivity, once they are recorded."""
        found: Sequence[str] | None = self._study.user_attrs.get("order")
        return found

    def record_order(self, order: Sequence[str]) -> None:
        """Keep the operators by sensitivity, most sensitive first."""
        self._study.set_user_attr("order", list(order))

    @property
    def trials(self) -> list[Trial]:
        """Every finished trial, in the order in which they began; one cut off by a crash is not among them."""
        return [
            _read_trial(trial)
            for trial in self._study.get_trials(deepcopy=False)
            if trial.state.is_finished() and ("cause" in trial.user_attrs or "measurement" in trial.user_attrs)
        ]

    @property
    def search_s(self) -> float:
        """Wall time of the finished trials, earlier sessions included."""
        durations = [trial.duration for trial in self._study.get_trials(deepcopy=False)]
        return sum(duration.total_seconds() for duration in durations if duration is not None)

    def start(self, requested: PrecisionPlan, calibration_images: int) -> int:
        """Begin a trial; returns its number."""
        trial = self._study.ask()
        trial.set_user_attr("requested", requested.to_json())
        trial.set_user_attr("calibration_images", calibration_images)
        self._running[trial.number] = trial
        return int(trial.number)

    def record(self, trial: Trial) -> None:
        """Finish a trial that was begun in this session."""
        running = self._running.pop(trial.number)
        if isinstance(trial, FailedTrial):
            running.set_user_attr("cause", trial.cause)
            self._study.tell(running, state=TrialState.FAIL)
            return
        running.set_user_attr("applied", trial.applied.to_json())
        running.set_user_attr("graph_sha256", trial.graph_sha256)
        running.set_user_attr("quantize_s", trial.quantize_s)
        running.set_user_attr("measurement", trial.measurement.to_json())
        self._study.tell(running, trial.measurement.latency_ms)


def open_study(storage: str, identity: Mapping[str, object], *, resume: bool) -> Study:
    """Open a new study on a storage or, with `resume`, the latest one that it has.

    storage: an SQLAlchemy URL, `sqlite:////folder/study.db`. identity: what must be equal for measurements to be
    comparable (model, data, engine), by name. Raises ConfigError when the study to resume has another identity, and
    TunerError when the storage cannot be opened.
    """
    # Optuna prints to stderr by itself; what it says goes through logging like everything else.
    optuna.logging.disable_default_handler()
    optuna.logging.enable_propagation()
    try:
        backend = optuna.storages.RDBStorage(storage)
        names = sorted(
            (name for name in optuna.study.get_all_study_names(backend) if name.startswith(_STUDY_PREFIX)),
            key=lambda name: int(name.removeprefix(_STUDY_PREFIX)),
        )
        if resume and names:
            study = optuna.load_study(study_name=names[-1], storage=backend)
            _check_identity(storage, study.user_attrs.get("identity", {}), identity)
        else:
            name = f"{_STUDY_PREFIX}{len(names) + 1}"
            study = optuna.create_study(study_name=name, storage=backend, direction="minimize")
            study.set_user_attr("identity", dict(identity))
    except (ArgumentError, SQLAlchemyError, StorageInternalError, ImportError) as error:
        raise TunerError(f"{storage}: cannot be used as storage: {str(error).splitlines()[0]}") from error
    return Study(study)


def _check_identity(storage: str, found: Mapping[str, object], expected: Mapping[str, object]) -> None:
    for key, value in expected.items():
        if found.get(key) != value:
            raise ConfigError(
                f"{storage}: cannot be resumed: its {key} is {found.get(key)!r}, this run's is {value!r}; "
                "start anew without --resume, or in another --workspace"
            )


def _read_trial(trial: FrozenTrial) -> Trial:
    attributes: dict[str, Any] = trial.user_attrs
    requested = PrecisionPlan.from_json(attributes["requested"])
    if trial.state is TrialState.FAIL:
        return FailedTrial(trial.number, attributes["calibration_images"], requested, attributes["cause"])
    return CompletedTrial(
        trial.number,
        attributes["calibration_images"],
        requested,
        PrecisionPlan.from_json(attributes["applied"]),
        attributes["graph_sha256"],
        Measurement.from_json(attributes["measurement"]),
        attributes["quantize_s"],
    )
