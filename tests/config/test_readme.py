"""configs/README.md and the code agree: the table is what the sections say, and the sections do what it says.

Run as a script, this file prints the table.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest

from tuner.config import TuningConfig
from tuner.config.section import Section
from tuner.config.setting import OneOf
from tuner.errors import ConfigError

README = Path(__file__).parents[2] / "configs/README.md"


@dataclass(frozen=True)
class Row:
    """One key, or one value of a key (`key: value`), with what becomes of it."""

    key: str
    status: str
    default: str
    meaning: str
    accepted: tuple[Any, ...] = ()

    def __str__(self) -> str:
        return f"| `{self.key}` | {self.status} | {self.default} | {self.meaning} |"


def rows(section: type[Section] = TuningConfig, prefix: str = "", seen: dict[type, str] | None = None) -> Iterator[Row]:
    seen = {} if seen is None else seen
    for name, field in section.model_fields.items():
        key = prefix + (field.alias or name)
        child = section_in(field.annotation)
        default = "required" if field.is_required() else as_yaml(field.default) if field.default_factory is None else ""
        meaning = field.description or ""
        choice = next((one for one in field.metadata if isinstance(one, OneOf)), None)
        if choice is not None:
            meaning += f"; one of {', '.join(choice.values)}"
        if child in seen:
            meaning += f"; keys as in `{seen[child]}`"
        yield Row(key, "honoured", default, meaning, tuple(choice.values) if choice is not None else ())
        if choice is not None:
            yield from (Row(f"{key}: {value}", "refused", "", reason) for value, reason in choice.refused.items())
        if child is not None and child not in seen and child is not Section:
            seen[child] = key
            yield from rows(child, f"{key}.", seen)
    for name, refusal in section.refused.items():
        default = " or ".join(as_yaml(value) for value in refusal.accepted if value is not None)
        yield Row(prefix + name, "refused", default, refusal.reason, refusal.accepted)


def section_in(annotation: Any) -> type[Section] | None:
    """The section class in an annotation such as `Section`, `Section | None` or `Mapping[str, Section]`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next(filter(None, map(section_in, get_args(annotation))), None)


def as_yaml(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(as_yaml, value))
    if value is None or value == {}:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


ROWS = list(rows())
REFUSED_KEYS = [row for row in ROWS if row.status == "refused" and ": " not in row.key]
REFUSED_VALUES = [row for row in ROWS if row.status == "refused" and ": " in row.key]

DATALOADER = "quantization.calibration.dataloader"

LPOT_KEYS = """
version device model.name model.framework model.inputs model.outputs
quantization.approach quantization.advance.bias_correction quantization.train
quantization.calibration.sampling_size quantization.calibration.dataloader
quantization.recipes.scale_propagation_max_pooling quantization.recipes.scale_propagation_concat
quantization.recipes.first_conv_or_matmul_quantization quantization.recipes.fast_bias_correction
quantization.recipes.weight_correction
quantization.model_wise.weight.granularity quantization.model_wise.weight.scheme quantization.model_wise.weight.dtype
quantization.model_wise.weight.algorithm quantization.model_wise.weight.bit
quantization.model_wise.activation.granularity quantization.model_wise.activation.scheme
quantization.model_wise.activation.dtype quantization.model_wise.activation.algorithm quantization.op_wise
graph_optimization model_conversion pruning
tuning.strategy.name tuning.strategy.accuracy_weight tuning.strategy.latency_weight
tuning.strategy.sigopt_api_token tuning.strategy.sigopt_project_id tuning.strategy.sigopt_experiment_name
tuning.accuracy_criterion.relative tuning.accuracy_criterion.absolute tuning.accuracy_criterion.higher_is_better
tuning.objective tuning.exit_policy.timeout tuning.exit_policy.max_trials tuning.exit_policy.performance_only
tuning.random_seed tuning.tensorboard tuning.workspace.path tuning.workspace.resume
tuning.diagnosis tuning.multi_objectives
evaluation.accuracy.metric.COCOmAP.anno_path evaluation.accuracy.metric.COCOmAP.map_key
evaluation.accuracy.metric.topk evaluation.accuracy.metric.MSE evaluation.accuracy.metric.RMSE
evaluation.accuracy.metric.MAE evaluation.accuracy.metric.Accuracy evaluation.accuracy.metric.Loss
evaluation.accuracy.metric.BLEU evaluation.accuracy.metric.SquadF1 evaluation.accuracy.metric.F1
evaluation.accuracy.metric.mAP evaluation.accuracy.metric.VOCmAP evaluation.accuracy.metric.mIOU
evaluation.accuracy.metric.GLUE evaluation.accuracy.iteration evaluation.accuracy.configs
evaluation.accuracy.dataloader evaluation.accuracy.postprocess.transform.LabelShift
evaluation.accuracy.postprocess.transform.SquadV1
evaluation.performance.warmup evaluation.performance.iteration evaluation.performance.configs
evaluation.performance.dataloader evaluation.performance.postprocess
evaluation.accuracy.configs.cores_per_instance evaluation.accuracy.configs.num_of_instance
evaluation.accuracy.configs.inter_num_of_threads evaluation.accuracy.configs.intra_num_of_threads
evaluation.accuracy.configs.kmp_blocktime evaluation.accuracy.configs.kmp_affinity
"""
LPOT_DATALOADER_KEYS = """
batch_size last_batch shuffle filter.LabelBalance dataset.COCORecord.root dataset.COCORecord.num_cores
dataset.COCORaw.root dataset.COCORaw.num_cores dataset.COCORaw.img_dir dataset.COCORaw.anno_dir
dataset.TFRecordDataset dataset.ImageFolder dataset.dummy dataset.dummy_v2 dataset.VOCRecord dataset.COCONpy
dataset.CIFAR10 dataset.CIFAR100 dataset.MNIST dataset.Imagenet dataset.bert dataset.style_transfer dataset.GLUE
transform.Cast transform.Resize transform.Rescale transform.Normalize transform.Transpose transform.ParseDecodeCoco
transform.ToArray transform.AlignImageChannel transform.CropToBoundingBox transform.ResizeWithRatio
transform.PaddedCenterCrop transform.ResizeWithAspectRatio transform.CenterCrop transform.QuantizedInput
transform.RandomCrop transform.RandomHorizontalFlip
"""
# What else a section must have, by the keys.
NEEDED: dict[str, object] = {
    f"{DATALOADER}.dataset.COCORaw.root": "images",
    f"{DATALOADER}.transform.Resize.size": 300,
    f"{DATALOADER}.transform.ResizeWithAspectRatio.height": 300,
    f"{DATALOADER}.transform.ResizeWithAspectRatio.width": 300,
}


def test_table_in_readme_is_what_the_code_says() -> None:
    table = [line for line in README.read_text().splitlines() if line.startswith("| `")]
    assert table == [str(row) for row in ROWS], "run this file as a script to see the table"


def test_every_row_has_a_meaning() -> None:
    assert [row.key for row in ROWS if not re.match(r"\S.{5}", row.meaning)] == []


@pytest.mark.parametrize("key", [*LPOT_KEYS.split(), *(f"{DATALOADER}.{key}" for key in LPOT_DATALOADER_KEYS.split())])
def test_every_key_of_lpot_is_in_the_table(key: str) -> None:
    assert key in {row.key for row in ROWS}


@pytest.mark.parametrize("row", REFUSED_KEYS, ids=lambda row: row.key)
def test_refused_keys_are_refused_with_their_reason(row: Row, parse: Callable[..., TuningConfig]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse({row.key: {"x": 1}})
    assert f"{row.key}: got {{'x': 1}}; {row.meaning}" in str(caught.value)


@pytest.mark.parametrize("row", REFUSED_VALUES, ids=lambda row: row.key)
def test_refused_values_are_refused_with_their_reason(row: Row, parse: Callable[..., TuningConfig]) -> None:
    key, value = row.key.split(": ")
    with pytest.raises(ConfigError) as caught:
        parse({key: value})
    assert f"{key}: got {value!r}; {row.meaning}" in str(caught.value)


@pytest.mark.parametrize(
    "key, value", [pytest.param(row.key, value, id=f"{row.key}={value}") for row in ROWS for value in row.accepted]
)
def test_accepted_values_are_accepted(key: str, value: object, parse: Callable[..., TuningConfig]) -> None:
    needed = {path: needs for path, needs in NEEDED.items() if key.startswith(path.rpartition(".")[0])}
    assert parse({**needed, key: value}).model.name == "m"


if __name__ == "__main__":
    print("\n".join(map(str, ROWS)))
