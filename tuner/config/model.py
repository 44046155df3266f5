"""The `model` section: which detector, and where images enter and detections leave it."""

from typing import Annotated, Literal

from pydantic import Field

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
