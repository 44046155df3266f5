"""The `model` section: which detector, and where images enter and detections leave it."""

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, Field, ValidationInfo

from tuner.config.refusal import SettingError, choices, describe
from tuner.config.section import Section
from tuner.config.setting import Names, OneOf

_TENSORFLOW_ONLY = "this tool quantises TensorFlow detectors: use tensorflow"

FRAMEWORK = OneOf(
    {"tensorflow": "tensorflow"},
    dict.fromkeys(
        (
            "engine",
            "inteltensorflow",
            "keras",
            "mxnet",
            "onnxrt_integer",
            "onnxrt_integerops",
            "onnxrt_qlinear",
            "onnxrt_qlinearops",
            "pytorch",
            "pytorch_fx",
            "pytorch_ipex",
            "tensorflow_itex",
        ),
        _TENSORFLOW_ONLY,
    ),
)

KnownClasses = Literal["dataset", "coco80", "coco80_from_0"]


def _classes(value: object, info: ValidationInfo) -> object:
    names = get_args(KnownClasses)
    if isinstance(value, str) and value in names:
        return value
    if not isinstance(value, str) or not value.endswith((".yaml", ".yml")):
        near = choices(value if isinstance(value, str) else "", [*names, "FILE.yaml"])
        raise SettingError(f"got {describe(value)}; {near}")
    folder: Path = (info.context or {}).get("folder", Path())
    return folder / value


class ModelConfig(Section):
    """The detector by name, with its input and output tensors; empty where they are to be found in the graph."""

    name: str = Field(min_length=1, description="the detector's name; names the workspace and the report")
    framework: Annotated[Literal["tensorflow"], FRAMEWORK] = Field(
        default="tensorflow", description="what the model runs on"
    )
    inputs: Names = Field(
        default=(), description="input tensors, with or without `:0`; found in the graph when not given"
    )
    outputs: Names = Field(
        default=(), description="output tensors, with or without `:0`; found in the graph when not given"
    )
    classes: Annotated[KnownClasses | Path, BeforeValidator(_classes)] = Field(
        default="dataset",
        description="own extension: what the class numbers mean that the detector gives: category ids of the dataset "
        "(dataset), 1 to 80 or 0 to 79 in COCO's order (coco80, coco80_from_0), or what a FILE.yaml of "
        "`class number: category id` says",
    )
    box_units: Annotated[Literal["normalized", "pixels"], OneOf({"normalized": "normalized", "pixels": "pixels"})] = (
        Field(
            default="normalized",
            description="own extension: whether boxes are 0 to 1 of the input's sides, or pixels of the input",
        )
    )
