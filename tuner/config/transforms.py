"""The `transform` section: steps between a decoded image and the model, in the order in which they are written."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from tuner.config.refusal import Refusal, SettingError, describe
from tuner.config.section import Section
from tuner.config.setting import OneOf, split_list

LABEL_SHIFT = Refusal("labels and detections carry the category ids of the dataset: remove it")
NOT_FOR_IMAGES = Refusal("this is a transform for text, not for a detector's images: remove it")

_AUGMENTATION = Refusal("a training augmentation has no place in quantisation: remove it")
_OTHER_RECORD = Refusal("this parses the records of another kind of set: use ParseDecodeCoco")
_CLASSIFIER = Refusal("this is how classifiers are fed: use Resize, Rescale and Normalize")

_SMALLEST_STD = 1e-6
# Of a side, in pixels: no detector is fed more, and memory ends somewhere.
_LARGEST_SIDE = 16384


def _size(value: object) -> object:
    sides = split_list(value)
    try:
        sides = tuple(int(side) if isinstance(side, str) else side for side in sides)
    except ValueError:
        sides = ()
    if len(sides) not in (1, 2) or not all(type(side) is int and 0 < side <= _LARGEST_SIDE for side in sides):
        expected = f"one number of pixels, or a height and a width, at most {_LARGEST_SIDE}"
        raise SettingError(f"got {describe(value)}; expected {expected}")
    return sides * 2 if len(sides) == 1 else sides


def _per_channel(value: object) -> object:
    items = split_list(value)
    try:
        numbers = [float(one) for one in items if isinstance(one, int | float | str) and not isinstance(one, bool)]
    except (ValueError, OverflowError):
        numbers = []
    if len(numbers) != len(items) or len(items) not in (1, 3) or not all(map(math.isfinite, numbers)):
        raise SettingError(f"got {describe(value)}; expected one number, or one for each of three channels")
    return tuple(numbers)


def _permutation(value: object) -> object:
    # Another order would turn the picture, and the boxes in it.
    if value not in ([0, 1, 2], [2, 0, 1], (0, 1, 2), (2, 0, 1)):
        raise SettingError(f"got {describe(value)}; expected [2, 0, 1], channels first, or [0, 1, 2]")
    return tuple(value)


ImageSize = Annotated[tuple[int, int], BeforeValidator(_size)]
PerChannel = Annotated[tuple[float, ...], BeforeValidator(_per_channel)]
Permutation = Annotated[tuple[int, int, int], BeforeValidator(_permutation)]


class Resize(Section):
    """To a fixed size, whatever that does to the ratio of the sides."""

    size: ImageSize = Field(description="pixels: one number, or height and width")
    interpolation: Annotated[
        Literal["bilinear", "nearest", "bicubic"],
        OneOf({"bilinear": "bilinear", "nearest": "nearest", "bicubic": "bicubic"}),
    ] = Field(default="bilinear", description="how, as `tf.image.resize` has it")


class ResizeWithRatio(Section):
    """With the ratio of the sides kept."""

    min_dim: int = Field(
        default=800, ge=0, le=_LARGEST_SIDE, description="the shorter side is enlarged to so many pixels; 0 for never"
    )
    max_dim: int = Field(default=1365, ge=1, le=_LARGEST_SIDE, description="the longer side is at most so many pixels")
    padding: bool = Field(default=False, description="pad to a square of max_dim, the image in its middle")
    constant_value: int = Field(default=0, description="the value of the padding")


class ResizeWithAspectRatio(Section):
    """With the ratio of the sides kept, somewhat larger than what is cropped afterwards."""

    height: int = Field(ge=1, le=_LARGEST_SIDE, description="of the crop that follows, in pixels")
    width: int = Field(ge=1, le=_LARGEST_SIDE, description="of the crop that follows, in pixels")
    scale: float = Field(
        default=87.5, ge=1, le=100, description="how much of the shorter side the crop will leave, in percent"
    )

    refused: ClassVar = {
        "inter_pol": Refusal("pixels are averaged over their area: remove it", (None, 3)),
    }


class CropToBoundingBox(Section):
    """A part of the image, told in pixels."""

    offset_height: int = Field(ge=0, description="rows above it")
    offset_width: int = Field(ge=0, description="columns left of it")
    target_height: int = Field(ge=1, description="its height")
    target_width: int = Field(ge=1, description="its width")


class CenterCrop(Section):
    """The middle of the image."""

    size: ImageSize = Field(description="pixels: one number, or height and width")


class PaddedCenterCrop(Section):
    """A square from the middle of the image, of a share of its shorter side."""

    size: ImageSize = Field(description="the size that Resize gives it afterwards, in pixels")
    crop_padding: int = Field(default=0, ge=0, description="the square has size / (size + crop_padding) of that side")

    @model_validator(mode="after")
    def _square(self) -> "PaddedCenterCrop":
        if self.size[0] != self.size[1]:
            raise SettingError(f"got {list(self.size)}; expected equal height and width", key="size")
        return self


class Rescale(Section):
    """Values divided by 255, as float32."""


class Normalize(Section):
    """(value - mean) / std, as float32 where values were whole numbers."""

    mean: PerChannel = Field(default=(0.0,), description="one number, or one for each channel")
    std: PerChannel = Field(default=(1.0,), description="one number, or one for each channel")

    @model_validator(mode="after")
    def _positive(self) -> "Normalize":
        if min(self.std) < _SMALLEST_STD:
            raise SettingError(f"got {list(self.std)}; expected numbers of at least {_SMALLEST_STD:g}", key="std")
        return self


class Cast(Section):
    """Another type, the values as they are: whole numbers lose fractions and keep to their type's bounds."""

    dtype: Annotated[
        str,
        OneOf(
            {name: name for name in ("float32", "float64", "float16", "uint8", "int8", "uint16", "int16", "int32")},
            dict.fromkeys(
                ("uint32", "int64", "uint64", "bool", "string", "complex64", "complex128"),
                "no detector takes its image so: use float32 or uint8",
            ),
        ),
    ] = Field(default="float32", description="the type")


class Transpose(Section):
    """The axes in another order."""

    perm: Permutation = Field(description="[2, 0, 1] for channels first")


class ToArray(Section):
    """Nothing to do: images are arrays already."""


class AlignImageChannel(Section):
    """Another number of channels."""

    dim: Literal[1, 3] = Field(default=3, description="3, which images have, or 1 for grey")


class ParseDecodeCoco(Section):
    """The parser of COCO records, which read their images decoded already."""


Step = (
    ParseDecodeCoco
    | Resize
    | ResizeWithRatio
    | ResizeWithAspectRatio
    | CropToBoundingBox
    | CenterCrop
    | PaddedCenterCrop
    | Rescale
    | Normalize
    | Cast
    | Transpose
    | ToArray
    | AlignImageChannel
)
_NOT_AFTER_TRANSPOSE = (
    *(Resize, ResizeWithRatio, ResizeWithAspectRatio, CropToBoundingBox, CenterCrop, PaddedCenterCrop),
    *(Normalize, AlignImageChannel),
)


class Transforms(Section):
    """Steps between a decoded image and the model, in the order in which they are written."""

    parse_decode_coco: ParseDecodeCoco | None = Field(
        default=None, alias="ParseDecodeCoco", description="the parser of COCO records; of no effect, and first"
    )
    resize: Resize | None = Field(default=None, alias="Resize", description="to a fixed size")
    resize_with_ratio: ResizeWithRatio | None = Field(
        default=None, alias="ResizeWithRatio", description="with the ratio of the sides kept, and padded on demand"
    )
    resize_with_aspect_ratio: ResizeWithAspectRatio | None = Field(
        default=None, alias="ResizeWithAspectRatio", description="with the ratio of the sides kept, for a crop"
    )
    crop_to_bounding_box: CropToBoundingBox | None = Field(
        default=None, alias="CropToBoundingBox", description="a part of the image; boxes outside it cannot be found"
    )
    center_crop: CenterCrop | None = Field(
        default=None, alias="CenterCrop", description="the middle; boxes outside it cannot be found"
    )
    padded_center_crop: PaddedCenterCrop | None = Field(
        default=None, alias="PaddedCenterCrop", description="a square from the middle, as a share of the shorter side"
    )
    rescale: Rescale | None = Field(default=None, alias="Rescale", description="values / 255, as float32")
    normalize: Normalize | None = Field(default=None, alias="Normalize", description="(values - mean) / std")
    cast: Cast | None = Field(
        default=None, alias="Cast", description="another type, values as they are; see Rescale for 0 to 1"
    )
    transpose: Transpose | None = Field(default=None, alias="Transpose", description="channels first")
    to_array: ToArray | None = Field(default=None, alias="ToArray", description="of no effect: images are arrays")
    align_image_channel: AlignImageChannel | None = Field(
        default=None, alias="AlignImageChannel", description="another number of channels"
    )

    _order: tuple[str, ...] = PrivateAttr(default=())

    refused: ClassVar = {
        "QuantizedInput": Refusal("the int8 graph takes the same input as the float one: remove it"),
        "CropResize": Refusal("this is CropToBoundingBox, then Resize: use them"),
        **dict.fromkeys(("BilinearImagenet", "ResizeCropImagenet"), _CLASSIFIER),
        **dict.fromkeys(
            ("RandomCrop", "RandomHorizontalFlip", "RandomResizedCrop", "RandomVerticalFlip"), _AUGMENTATION
        ),
        **dict.fromkeys(("DecodeImage", "EncodeJpeg", "ParseDecodeImagenet", "ParseDecodeVoc"), _OTHER_RECORD),
        "LabelShift": LABEL_SHIFT,
        "SquadV1": NOT_FOR_IMAGES,
    }

    @property
    def steps(self) -> tuple[Step, ...]:
        """What is done to an image, in order."""
        by_name = {field.alias: getattr(self, name) for name, field in type(self).model_fields.items()}
        return tuple(by_name[name] for name in self._order)

    @model_validator(mode="wrap")
    @classmethod
    def _keep_order(cls, value: Any, handler: ModelWrapValidatorHandler["Transforms"]) -> "Transforms":
        if not isinstance(value, Mapping):
            return handler(value)
        known = {field.alias for field in cls.model_fields.values()}
        # A step without settings is a step, in `Rescale:` as in `Rescale: {}`.
        steps = {name: {} if step is None and name in known else step for name, step in value.items()}
        transforms = handler(steps)
        transforms._order = tuple(name for name in value if name in known)
        transforms._check_order()
        return transforms

    def _check_order(self) -> None:
        steps = self.steps
        if self.parse_decode_coco is not None and steps[0] is not self.parse_decode_coco:
            raise SettingError("it parses the record: put it first", key="ParseDecodeCoco")
        behind = steps[steps.index(self.transpose) + 1 :] if self.transpose is not None else ()
        for step in behind:
            if isinstance(step, _NOT_AFTER_TRANSPOSE):
                raise SettingError("it needs channels last: put it before Transpose", key=type(step).__name__)
        if self.normalize is None or max(len(self.normalize.mean), len(self.normalize.std)) == 1:
            return
        before = steps[: steps.index(self.normalize)]
        if any(isinstance(step, AlignImageChannel) and step.dim == 1 for step in before):
            raise SettingError("got a number for each of three channels, and AlignImageChannel for one", "Normalize")

    @model_serializer(mode="wrap")
    def _in_order(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = handler(self)
        places = {name: place for place, name in enumerate(self._order)}
        return dict(sorted(found.items(), key=lambda item: places.get(item[0], len(places))))
