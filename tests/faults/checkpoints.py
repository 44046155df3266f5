"""Where a run of the tuner is killed: a table of the calls at which its state changes."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

# Which call of a function is meant: its positional arguments, and what it was given by name.
Which = Callable[[tuple[Any, ...], Mapping[str, Any]], bool]


def any_call(arguments: tuple[Any, ...], named: Mapping[str, Any]) -> bool:
    return True


@dataclass(frozen=True)
class Checkpoint:
    """A moment of a run.

    target: "module:attribute", the function that is called there. moment: before the call, after it, or (of os.fsync)
    before it with the second half of the file's content lost. which: of its calls; the `nth` of those is meant.
    run: the kind of run that comes by.
    """

    name: str
    target: str
    moment: Literal["before", "after", "torn"]
    which: Which = any_call
    nth: int = 1
    run: Literal["records", "eval_func"] = "records"


def named(name: str) -> Which:
    """Calls whose argument after the first (a Study, a Trial, a Cache) is `name`."""
    return lambda arguments, _: arguments[1] == name


def _scratch_of(file: str) -> Which:
    """Calls of tempfile.mkdtemp for a file of this name, or, where it is a hash, in a folder of this name."""
    return lambda _, given: f"/{file}/" in f"{given.get('dir')}/{given['prefix'][1:-1]}/"


def _descriptor_of(file: str) -> Which:
    """Calls with a descriptor of a scratch file of this name, or in a folder of this name."""
    return lambda arguments, _: _is_scratch_of(file, Path(f"/proc/self/fd/{arguments[0]}").readlink())


def _path_of(file: str) -> Which:
    return lambda arguments, _: _is_scratch_of(file, arguments[0])


def _is_scratch_of(file: str, path: Path) -> bool:
    return file in (path.name, path.parent.parent.name)


def _writes() -> Iterator[Checkpoint]:
    for file in ("ranges", "int8.pb"):
        yield Checkpoint(f"{file}: nothing written yet", "tempfile:mkdtemp", "after", _scratch_of(file))
        yield Checkpoint(f"{file}: written, not renamed", "pathlib:Path.replace", "before", _path_of(file))
    lasting = ("ranges", "baseline", "detections", "confirmation", "run.json", "plan.yaml", "int8.pb", "result.json")
    for file in (*lasting, "report.html", "latency", "damage"):
        yield Checkpoint(f"{file}: just renamed", "pathlib:Path.replace", "after", _path_of(file))
    for file in (*lasting, "report.html", "latency", "damage", "costs", "changed", "times", "values"):
        yield Checkpoint(f"{file}: half written", "os:fsync", "torn", _descriptor_of(file))


_NOTED = "optuna.storages._rdb.storage:_VersionManager._init_version_info_model"
CHECKPOINTS = (
    Checkpoint("output tried", "tempfile:TemporaryFile", "after"),
    Checkpoint("output checked", "tuner.pipeline:check_output", "after"),
    Checkpoint("workspace locked", "tuner.exclusive:_is_locked", "after"),
    Checkpoint("lock says whose it is", "tuner.exclusive:_say_whose", "after"),
    Checkpoint("tables of the study made", "sqlalchemy:MetaData.create_all", "after"),
    Checkpoint("schema of the study noted", _NOTED, "after"),
    Checkpoint("study to be created", "optuna:create_study", "before"),
    Checkpoint("study created, nameless", "optuna:create_study", "after"),
    Checkpoint("identity to be recorded", "optuna:Study.set_user_attr", "before", named("identity")),
    Checkpoint("identity recorded", "optuna:Study.set_user_attr", "after", named("identity")),
    Checkpoint("study open", "tuner.pipeline:open_study", "after"),
    Checkpoint("calibrating, 5th image", "tests.faults.tuning_runs:see_calibration_image", "after", nth=5),
    Checkpoint("calibrated, nothing kept", "tuner.engine:collect_ranges", "after"),
    Checkpoint("baseline, 3rd image", "tuner.model.runner:ModelRunner.detect", "after", nth=3),
    Checkpoint("baseline, last image", "tuner.model.runner:ModelRunner.detect", "after", nth=6),
    Checkpoint("baseline measured, not recorded", "tuner.study:Study.record_baseline", "before"),
    Checkpoint("baseline recorded", "tuner.study:Study.record_baseline", "after"),
    Checkpoint("trial 1 to be asked for", "optuna:Study.ask", "before"),
    Checkpoint("trial 1 asked for", "optuna:Study.ask", "after"),
    Checkpoint("trial 1 begun", "tuner.study:Study.start", "after"),
    Checkpoint("trial 3 begun", "tuner.study:Study.start", "after", nth=3),
    Checkpoint("trial 1, graph made", "tuner.engine:quantize", "after"),
    Checkpoint("trial 1, 2nd image", "tuner.model.runner:ModelRunner.detect", "after", nth=10),
    Checkpoint("trial 2 measured", "tuner.meter:Meter.measure", "after", nth=2),
    Checkpoint("trial 2 to be recorded", "tuner.study:Study.record", "before", nth=2),
    Checkpoint("trial, applied plan recorded", "optuna:Trial.set_user_attr", "after", named("applied"), nth=2),
    Checkpoint("trial, graph's hash recorded", "optuna:Trial.set_user_attr", "after", named("graph_sha256"), nth=3),
    Checkpoint("trial, measurement recorded", "optuna:Trial.set_user_attr", "after", named("measurement")),
    Checkpoint("trial, rejection recorded", "optuna:Trial.set_user_attr", "after", named("rejection")),
    Checkpoint("trial 2 to be told", "optuna:Study.tell", "before", nth=2),
    Checkpoint("trial 2 told", "optuna:Study.tell", "after", nth=2),
    Checkpoint("trial 4 recorded", "tuner.study:Study.record", "after", nth=4),
    Checkpoint("timed", "tuner.foresight:measure_latency_model", "after"),
    Checkpoint("sensitivities measured", "tuner.foresight:measure_sensitivity", "after"),
    Checkpoint("search over", "tuner.pipeline:_search", "after"),
    Checkpoint("exported, not compared", "tuner.pipeline:_export", "after"),
    Checkpoint("finals timed", "tuner.finals:timed_in_turns", "after"),
    Checkpoint("to be confirmed", "tuner.meter:Meter.confirm", "before"),
    Checkpoint("confirmed", "tuner.meter:Meter.confirm", "after"),
    Checkpoint("compared", "tuner.pipeline:choose_final", "after"),
    Checkpoint("result to be written", "tuner.pipeline:_report", "before"),
    Checkpoint("evidence kept", "tuner.pipeline:keep_evidence", "after"),
    Checkpoint("report written", "tuner.pipeline:write_report", "after"),
    *_writes(),
    Checkpoint("eval_func, baseline, 3rd image", "tests.faults.tuning_runs:see_image", "after", nth=3, run="eval_func"),
    Checkpoint("eval_func, trial 2, 5th image", "tests.faults.tuning_runs:see_image", "after", nth=21, run="eval_func"),
    Checkpoint("eval_func, trial 3 to be recorded", "tuner.study:Study.record", "before", nth=3, run="eval_func"),
)


def tear(descriptor: int) -> None:
    """Lose the second half of what was written to a file."""
    os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
