"""The `transform` and `filter` sections: order, defaults, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tuner.config import DatasetConfig, TuningConfig, parse_config, pinned_yaml
from tuner.errors import ConfigError
from tuner.precision import INT8, PrecisionPlan

LOADER = "evaluation.accuracy.dataloader"
SECTION = f"{LOADER}.transform"
# As the example for ssd_resnet34 has it.
RESNET34: dict[str, Any] = {
    "Rescale": {},
    "Normalize": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
    "Resize": {"size": 1200},
    "Transpose": {"perm": [2, 0, 1]},
}

Parse = Callable[..., TuningConfig]


def loader_of(config: TuningConfig) -> DatasetConfig:
    assert config.evaluation.accuracy.dataloader is not None
    return config.evaluation.accuracy.dataloader


def names(config: TuningConfig) -> list[str]:
    return [type(step).__name__ for step in loader_of(config).transform.steps]


def test_steps_keep_the_order_of_the_file(parse: Parse) -> None:
    assert names(parse({SECTION: RESNET34})) == ["Rescale", "Normalize", "Resize", "Transpose"]
    turned = {name: RESNET34[name] for name in ("Resize", "Rescale", "Normalize", "Transpose")}
    assert names(parse({SECTION: turned})) == ["Resize", "Rescale", "Normalize", "Transpose"]
    assert parse({SECTION: RESNET34}) != parse({SECTION: turned})


def test_a_step_without_settings_is_a_step(parse: Parse) -> None:
    steps = {"ParseDecodeCoco": None, "Cast": None, "Rescale": None}
    assert names(parse({SECTION: steps})) == ["ParseDecodeCoco", "Cast", "Rescale"]
    assert names(parse({SECTION: {}})) == names(parse({f"{LOADER}.batch_size": 1})) == []


def test_defaults_and_forms(parse: Parse) -> None:
    written = {"ResizeWithRatio": {"padding": True}, "Normalize": {"std": 2}, "Cast": {}, "CenterCrop": {"size": [8]}}
    ratio, normalize, cast, crop = loader_of(parse({SECTION: written})).transform.steps
    assert ratio.model_dump() == {"min_dim": 800, "max_dim": 1365, "padding": True, "constant_value": 0}
    assert normalize.model_dump() == {"mean": (0.0,), "std": (2.0,)}
    assert (cast.model_dump(), crop.model_dump()) == ({"dtype": "float32"}, {"size": (8, 8)})
    (resize,) = loader_of(parse({SECTION: {"Resize": {"size": "300, 600"}}})).transform.steps
    assert resize.model_dump() == {"size": (300, 600), "interpolation": "bilinear"}


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        ({"Resize": {}}, "Resize.size: missing, and required"),
        ({"Resize": {"size": 0}}, "Resize.size: got 0; expected one number of pixels, or a height and a width"),
        ({"Resize": {"size": [1, 2, 3]}}, "Resize.size: got [1, 2, 3]; expected one number of pixels"),
        ({"Resize": {"size": "big"}}, "Resize.size: got 'big'; expected one number of pixels"),
        ({"Resize": {"size": 3, "interpolation": "linear"}}, "interpolation: got 'linear'; expected one of bilinear"),
        (
            {"Resise": {"size": 3}},
            "Resise: unknown key with the value {'size': 3}; expected one of ParseDecodeCoco",
        ),
        ({"ResizeWithRatio": {"max_dim": 0}}, "ResizeWithRatio.max_dim: got 0; expected a number of at least 1"),
        ({"ResizeWithAspectRatio": {"height": 3, "width": 3, "inter_pol": 1}}, "inter_pol: got 1; pixels are averaged"),
        ({"PaddedCenterCrop": {"size": [3, 4]}}, "PaddedCenterCrop.size: got [3, 4]; expected equal height and width"),
        ({"Normalize": {"std": [1, 0, 1]}}, "Normalize.std: got [1.0, 0.0, 1.0]; expected numbers of at least 1e-06"),
        ({"Normalize": {"mean": [1, 2]}}, "Normalize.mean: got [1, 2]; expected one number, or one for each of three"),
        ({"Normalize": {"mean": [[1], 2, 3, 4]}}, "Normalize.mean: got [[1], 2, 3, 4]; expected one number"),
        ({"Normalize": {"mean": [True, 1, 2]}}, "Normalize.mean: got [True, 1, 2]; expected one number"),
        ({"Resize": {"size": 16385}}, "Resize.size: got 16385; expected one number of pixels, or a height and a width"),
        ({"ResizeWithRatio": {"max_dim": 16385}}, "max_dim: got 16385; expected a number of at most 16384"),
        ({"Normalize": {"mean": float("nan")}}, "Normalize.mean: got nan; expected one number"),
        ({"Cast": {"dtype": "string"}}, "Cast.dtype: got 'string'; no detector takes its image so"),
        ({"Transpose": {"perm": [1, 0, 2]}}, "Transpose.perm: got [1, 0, 2]; expected [2, 0, 1], channels first"),
        ({"AlignImageChannel": {"dim": 4}}, "AlignImageChannel.dim: got 4; Input should be 1 or 3"),
        ({"Transpose": {"perm": [2, 0, 1]}, "Resize": {"size": 3}}, "Resize: it needs channels last: put it before Tr"),
        ({"Transpose": {"perm": [2, 0, 1]}, "Normalize": None}, "Normalize: it needs channels last: put it before Tra"),
        ({"Rescale": None, "ParseDecodeCoco": None}, "ParseDecodeCoco: it parses the record: put it first"),
        (
            {"AlignImageChannel": {"dim": 1}, "Normalize": {"mean": [1, 2, 3]}},
            "Normalize: got a number for each of three channels, and AlignImageChannel for one",
        ),
        (
            {"QuantizedInput": {"dtype": "uint8"}},
            "QuantizedInput: got {'dtype': 'uint8'}; the int8 graph takes",
        ),
        ({"RandomHorizontalFlip": None}, "RandomHorizontalFlip: got None; a training augmentation has no place"),
    ],
)
def test_what_cannot_be_done(transform: dict[str, Any], message: str, parse: Parse) -> None:
    with pytest.raises(ConfigError) as caught:
        parse({SECTION: transform})
    assert str(caught.value).startswith(f"f.yaml: {SECTION}.")
    assert message in str(caught.value)


def test_three_channels_may_become_grey_after_they_are_normalised(parse: Parse) -> None:
    steps = {"Normalize": {"mean": [1, 2, 3]}, "AlignImageChannel": {"dim": 1}}
    loader = loader_of(parse({SECTION: steps}))
    assert [type(step).__name__ for step in loader.transform.steps] == list(steps)


@pytest.mark.parametrize("name", ["LabelBalance", "LabelBalanceCOCORecord"])
def test_the_filter_by_both_names(name: str, parse: Parse) -> None:
    assert loader_of(parse({f"{LOADER}.filter": {name: {"size": 3}}})).filter.objects == 3
    assert loader_of(parse({f"{LOADER}.filter": {name: {}}})).filter.objects == 1
    assert loader_of(parse({f"{LOADER}.batch_size": 1})).filter.objects is None


def test_one_filter_with_two_names_is_refused(parse: Parse) -> None:
    with pytest.raises(ConfigError, match=r"filter: got both LabelBalance and LabelBalanceCOCORecord"):
        parse({f"{LOADER}.filter": {"LabelBalance": {"size": 1}, "LabelBalanceCOCORecord": {"size": 1}}})


def test_classes_and_units(parse: Parse) -> None:
    assert parse({}).model.classes == "dataset"
    assert parse({"model.classes": "coco80_from_0"}).model.classes == "coco80_from_0"
    assert parse({"model.classes": "maps/mine.yaml"}).model.classes == Path("/folder/maps/mine.yaml")
    with pytest.raises(ConfigError, match=r"classes: got 'coco81'; expected one of .* \(did you mean 'coco80'\?\)$"):
        parse({"model.classes": "coco81"})
    with pytest.raises(ConfigError, match=r"model.box_units: got 'pixel'; .* \(did you mean 'pixels'\?\)$"):
        parse({"model.box_units": "pixel"})


def test_a_pinned_plan_keeps_them_all(parse: Parse) -> None:
    config = parse(
        {
            "model.classes": "mine.yaml",
            "model.box_units": "pixels",
            SECTION: RESNET34,
            f"{LOADER}.dataset.COCORecord.root": "v.record",
            "quantization.calibration.dataloader": {
                "transform": {"Rescale": None},
                "filter": {"LabelBalanceCOCORecord": {"size": 2}},
            },
        }
    )
    written = pinned_yaml(config, PrecisionPlan({"conv": INT8}), 100, ())
    again = parse_config(yaml.safe_load(written), "plan.yaml", Path("/elsewhere"))
    assert (again.model, again.evaluation) == (config.model, config.evaluation)
    assert again.quantization.calibration.dataloader == config.quantization.calibration.dataloader
    assert names(again) == list(RESNET34)
