"""The `tuning` section: how much accuracy may be lost, how the search goes, and when it ends."""

import re
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from tuner.config.refusal import EMPTY, Refusal, SettingError, describe
from tuner.config.section import Section
from tuner.config.setting import LocalPath, OneOf, PositiveNumber

WORKSPACES = Path("tuner_workspace")

_OTHER_STRATEGY = "this strategy is not available in this version: use basic"
_OTHER_OBJECTIVE = "this objective is not available in this version: use performance"
_SIGOPT = Refusal("the SigOpt service is not used by this tool: remove it and use the strategy basic")
_WEIGHT = Refusal("accuracy is a limit here, not a term of a weighted sum: leave it at 1.0", (None, 1.0))


class StrategyConfig(Section):
    """How plans are proposed."""

    name: Annotated[
        Literal["basic"],
        OneOf(
            {"basic": "basic"},
            {
                **dict.fromkeys(("bayesian", "exhaustive", "mse", "random"), _OTHER_STRATEGY),
                "sigopt": _SIGOPT.reason,
                "tpe": _OTHER_STRATEGY,
            },
        ),
    ] = Field(default="basic", description="all int8 first, then the most sensitive operators fall back")

    refused: ClassVar = {
        **dict.fromkeys(("accuracy_weight", "latency_weight"), _WEIGHT),
        **dict.fromkeys(("sigopt_api_token", "sigopt_project_id", "sigopt_experiment_name"), _SIGOPT),
    }


class AccuracyCriterion(Section):
    """How much accuracy a graph may lose against the float model; `kind` and `limit` say which of the two is set."""

    relative: PositiveNumber | None = Field(
        default=None,
        description="largest share of the baseline's accuracy that may be lost, as 0.01 or '1%'; 0.01 by default",
    )
    absolute: PositiveNumber | None = Field(default=None, description="largest difference in the metric's own unit")
    higher_is_better: bool = Field(default=True, description="false for a metric that is a loss")

    @property
    def kind(self) -> Literal["relative", "absolute"]:
        """Which limit holds."""
        return "relative" if self.absolute is None else "absolute"

    @property
    def limit(self) -> float:
        """The limit: a share of the baseline when relative, in the metric's own unit when absolute."""
        if self.absolute is not None:
            return self.absolute
        return 0.01 if self.relative is None else self.relative

    @model_validator(mode="after")
    def _one_limit(self) -> "AccuracyCriterion":
        if self.relative is not None and self.absolute is not None:
            raise SettingError("got both relative and absolute; expected exactly one of them")
        if self.relative is not None and self.relative >= 1:
            raise SettingError(
                f"got {describe(self.relative)}; expected a share below 1, such as 0.01 or '1%'", key="relative"
            )
        return self


class ExitPolicy(Section):
    """When the search ends."""

    timeout_s: float = Field(
        default=0.0,
        alias="timeout",
        ge=0,
        allow_inf_nan=False,
        description="seconds to look for a faster passing plan; 0 stops at the first plan that passes",
    )
    max_trials: int = Field(default=100, ge=1, description="plans to try, at most")

    refused: ClassVar = {
        "performance_only": Refusal(
            "a graph is not handed over without its accuracy: use false, and max_trials: 1 for a single plan",
            (None, False),
        ),
    }


class WorkspaceConfig(Section):
    """Where a run keeps what it knows."""

    path: LocalPath | None = Field(default=None, description="the folder of a run's record, caches and results")
    resume: LocalPath | None = Field(default=None, description="the workspace of an earlier run to go on from")


def workspace_of(tuning: "TuningSettings", name: str) -> Path:
    """The workspace of a run whose caller names none: the settings' own, or one named after the model."""
    folder = re.sub(r"[^\w.-]+", "_", name).lstrip(".") or "model"
    return tuning.workspace.resume or tuning.workspace.path or WORKSPACES / folder


class TuningSettings(Section):
    """How much may be lost, how the search goes, and when it ends."""

    strategy: StrategyConfig = Field(default_factory=StrategyConfig, description="how plans are proposed")
    accuracy_criterion: AccuracyCriterion = Field(
        default_factory=AccuracyCriterion, description="how much accuracy may be lost"
    )
    objective: Annotated[
        Literal["performance"],
        OneOf({"performance": "performance"}, dict.fromkeys(("footprint", "modelsize"), _OTHER_OBJECTIVE)),
    ] = Field(default="performance", description="what is best among the plans that pass: the lowest latency")
    exit_policy: ExitPolicy = Field(default_factory=ExitPolicy, description="when the search ends")
    random_seed: int = Field(default=1978, ge=0, le=2**32 - 1, description="the seed of everything random")
    workspace: WorkspaceConfig = Field(default_factory=WorkspaceConfig, description="where a run keeps what it knows")

    refused: ClassVar = {
        "tensorboard": Refusal("TensorBoard dumps are not available in this version: use false", (None, False)),
        "diagnosis": Refusal("diagnosis is not available in this version: remove the section", EMPTY),
        "multi_objectives": Refusal(
            "several objectives are not available in this version: use objective: performance", EMPTY
        ),
    }
