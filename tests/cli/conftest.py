"""A pipeline that remembers what it was asked and answers at once, in the place of the real one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tuner
from tuner.criterion import Status
from tuner.report.result import CriterionFacts, DatasetFacts, ModelFacts, StageSeconds, TuningResult
from tuner.report.speed import TimedRun
from tuner.trial import Measurement

MEASUREMENT = Measurement(
    accuracy=0.5,
    images=4,
    latency_ms=2.0,
    latency_p90_ms=3.0,
    size_bytes=1_000_000,
    elapsed_s=1.0,
    metrics={"mAP": 0.5},
)


@dataclass
class FakePipeline:
    """Stands for `tuner.pipeline`. fault: raised by every call. status: how tuning ends."""

    status: Status = Status.ACCEPTED
    fault: BaseException | None = None
    calls: list[tuple[str, Any]] = field(default_factory=list)

    def tune(self, job: SimpleNamespace, progress: Any) -> TuningResult:
        self._called("tune", job)
        with progress.stage("calibrate") as stage:
            stage.note("60 images")
        return TuningResult(
            status=self.status,
            reason="said so",
            model=ModelFacts(job.input_model, "", (), ()),
            dataset=DatasetFacts("", 4),
            criterion=CriterionFacts("relative", 0.01, True),
            baseline=MEASUREMENT,
            best=None,
            relative_loss=None,
            output_model=job.output_model,
            trials=(),
            calibrations=1,
            seconds=StageSeconds(),
            refused={},
        )

    def evaluate(self, config: Any, model: Path, progress: Any, **settings: Any) -> Measurement:
        self._called("evaluate", SimpleNamespace(config=config, model=model, **settings))
        assert list(progress.track([1, 2], 2, "evaluate")) == [1, 2]
        return MEASUREMENT

    def benchmark(self, config: Any, models: Sequence[Path], **settings: Any) -> list[TimedRun]:
        self._called("benchmark", SimpleNamespace(config=config, models=models, **settings))
        kinds = (False, True) if settings["xla"] else (False,)
        return [
            TimedRun(name, xla, size, 4.0 / (n + 1), 5.0, 6.0, 3.0, 4.5, 250.0 * size, xla_clusters=7 * xla)
            for size in settings["batch_sizes"]
            for n, name in enumerate(settings["names"])
            for xla in kinds
        ]

    @property
    def job(self) -> Any:
        """What the only call was given."""
        ((_, given),) = self.calls
        return given

    def _called(self, name: str, given: SimpleNamespace) -> None:
        self.calls.append((name, given))
        if self.fault is not None:
            raise self.fault


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> FakePipeline:
    fake = FakePipeline()
    monkeypatch.setattr(tuner, "pipeline", fake, raising=False)
    monkeypatch.setattr(tuner, "job", SimpleNamespace(TuningJob=SimpleNamespace), raising=False)
    monkeypatch.setattr(tuner, "measure", fake, raising=False)
    return fake


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The commands set up the environment of their process: put back what was there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    monkeypatch.setenv("COLUMNS", "80")
    yield
