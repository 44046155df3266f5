"""The tool from Python: `tuner.tune(...)`, and `Quantization` as LPOT's users know it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tuner.config import TuningConfig, load_config, parse_config, workspace_of
from tuner.data.calibration import QDataloader
from tuner.errors import ConfigError, QuantizationError
from tuner.evaluation.evaluator import EvalFunction
from tuner.export.output import export_model
from tuner.files import write_bytes
from tuner.job import TuningJob
from tuner.model.detection_model import DetectionModel
from tuner.model.loading import load_model
from tuner.pipeline import tune as run
from tuner.progress import Progress
from tuner.report.result import TuningResult
from tuner.report.running import TrialCallback


def tune(
    config: str | Path | Mapping[str, object] | TuningConfig,
    model: str | Path,
    output: str | Path,
    *,
    workspace: str | Path | None = None,
    storage: str | None = None,
    cluster: str | None = None,
    resume: bool = False,
    fresh: bool = False,
    allow_code: bool = False,
    allow_ops: bool = False,
    eval_func: EvalFunction | None = None,
    q_dataloader: QDataloader | None = None,
    callbacks: Sequence[TrialCallback] = (),
    progress: Progress | None = None,
) -> TuningResult:
    """Find the fastest int8 graph that meets the criterion and write it to `output`.

    config: a YAML file, its content as a mapping, or settings already read. model: any of the four formats.
    output: a name ending in `.pb`, or a folder for a SavedModel. workspace: `./tuner_workspace/<model name>` by
    default. cluster: whose workers run the graphs, as `--cluster` has it.
    resume: go on with the latest run there; fresh: use nothing that earlier runs kept there.
    eval_func, q_dataloader: objects that win over what the configuration names.
    allow_code: import what the configuration names as `module:name`, which is refused otherwise. allow_ops: take a
    model with ops that reach files, the network or code outside of the graph.
    callbacks: each is called as `callback(trial, running)` once a trial is recorded, with a RunningResult; one that
    raises StopTuning ends the search, and what was found is handed over. Whatever else it raises leaves from here; the
    trials are kept, and `resume=True` goes on.
    Raises TunerError for what the caller can mend; look at `TuningResult.status` for how the search ended.
    """
    settings = _settings(config)
    return run(
        TuningJob(
            config=settings,
            input_model=Path(model),
            output_model=Path(output),
            workspace=_workspace(settings, workspace),
            storage=storage,
            cluster=cluster,
            resume=resume or (settings.tuning.workspace.resume is not None and not fresh),
            fresh=fresh,
            allow_code=allow_code,
            allow_ops=allow_ops,
            eval_func=eval_func,
            q_dataloader=q_dataloader,
            callbacks=callbacks,
        ),
        progress,
    )


@dataclass(frozen=True)
class QuantizedModel:
    """What a search found. graph_def: the int8 graph. result: how the search ended, with all its figures."""

    model: DetectionModel = field(repr=False)
    result: TuningResult = field(repr=False)

    @property
    def graph_def(self) -> Any:
        """The int8 graph, a `tensorflow.compat.v1.GraphDef`."""
        return self.model.graph_def

    def save(self, output: str | Path) -> None:
        """Write the graph to a name ending in `.pb`, or to a folder as a SavedModel."""
        export_model(self.model, Path(output))


@dataclass(frozen=True)
class Quantization:
    """LPOT's entry point: `q_model = Quantization("conf.yaml")(model, q_dataloader=loader, eval_func=accuracy)`."""

    config: str | Path | Mapping[str, object] | TuningConfig

    def __call__(
        self,
        model: Any,
        q_dataloader: QDataloader | None = None,
        eval_func: EvalFunction | None = None,
        progress: Progress | None = None,
        callbacks: Sequence[TrialCallback] = (),
        *,
        allow_code: bool = False,
        allow_ops: bool = False,
    ) -> QuantizedModel:
        """Search for an int8 graph of `model`: a path, a GraphDef or a `tensorflow.Graph`.

        allow_code, allow_ops: as `tune`.
        Returns the fastest graph that meets the criterion, or the best effort: `result.status` says which.
        Raises QuantizationError when not one plan could be measured, TunerError for what the caller can mend.
        """
        settings = _settings(self.config)
        workspace = _workspace(settings, None)
        if not isinstance(model, str | Path):
            graph_def = model.as_graph_def() if hasattr(model, "as_graph_def") else model
            if not hasattr(graph_def, "SerializeToString"):
                raise ConfigError(f"model: got {type(model).__name__}; expected a path, a GraphDef or a Graph")
            model = workspace / "input_model.pb"
            write_bytes(model, graph_def.SerializeToString(deterministic=True))
        output = workspace / "output_model.pb"
        result = tune(
            settings,
            model,
            output,
            workspace=workspace,
            allow_code=allow_code,
            allow_ops=allow_ops,
            q_dataloader=q_dataloader,
            eval_func=eval_func,
            callbacks=callbacks,
            progress=progress,
        )
        if result.best is None:
            raise QuantizationError(f"no plan could be measured: {result.reason}; {workspace / 'result.json'} says why")
        found = load_model(output, result.model.inputs, result.model.outputs, allow_ops=allow_ops)
        return QuantizedModel(found, result)


def _settings(config: str | Path | Mapping[str, object] | TuningConfig) -> TuningConfig:
    if isinstance(config, TuningConfig):
        return config
    if isinstance(config, Mapping):
        return parse_config(config, "config")
    return load_config(config)


def _workspace(config: TuningConfig, workspace: str | Path | None) -> Path:
    return workspace_of(config.tuning, config.model.name) if workspace is None else Path(workspace)
