"""The `evaluation` section: how accuracy and speed are measured."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from tuner.config.dataset import DatasetConfig, OptionalDataset, Postprocess, with_images
from tuner.config.refusal import Refusal, SettingError
from tuner.config.section import Section
from tuner.config.setting import EntryPoint, LocalPath

_OTHER_DETECTION_METRIC = Refusal("this metric is not available in this version: use COCOmAP, or an eval_func")
_NOT_A_DETECTION_METRIC = Refusal("this metric does not judge boxes: use COCOmAP, or an eval_func")
_LANGUAGE_METRIC = Refusal("a language metric makes no sense for a detector: use COCOmAP, or an eval_func")
_DEFAULT_AFFINITY = "granularity=fine,verbose,compact,1,0"


class ComputeConfig(Section):
    """How a measurement uses the processor; None leaves it to TensorFlow."""

    cores_per_instance: int | None = Field(default=None, ge=1, description="cores of one instance")
    num_of_instance: int | None = Field(
        default=None,
        ge=1,
        description="instances that run at once; for accuracy, where neither is given, what is faster",
    )
    inter_num_of_threads: int | None = Field(default=None, ge=1, description="threads for independent operators")
    intra_num_of_threads: int | None = Field(default=None, ge=1, description="threads inside one operator")
    kmp_blocktime: int | None = Field(
        default=None, ge=0, description="ms that an idle OpenMP thread waits before it sleeps"
    )

    refused: ClassVar = {
        "kmp_affinity": Refusal(
            "pinning threads by hand is not available in this version: remove it", (None, _DEFAULT_AFFINITY)
        ),
    }


class CocoMap(Section):
    """COCO mean average precision."""

    anno_path: LocalPath | None = Field(
        default=None, description="the annotations; those of the dataset when not given"
    )

    iou_type: Literal["bbox", "segm", "both"] = Field(
        default="bbox",
        alias="iouType",
        description="what is compared: boxes, masks, or both, of which the one that loses more counts",
    )

    refused: ClassVar = {
        "map_key": Refusal(
            "acceptance rests on mAP over IoU 0.50:0.95: remove it", (None, "DetectionBoxes_Precision/mAP")
        ),
    }


class MetricChoice(Section):
    """The metric that accuracy is judged by."""

    coco_map: CocoMap | None = Field(default=None, alias="COCOmAP", description="COCO mAP over IoU 0.50:0.95")

    refused: ClassVar = {
        **dict.fromkeys(("COCOmAPv2", "VOCmAP", "mAP"), _OTHER_DETECTION_METRIC),
        **dict.fromkeys(("Accuracy", "Loss", "MAE", "MSE", "RMSE", "mIOU", "topk"), _NOT_A_DETECTION_METRIC),
        **dict.fromkeys(("BLEU", "F1", "GLUE", "SquadF1"), _LANGUAGE_METRIC),
    }


class AccuracyConfig(Section):
    """How accuracy is measured. With neither dataset nor eval_func, the caller brings one of them."""

    metric: MetricChoice = Field(default_factory=MetricChoice, description="what accuracy means; COCOmAP by default")
    dataloader: OptionalDataset = Field(default=None, description="images with annotations")
    eval_func: EntryPoint | None = Field(
        default=None,
        description="own extension: `package.module:name` of a function of the graph that gives its accuracy",
    )
    labels: Literal["annotations", "model"] = Field(
        default="annotations",
        description="own extension: what is true of an image; model: what the float model itself finds there, so that "
        "images need no annotations and mAP measures agreement",
    )
    label_score: float = Field(
        default=0.3, gt=0, lt=1, description="own extension: the least score of what counts with labels: model"
    )
    configs: ComputeConfig = Field(default_factory=ComputeConfig, description="how the measurement uses the processor")
    postprocess: Postprocess = Field(default_factory=Postprocess, description="steps between the model and the metric")

    refused: ClassVar = {
        "iteration": Refusal("a graph is accepted on every image of the evaluation set: leave it at -1", (None, -1)),
    }

    @property
    def dataset(self) -> DatasetConfig | None:
        """The loader, where it names a dataset."""
        return with_images(self.dataloader)

    @property
    def anno_path(self) -> Path | None:
        """The annotations, where they are given apart from the dataset."""
        return self.metric.coco_map.anno_path if self.metric.coco_map is not None else None

    @property
    def iou_type(self) -> Literal["bbox", "segm", "both"]:
        """What is compared."""
        return self.metric.coco_map.iou_type if self.metric.coco_map is not None else "bbox"

    @model_validator(mode="after")
    def _one_metric(self) -> "AccuracyConfig":
        if self.eval_func is not None and self.metric.coco_map is not None:
            raise SettingError("got both metric and eval_func; expected one of them")
        if self.eval_func is not None and self.labels == "model":
            raise SettingError("got model with an eval_func, which has labels of its own", key="labels")
        return self


class PerformanceConfig(Section):
    """How speed is measured."""

    warmup: int = Field(default=5, ge=0, description="runs before the clock starts")
    iteration: int = Field(
        default=-1,
        ge=-1,
        description="runs that are timed; -1 for as many as ten seconds take (`tuner benchmark`: 100)",
    )
    dataloader: OptionalDataset = Field(default=None, description="images; those of accuracy by default")
    configs: ComputeConfig = Field(default_factory=ComputeConfig, description="how the measurement uses the processor")
    postprocess: Postprocess = Field(default_factory=Postprocess, description="steps between the model and the metric")

    @property
    def dataset(self) -> DatasetConfig | None:
        """The loader, where it names a dataset."""
        return with_images(self.dataloader)

    @model_validator(mode="after")
    def _some_iterations(self) -> "PerformanceConfig":
        if self.iteration == 0:
            raise SettingError("got 0; expected -1 or a whole number of at least 1", key="iteration")
        return self


class EvaluationConfig(Section):
    """How accuracy and speed are measured."""

    accuracy: AccuracyConfig = Field(default_factory=AccuracyConfig, description="how accuracy is measured")
    performance: PerformanceConfig = Field(default_factory=PerformanceConfig, description="how speed is measured")
