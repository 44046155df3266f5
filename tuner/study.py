"""The record of a run on an Optuna storage: what was measured is never measured again, whatever happens."""

import logging
import time
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.study import StudyDirection
from optuna.trial import TrialState

from tuner.errors import ConfigError
from tuner.files import json_sha256
from tuner.storage_url import shown_storage
from tuner.study_storage import (
    STORAGE_ERRORS,
    connect,
    hush_optuna,
    storage_errors,
    study_name,
    study_numbers,
)
from tuner.terms import CHOICES, MOST_IMAGES, describe_proposal, describe_trial, lower_is_better
from tuner.trial import FailedTrial, Measurement, Proposal, RejectedTrial, Trial
from tuner.trial_records import ENDINGS, attributes_sha256, is_damaged, read_trial, read_unfinished

_log = logging.getLogger(__name__)

MOST_DEATHS = 3
# Each proposal in terms that plots understand. Optuna wants the choices of a name to be the same in all of a study.
_DISTRIBUTIONS: Mapping[str, BaseDistribution] = {
    "int8_share": FloatDistribution(0, 1),
    "bf16_share": FloatDistribution(0, 1),
    "calibration_images": IntDistribution(1, MOST_IMAGES, log=True),
    **{name: CategoricalDistribution(choices) for name, choices in CHOICES.items()},
}


@dataclass
class Study:
    """One run: its identity, its baseline and its trials, each written the moment it is known."""

    _study: optuna.Study
    _earlier_s: float
    _first_start: float | None = None
    _running: dict[int, optuna.Trial] = field(default_factory=dict)
    _finished: dict[int, Trial | None] = field(default_factory=dict)

    @property
    @storage_errors()
    def baseline(self) -> Measurement | None:
        """The float model's measurement, once it is recorded; None where its record is damaged."""
        attributes = self._study.user_attrs
        found = attributes.get("baseline")
        if found is None or attributes.get("baseline_sha256", json_sha256(found)) != json_sha256(found):
            return None
        return Measurement.from_json(found)

    @storage_errors()
    def record_baseline(self, baseline: Measurement) -> None:
        """Keep the float model's measurement."""
        self._study.set_user_attr("baseline_sha256", json_sha256(baseline.to_json()))
        self._study.set_user_attr("baseline", baseline.to_json())

    @property
    @storage_errors()
    def trials(self) -> list[Trial]:
        """Every finished trial, in the order in which they began.

        One that was cut off by a crash is not among them, nor one whose record is damaged, which is logged. What was
        found of a trial is recorded last, so where it is known the trial is finished, told to Optuna or not.
        """
        for trial in self._study.get_trials(deepcopy=False):
            is_finished = trial.state.is_finished() or ENDINGS & trial.user_attrs.keys()
            if is_finished and trial.number not in self._finished:
                self._finished[trial.number] = read_trial(trial)
        return [trial for _, trial in sorted(self._finished.items()) if trial is not None]

    @property
    def search_s(self) -> float:
        """Wall time since the first trial of this session began, and of the finished trials of earlier ones."""
        return self._earlier_s + (0.0 if self._first_start is None else time.monotonic() - self._first_start)

    @storage_errors()
    def start(self, proposal: Proposal) -> int:
        """Begin a trial; returns its number."""
        if self._first_start is None:
            self._first_start = time.monotonic()
        self._study.sampler = _AsProposed(describe_proposal(proposal))
        trial = self._study.ask(dict(_DISTRIBUTIONS))
        trial.set_user_attr("proposal", proposal.to_json())
        self._running[trial.number] = trial
        return int(trial.number)

    @property
    @storage_errors()
    def deadly(self) -> set[Proposal]:
        """The proposals in whose trials the process ended MOST_DEATHS times without a chance to say so.

        A kernel may crash it, or the system end it for want of memory; once or twice may be chance.
        """
        deaths = Counter(
            read_unfinished(trial)
            for trial in self._study.get_trials(deepcopy=False, states=[TrialState.RUNNING])
            if trial.number not in self._running and "abandoned" not in trial.user_attrs
        )
        return {one for one, count in deaths.items() if one is not None and count >= MOST_DEATHS}

    def abandon(self, number: int) -> None:
        """A trial ends unfinished for a reason that is not its plan's."""
        with suppress(*STORAGE_ERRORS):  # it may be the reason
            self._running.pop(number).set_user_attr("abandoned", True)

    @storage_errors()
    def record(self, trial: Trial) -> None:
        """Finish a trial that was begun in this session."""
        running = self._running.pop(trial.number)
        for name, value in describe_trial(trial, self.baseline, self._study.user_attrs.get("identity", {})).items():
            running.set_user_attr(name, value)
        # The clock of the trials' own dates may be set in mid-run.
        running.set_user_attr("search_s", self.search_s)
        if isinstance(trial, FailedTrial):
            running.set_user_attr("cause", trial.cause)
            self._seal(running)
            self._study.tell(running, state=TrialState.FAIL)
            return
        running.set_user_attr("applied", trial.applied.to_json())
        running.set_user_attr("graph_sha256", trial.graph_sha256)
        running.set_user_attr("quantize_s", trial.quantize_s)
        if isinstance(trial, RejectedTrial):
            running.set_user_attr("rejection", trial.rejection.to_json())
            self._seal(running)
            self._study.tell(running, state=TrialState.PRUNED)
            return
        running.set_user_attr("measurement", trial.measurement.to_json())
        self._seal(running)
        values = (trial.measurement.latency_ms, trial.measurement.accuracy)
        # Studies had one objective once; nothing but plots reads either.
        self._study.tell(running, values[: len(self._study.directions)])

    def _seal(self, running: optuna.Trial) -> None:
        running.set_user_attr("sha256", attributes_sha256(running.number, running.user_attrs))


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
    hush_optuna()
    with storage_errors(f"{shown_storage(storage)}: cannot be read"):
        backend = connect(storage)
        numbers = study_numbers(backend)
        if not numbers:
            return None
        study = optuna.load_study(study_name=study_name(numbers[-1]), storage=backend)
        ended_s = _ended_s(study)
        record = Study(study, 0.0)
        return StudyRecord(study.user_attrs.get("identity", {}), record.baseline, record.trials, ended_s)


def open_study(storage: str, identity: Mapping[str, object], *, resume: bool) -> Study:
    """Open a new study on a storage or, with `resume`, the latest one that it has; a warning tells that it has none.

    storage: an SQLAlchemy URL, `sqlite:////folder/study.db`. identity: what must be equal for measurements to be
    comparable (model, data, engine), by name. Raises ConfigError when the study to resume has another identity, and
    TunerError when the storage cannot be opened.
    """
    hush_optuna()
    shown = shown_storage(storage)
    with storage_errors(f"{shown}: cannot be used as storage"):
        backend = connect(storage)
        numbers = study_numbers(backend)
        if resume and numbers:
            study = optuna.load_study(study_name=study_name(numbers[-1]), storage=backend)
            if study.user_attrs or study.get_trials(deepcopy=False):
                _check_identity(shown, study.user_attrs.get("identity", {}), identity)
            else:
                # A run was killed between making it and saying what it is of.
                _begin(study, identity)
        else:
            if resume:
                where = shown.removeprefix("sqlite:///")
                _log.warning("--resume: nothing to go on from in %s; a new search starts", where)
            name = study_name(numbers[-1] + 1 if numbers else 1)
            better = StudyDirection.MINIMIZE if lower_is_better(identity) else StudyDirection.MAXIMIZE
            study = optuna.create_study(study_name=name, storage=backend, directions=[StudyDirection.MINIMIZE, better])
            _begin(study, identity)
        return Study(study, max(_ended_s(study).values(), default=0.0))


def _begin(study: optuna.Study, identity: Mapping[str, object]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study.set_metric_names(["latency_ms", "accuracy"])
    study.set_user_attr("identity", dict(identity))


def _ended_s(study: optuna.Study) -> dict[int, float]:
    """Trial number -> seconds of search until it ended, pauses between sessions left out; as it kept them, or dated."""
    spent_s, ended_s = 0.0, {}
    for trial in study.get_trials(deepcopy=False):
        dated_s = 0.0 if trial.duration is None else max(0.0, trial.duration.total_seconds())
        kept_s = trial.user_attrs.get("search_s")
        if not is_damaged(trial):
            spent_s = max(spent_s, spent_s + dated_s if kept_s is None else kept_s)
        ended_s[trial.number] = spent_s
    return ended_s


def _check_identity(shown: str, found: Mapping[str, object], expected: Mapping[str, object]) -> None:
    for key, value in expected.items():
        if found.get(key) != value:
            raise ConfigError(
                f"{shown}: cannot be resumed: its {key} is {found.get(key)!r}, this run's is {value!r}; "
                "start anew with --fresh, or in another --workspace"
            )
