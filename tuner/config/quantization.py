"""The `quantization` section: calibration, the engine, and what each operator may become."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from tuner.config.dataset import DatasetConfig, OptionalDataset, with_images
from tuner.config.op_rules import OpPattern, OpRule
from tuner.config.refusal import EMPTY, Refusal, SettingError
from tuner.config.section import Section
from tuner.config.setting import Counts, EntryPoint, OneOf
from tuner.precision import Correction

_TENSORFLOW_VERSIONS = tuple(f"2.{minor}" for minor in range(16, 22))


class CalibrationConfig(Section):
    """Which images the ranges are collected from. With neither dataset nor q_dataloader, the caller brings them."""

    sampling_sizes: Counts = Field(
        default=(100,), alias="sampling_size", description="numbers of images; each one is tried"
    )
    dataloader: OptionalDataset = Field(default=None, description="the images")
    q_dataloader: EntryPoint | None = Field(
        default=None,
        description="own extension: `package.module:name` of a loader that takes the place of `dataloader`",
    )

    @property
    def dataset(self) -> DatasetConfig | None:
        """The loader, where it names a dataset."""
        return with_images(self.dataloader)

    @model_validator(mode="after")
    def _one_source(self) -> "CalibrationConfig":
        if self.dataset is not None and self.q_dataloader is not None:
            raise SettingError("got both dataloader and q_dataloader; expected one of them")
        return self


class Advance(Section):
    """Corrections of the float model for what rounding does to it. Each is made anew for every plan that is tried."""

    bias_correction: Annotated[Literal["weight_empirical"] | None, OneOf({"weight_empirical": "weight_empirical"})] = (
        Field(default=None, description="what rounding shifts each result by on average goes into the bias")
    )
    weight_rounding: bool = Field(
        default=False,
        description="own extension: weights are rounded so that results, not weights, are disturbed least",
    )
    cross_layer_equalization: bool = Field(
        default=False, description="own extension: weights that make and that read a channel are brought to like size"
    )
    outlier_channel_splitting: bool = Field(
        default=False, description="own extension: channels of huge range become two of half the range"
    )


class Recipes(Section):
    """Parts of LPOT's quantisation that can be switched."""

    fast_bias_correction: bool = Field(default=False, description="the same as advance.bias_correction")

    refused: ClassVar = {
        **dict.fromkeys(
            ("scale_propagation_max_pooling", "scale_propagation_concat"),
            Refusal("keeping int8 through this op cannot be switched off in this version: use true", (None, True)),
        ),
        "first_conv_or_matmul_quantization": Refusal(
            "this switch is not available in this version: use true, and keep the first operator in fp32 by op_wise",
            (None, True),
        ),
        "weight_correction": Refusal(
            "matching the moments of the weights is not available in this version: use false, and see "
            "advance.weight_rounding",
            (None, False),
        ),
    }


class QuantizationConfig(Section):
    """How the model becomes int8."""

    approach: Annotated[
        Literal["post_training_static_quant"],
        OneOf(
            {"post_training_static_quant": "post_training_static_quant"},
            {
                "post_training_dynamic_quant": "convolutions need ranges in advance: use post_training_static_quant",
                "quant_aware_training": "this tool does not train: use post_training_static_quant",
            },
        ),
    ] = Field(default="post_training_static_quant", description="ranges from calibration images, without training")
    engine: Annotated[Literal["lowering", "inc"], OneOf({"lowering": "lowering", "inc": "inc"})] = Field(
        default="lowering",
        description="own extension: who writes the int8 graph, the tuner itself or neural-compressor",
    )
    converter_timeout_s: float = Field(
        default=1800.0,
        gt=0,
        allow_inf_nan=False,
        description="own extension: seconds after which neural-compressor is ended and the plan has failed",
    )
    converter_memory_mb: int = Field(
        default=0,
        ge=0,
        description="own extension: MiB of memory that neural-compressor may take; 0 for three quarters of what is "
        "free when it starts",
    )
    optimize_postprocess: bool = Field(
        default=True,
        description="own extension: the Object Detection API's loops and per-class suppression become batched ops, "
        "where the detections stay the same",
    )
    oldest_tensorflow: Annotated[
        str,
        OneOf(
            {version: version for version in _TENSORFLOW_VERSIONS},
            {"2.2": "a YAML number loses the last 0 of 2.20: write '2.20', in quotes"},
        ),
        BeforeValidator(lambda value: str(value) if isinstance(value, float) else value),
    ] = Field(
        default="2.17",
        description="own extension: the oldest TensorFlow that the int8 graph has to run in; for 2.16 1x1 convolutions "
        "take a slower kernel and MatMuls stay in float or bf16",
    )
    int8_only: bool = Field(
        default=False,
        description="own extension: the best int8 graph is handed over even where bf16 or float is faster",
    )
    calibration: CalibrationConfig = Field(
        default_factory=CalibrationConfig, description="which images ranges are collected from"
    )
    model_wise: OpRule = Field(default_factory=OpRule, description="what is allowed for every operator")
    op_wise: Mapping[OpPattern, OpRule] = Field(
        default={}, description="what is allowed for operators by name or regular expression"
    )
    recipes: Recipes = Field(default_factory=Recipes, description="parts of the quantisation that can be switched")
    advance: Advance = Field(
        default_factory=Advance,
        description="corrections of weights and biases, made for each plan that is tried; off where not given",
    )

    refused: ClassVar = {"train": Refusal("this tool does not train: remove the section", EMPTY)}

    @property
    def has_matmul_kernel(self) -> bool:
        """Whether all TensorFlows that the graph is for have oneDNN's int8 matrix product, which came with 2.17."""
        return self.oldest_tensorflow != "2.16"

    @property
    def corrections(self) -> tuple[Correction, ...]:
        """The corrections that are asked for, in the order in which they are made."""
        wanted = {
            Correction.EQUALIZATION: self.advance.cross_layer_equalization,
            Correction.SPLITTING: self.advance.outlier_channel_splitting,
            Correction.ROUNDING: self.advance.weight_rounding,
            Correction.BIAS: self.advance.bias_correction is not None or self.recipes.fast_bias_correction,
        }
        return tuple(correction for correction in Correction if wanted[correction])

    @model_validator(mode="after")
    def _engine_writes_for_tensorflow(self) -> "QuantizationConfig":
        if self.engine == "inc" and not self.has_matmul_kernel:
            raise SettingError("got inc and oldest_tensorflow 2.16; expected lowering, or 2.17 or later", key="engine")
        return self

    @model_validator(mode="after")
    def _engine_corrects(self) -> "QuantizationConfig":
        if self.engine == "inc" and self.corrections:
            raise SettingError(
                f"got inc and {', '.join(self.corrections)}; expected lowering, which makes these corrections",
                key="engine",
            )
        return self
