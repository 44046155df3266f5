"""What a run is asked to do."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tuner.config import TuningConfig
from tuner.data.calibration import QDataloader
from tuner.evaluation.evaluator import EvalFunction
from tuner.report.running import TrialCallback


@dataclass(frozen=True)
class TuningJob:
    """One run as it was asked for.

    config: the settings. input_model: any of the four formats. output_model: a name ending in `.pb`, or a folder.
    workspace: where the run keeps its record. storage: an SQLAlchemy URL in the place of the workspace's study.db.
    cluster: whose workers run the graphs: local:N, auto or ray://HOST:PORT; None for this process.
    resume: go on with the latest study there. fresh: use nothing that is there, cached results neither.
    eval_func, q_dataloader: objects that win over what the settings name. cache_mb: MiB for decoded images.
    allow_code: import what the settings name as module:name. allow_ops: take a model whose operators reach files, the
    network or code. callbacks: each is called with every trial, once it is recorded, and what the run has found so far.
    """

    config: TuningConfig
    input_model: Path
    output_model: Path
    workspace: Path
    storage: str | None = None
    cluster: str | None = None
    resume: bool = False
    fresh: bool = False
    skip_bad_records: bool = False
    cache_mb: int = 512
    allow_code: bool = False
    allow_ops: bool = False
    eval_func: EvalFunction | None = None
    q_dataloader: QDataloader | None = None
    callbacks: Sequence[TrialCallback] = ()

    @property
    def storage_url(self) -> str:
        """The SQLAlchemy URL of the study: `storage`, or that of `study.db` in the workspace."""
        return self.storage or f"sqlite:///{self.workspace.resolve() / 'study.db'}"
