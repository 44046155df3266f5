"""Runs of the tuner in processes that can be killed: TensorFlow is imported once, then each run is a fork.

A program that reads one order per line, a JSON object, and answers with the process's exit status once the run has
ended: 0, or -9 where it was killed.
"""

import json
import os
import signal
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, reduce, wraps
from importlib import import_module
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from markupsafe import Markup
from PIL import Image

from tests.faults.checkpoints import CHECKPOINTS, Checkpoint, tear
from tests.test_pipeline import Accuracy
from tuner.config import parse_config
from tuner.evaluation import early_rejection, workers
from tuner.evaluation.evaluator import CocoEvaluator, FunctionEvaluator
from tuner.job import TuningJob
from tuner.model.detection_model import DetectionModel
from tuner.model.loading import load_model
from tuner.pipeline import tune
from tuner.quantization import node_times
from tuner.quantization.latency_model import LatencyModel
from tuner.report.html import op_pictures, search_pictures

IMAGES = 8
# What of the cache is measured once, besides evaluations.
KEPT = ("latency", "damage")


@dataclass
class Logbook:
    """What a run did, as lines of a file that outlives it: "image", "began ...", "kept ..." """

    path: Path

    def write(self, line: str) -> None:
        with os.fdopen(os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "w") as file:
            file.write(line + "\n")


@dataclass
class Execution:
    """Ends this process at a checkpoint, by its name, or at an event, by its number from 1."""

    checkpoint: str | None
    event: int | None
    passed: Counter[str] = field(default_factory=Counter)
    events: int = 0

    def count(self) -> None:
        """An event: a call of the table's functions, an SQL statement, or what Python does with a file of the run."""
        self.events += 1
        if self.events == self.event:
            os.kill(os.getpid(), signal.SIGKILL)

    def pass_by(self, checkpoint: Checkpoint, arguments: tuple[Any, ...]) -> None:
        self.passed[checkpoint.name] += 1
        if checkpoint.name == self.checkpoint and self.passed[checkpoint.name] == checkpoint.nth:
            if checkpoint.moment == "torn":
                tear(arguments[0])
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    # What Optuna and Pillow import when they are needed.
    optuna.storages.RDBStorage("sqlite://")
    Image.init()
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            run(**order)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def run(folder: str, kind: str, resume: bool, checkpoint: str | None, event: int | None) -> None:
    """Tune in this process, which ends with it."""
    place = Path(folder)
    log = os.open(place / "output.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    logbook, execution = Logbook(place / "logbook"), Execution(checkpoint, event)
    keep_a_logbook(logbook, load_model(place.parent / "float.pb").sha256)
    steady_times()
    watch(execution, kind, place)
    make_small()
    settings = json.loads((place / "settings.json").read_text())
    job = TuningJob(
        config=parse_config(settings, "settings.json"),
        input_model=place.parent / "float.pb",
        output_model=place / "out" / "int8.pb",
        workspace=place / "workspace",
        resume=resume,
        eval_func=SlowAccuracy(logbook) if kind == "eval_func" else None,
    )
    tune(job)
    (place / "passed.json").write_text(json.dumps({"events": execution.events, "passed": execution.passed}))
    os._exit(0)


def watch(execution: Execution, kind: str, place: Path) -> None:
    """Let `execution` know of every event, and of every checkpoint that is passed by."""
    rows: dict[str, list[Checkpoint]] = defaultdict(list)
    for checkpoint in CHECKPOINTS:
        if checkpoint.run == kind:
            rows[checkpoint.target].append(checkpoint)
    for target, checkpoints in rows.items():
        around(target, partial(_watched, execution, checkpoints))

    def audit(event: str, arguments: Sequence[Any]) -> None:
        if any(isinstance(one, str | os.PathLike) and os.fspath(one).startswith(inside) for one in arguments):
            execution.count()

    inside = (f"{place / 'workspace'}", f"{place / 'out'}")
    sys.addaudithook(audit)
    for event in ("before_cursor_execute", "commit"):
        sqlalchemy.event.listen(sqlalchemy.Engine, event, lambda *_: execution.count())


def _watched(
    execution: Execution, checkpoints: Sequence[Checkpoint], call: Callable[..., Any], *arguments: Any, **named: Any
) -> Any:
    meant = [checkpoint for checkpoint in checkpoints if checkpoint.which(arguments, named)]
    execution.count()
    for checkpoint in meant:
        if checkpoint.moment != "after":
            execution.pass_by(checkpoint, arguments)
    result = call(*arguments, **named)
    execution.count()
    for checkpoint in meant:
        if checkpoint.moment == "after":
            execution.pass_by(checkpoint, arguments)
    return result


def around(target: str, wrapper: Callable[..., Any]) -> None:
    """Have `wrapper` called in the place of a function, with that and its arguments."""
    module, path = target.split(":")
    *owners, name = path.split(".")
    owner = reduce(getattr, owners, import_module(module))
    wrapped = getattr(owner, name)

    @wraps(wrapped)
    def call(*arguments: Any, **named: Any) -> Any:
        return wrapper(wrapped, *arguments, **named)

    setattr(owner, name, call)


def keep_a_logbook(logbook: Logbook, float_sha256: str) -> None:
    """Write down each image and each evaluation and calibration that begins, and what is on disk once it is."""

    def detected(detect: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        logbook.write("image")
        return detect(*arguments, **named)

    def calibrated(collect: Callable[..., Any], model: DetectionModel, tensors: Any, images: Any, *who: Any) -> Any:
        begun.append(f"calibration {model.sha256}")
        logbook.write(f"began {begun[-1]}")

        def each() -> Any:
            for image in images:
                see_calibration_image()
                logbook.write("image")
                yield image

        return collect(model, tensors, each(), *who)

    def evaluated(evaluate: Callable[..., Any], self: Any, model: DetectionModel, *arguments: Any, **named: Any) -> Any:
        images = len(self.images.dataset) if isinstance(self, CocoEvaluator) else IMAGES
        begun.append(f"evaluation {model.sha256} {images}")
        logbook.write(f"began {begun[-1]}")
        return evaluate(self, model, *arguments, **named)

    def baseline_recorded(record: Callable[..., Any], study: Any, baseline: Any) -> None:
        record(study, baseline)
        measured = [what for what in begun if what.startswith(f"evaluation {float_sha256}")]
        if measured:
            logbook.write(f"kept {measured[0]}")

    def attribute_set(set_attribute: Callable[..., Any], trial: Any, name: str, value: Any) -> None:
        set_attribute(trial, name, value)
        # A plan may make a graph that is known, before anything is evaluated.
        if name in ("measurement", "rejection") and begun:
            logbook.write(f"kept {begun[-1]}")

    def renamed(replace: Callable[..., Any], temporary: Path, path: Path) -> None:
        replace(temporary, path)
        kind = path.parent.name
        # Of the float model, its figures and its matches: the other graphs' figures are in the study.
        of_baseline = kind == "detections" and begun[-1].startswith(f"evaluation {float_sha256}")
        if kind in ("ranges", "confirmation") or of_baseline:
            logbook.write(f"kept {begun[-1]}")
        elif kind in KEPT:
            logbook.write(f"kept {kind} {path.name}")

    begun: list[str] = []
    around("tuner.model.runner:ModelRunner.detect", detected)
    around("tuner.engine:collect_ranges", calibrated)
    for kind in (CocoEvaluator, FunctionEvaluator):
        around(f"tuner.evaluation.evaluator:{kind.__name__}.evaluate", evaluated)
    around("tuner.study:Study.record_baseline", baseline_recorded)
    around("optuna:Trial.set_user_attr", attribute_set)
    around("pathlib:Path.replace", renamed)


def make_small() -> None:
    """Leave out what takes long and changes nothing that is kept; look at a plan after half of six images."""
    early_rejection.FEWEST_IMAGES, early_rejection.ALLOWANCE = 2, 0.0
    workers.MOST_RUNS = 5
    node_times.FEWEST_ROUNDS = node_times.MOST_ROUNDS = 2
    for pictures in (op_pictures, search_pictures):
        pictures.inline_svg = lambda *_: Markup()


def steady_times() -> None:
    """Each node takes a microsecond: which operators of so small a graph are the fast ones is chance."""

    def steady(measure: Callable[..., LatencyModel], *arguments: Any, **named: Any) -> LatencyModel:
        found = measure(*arguments, **named)
        times = {
            name: {kind: dict.fromkeys(forms, 1.0) for kind, forms in kinds.items()}
            for name, kinds in found.node_us.items()
        }
        return replace(found, node_us=times, scale=1.0, call_us=1.0)

    around("tuner.foresight:measure_latency_model", steady)


class SlowAccuracy(Accuracy):
    """Sees eight images before it knows."""

    def __init__(self, logbook: Logbook) -> None:
        super().__init__()
        self.logbook = logbook

    def __call__(self, graph_def: Any) -> float:
        for _ in range(IMAGES):
            see_image()
            self.logbook.write("image")
        return super().__call__(graph_def)


def see_image() -> None:
    """What is seen; a call to be killed at."""


def see_calibration_image() -> None:
    """What is calibrated on; a call to be killed at."""
