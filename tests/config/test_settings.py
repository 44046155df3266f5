"""The forms in which a setting may be written, and what is said about a setting that is wrong."""

from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

from tuner.address import Address
from tuner.config import CocoRaw, CocoRecord, TuningConfig, parse_config, pinned_yaml
from tuner.errors import ConfigError
from tuner.precision import Dtype, Granularity, PrecisionPlan

Parse = Callable[..., TuningConfig]
CALIBRATION = "quantization.calibration"
RECORD = {"COCORecord": {"root": "a.record"}}


@pytest.mark.parametrize(
    "key, written, attribute, value",
    [
        ("model.inputs", "a,b", "model.inputs", ("a", "b")),
        ("model.inputs", "a, b", "model.inputs", ("a", "b")),
        ("model.inputs", "a b", "model.inputs", ("a", "b")),
        ("model.inputs", ["a", "b"], "model.inputs", ("a", "b")),
        ("model.outputs", "boxes:0", "model.outputs", ("boxes:0",)),
        ("model.outputs", [], "model.outputs", ()),
        ("model.outputs", None, "model.outputs", ()),
        ("quantization", None, "quantization.calibration.sampling_sizes", (100,)),
        (f"{CALIBRATION}.sampling_size", 50, "quantization.calibration.sampling_sizes", (50,)),
        (f"{CALIBRATION}.sampling_size", "50", "quantization.calibration.sampling_sizes", (50,)),
        (f"{CALIBRATION}.sampling_size", "10, 50,100", "quantization.calibration.sampling_sizes", (10, 50, 100)),
        (f"{CALIBRATION}.sampling_size", "10 50", "quantization.calibration.sampling_sizes", (10, 50)),
        (f"{CALIBRATION}.sampling_size", [10, "50", 10], "quantization.calibration.sampling_sizes", (10, 50)),
        (f"{CALIBRATION}.dataloader", None, "quantization.calibration.dataset", None),
        (f"{CALIBRATION}.dataloader", {}, "quantization.calibration.dataset", None),
        (f"{CALIBRATION}.q_dataloader", "my.data:loader", "quantization.calibration.q_dataloader", "my.data:loader"),
        ("quantization.engine", "inc", "quantization.engine", "inc"),
        ("quantization.advance", None, "quantization.corrections", ()),
        ("quantization.advance.bias_correction", "weight_empirical", "quantization.corrections", ("bias_correction",)),
        ("quantization.recipes.fast_bias_correction", True, "quantization.corrections", ("bias_correction",)),
        (
            "quantization.advance",
            {"bias_correction": "weight_empirical", "weight_rounding": True, "cross_layer_equalization": True},
            "quantization.corrections",
            ("cross_layer_equalization", "weight_rounding", "bias_correction"),
        ),
        (
            "quantization.advance.outlier_channel_splitting",
            True,
            "quantization.corrections",
            ("outlier_channel_splitting",),
        ),
        ("quantization.model_wise.activation.dtype", "uint8", "quantization.model_wise.dtypes", (Dtype.INT8,)),
        ("quantization.model_wise.activation.dtype", "uint8,int8", "quantization.model_wise.dtypes", (Dtype.INT8,)),
        (
            "quantization.model_wise.weight.dtype",
            ["int8", "fp32"],
            "quantization.model_wise.dtypes",
            (Dtype.INT8, Dtype.FP32),
        ),
        (
            "quantization.model_wise.weight.granularity",
            "per_tensor",
            "quantization.model_wise.weight_granularities",
            (Granularity.PER_TENSOR,),
        ),
        ("tuning.accuracy_criterion", None, "tuning.accuracy_criterion.limit", 0.01),
        ("tuning.accuracy_criterion", {"higher_is_better": False}, "tuning.accuracy_criterion.kind", "relative"),
        ("tuning.accuracy_criterion.relative", 0.02, "tuning.accuracy_criterion.limit", 0.02),
        ("tuning.accuracy_criterion.relative", "2%", "tuning.accuracy_criterion.limit", 0.02),
        ("tuning.accuracy_criterion.relative", "0.5 %", "tuning.accuracy_criterion.limit", 0.005),
        ("tuning.accuracy_criterion.relative", "1e-2", "tuning.accuracy_criterion.limit", 0.01),
        ("tuning.accuracy_criterion.absolute", 0.005, "tuning.accuracy_criterion.kind", "absolute"),
        ("tuning.accuracy_criterion.absolute", 2, "tuning.accuracy_criterion.limit", 2.0),
        ("tuning.exit_policy.timeout", 60, "tuning.exit_policy.timeout_s", 60.0),
        ("tuning.exit_policy.timeout", 0.5, "tuning.exit_policy.timeout_s", 0.5),
        ("tuning.random_seed", 9527, "tuning.random_seed", 9527),
        ("tuning.workspace.path", "w", "tuning.workspace.path", Path("/folder/w")),
        ("tuning.workspace.resume", "/elsewhere/w", "tuning.workspace.resume", Path("/elsewhere/w")),
        ("evaluation.accuracy.metric", {"COCOmAP": {}}, "evaluation.accuracy.anno_path", None),
        ("evaluation.accuracy.metric", {"COCOmAP": None}, "evaluation.accuracy.anno_path", None),
        (
            "evaluation.accuracy.metric.COCOmAP.anno_path",
            "a.json",
            "evaluation.accuracy.anno_path",
            Path("/folder/a.json"),
        ),
        ("evaluation.accuracy.eval_func", "my.metrics:box_map", "evaluation.accuracy.eval_func", "my.metrics:box_map"),
        ("evaluation.performance.iteration", 100, "evaluation.performance.iteration", 100),
        ("evaluation.performance.configs.kmp_blocktime", 0, "evaluation.performance.configs.kmp_blocktime", 0),
        ("version", 1.0, "version", "1.0"),
        ("version", "1.6.1", "version", "1.6.1"),
        ("version", 2, "version", "2"),
        ("pruning", None, "device", "cpu"),
        ("tuning.tensorboard", False, "device", "cpu"),
    ],
)
def test_accepted_forms(key: str, written: object, attribute: str, value: object, parse: Parse) -> None:
    config = parse({key: written})
    assert reduce(getattr, attribute.split("."), config) == value


def test_defaults() -> None:
    config = parse_config({"model": {"name": "m"}}, "f.yaml")
    assert config.model.inputs == config.model.outputs == ()
    assert config.quantization.calibration.sampling_sizes == (100,)
    assert config.quantization.calibration.dataset is None
    assert config.quantization.op_wise == {}
    assert config.quantization.model_wise.dtypes is None
    criterion = config.tuning.accuracy_criterion
    assert (criterion.kind, criterion.limit, criterion.higher_is_better) == ("relative", 0.01, True)
    assert (config.tuning.exit_policy.timeout_s, config.tuning.exit_policy.max_trials) == (0, 100)
    assert config.tuning.random_seed == 1978
    assert (config.evaluation.performance.warmup, config.evaluation.performance.iteration) == (5, -1)


def test_record_dataset(parse: Parse) -> None:
    dataloader = {
        "batch_size": 8,
        "last_batch": "rollover",
        "shuffle": False,
        "dataset": {"COCORecord": {"root": "shards/*.record", "num_cores": 2}},
        "transform": {"ParseDecodeCoco": None},
        "filter": None,
    }
    dataset = parse({"evaluation.accuracy.dataloader": dataloader}).evaluation.accuracy.dataset
    assert dataset is not None
    assert (dataset.batch_size, dataset.last_batch) == (8, "rollover")
    assert dataset.source == CocoRecord.model_construct(root=Path("/folder/shards/*.record"), num_cores=2)


def test_raw_dataset(parse: Parse) -> None:
    raw = {"root": "coco", "img_dir": "images"}
    dataset = parse({f"{CALIBRATION}.dataloader.dataset.COCORaw": raw}).quantization.calibration.dataset
    assert dataset is not None and isinstance(dataset.source, CocoRaw)
    assert dataset.source.images == Path("/folder/coco/images")
    assert dataset.source.annotations == Path("/folder/coco/annotations/instances_val2017.json")


def test_raw_dataset_given_by_its_annotations(parse: Parse) -> None:
    raw = {"root": "coco/instances.json"}
    dataset = parse({f"{CALIBRATION}.dataloader.dataset.COCORaw": raw}).quantization.calibration.dataset
    assert dataset is not None and isinstance(dataset.source, CocoRaw)
    assert dataset.source.root == Path("/folder/coco/instances.json")
    assert (dataset.source.images, dataset.source.annotations) == (None, None)


def test_a_config_cannot_be_changed(parse: Parse) -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse({}).tuning.random_seed = 1


STRATEGIES = "guided, basic, bayesian, exhaustive, mse, random, tpe"


@pytest.mark.parametrize(
    "key, written, message",
    [
        ("tuning.strategy.name", "tpee", f"got 'tpee'; expected one of {STRATEGIES} (did you mean 'tpe'?)"),
        ("tuning.strategy.name", "gided", f"got 'gided'; expected one of {STRATEGIES} (did you mean 'guided'?)"),
        ("tuning.objective", "speed", None),
        (
            "tuning.multi_objectives",
            {"objective": "performance, modelsize", "weight": 1},
            "weight: got 1 for 2 objectives; expected one for each",
        ),
        (
            "tuning.multi_objectives",
            {"objective": ["performance"], "higher_is_better": [True]},
            "higher_is_better: got [True]; expected true for accuracy and false for the others",
        ),
        ("tuning.confirm", 0.95, None),
        ("tuning.early_rejection_alpha", 0.5, None),
        ("tuning.strategy.name", 3, f"got 3; expected one of {STRATEGIES}"),
        ("tuning.strategy", "basic", "got 'basic'; expected a mapping with keys of name"),
        (
            "tuning.tensorbord",
            True,
            "unknown key with the value True; expected one of strategy, accuracy_criterion, objective, "
            "multi_objectives, early_rejection_alpha, confirm, exit_policy, random_seed, workspace "
            "(did you mean 'tensorboard'?)",
        ),
        (
            "quantization.recipes.scale_propagation",
            True,
            "unknown key with the value True; expected one of fast_bias_correction "
            "(did you mean 'scale_propagation_concat'?)",
        ),
        (
            f"{CALIBRATION}.dataloader.dataset.cocorecord",
            {},
            "unknown key with the value {}; expected one of COCORecord, COCORaw (did you mean 'COCORecord'?)",
        ),
        ("model.name", None, "missing, and required"),
        ("model.name", "", "got ''; expected a name"),
        ("model.name", 7, "got 7; expected text"),
        ("model.inputs", 7, "got 7; expected a name, or a list of names"),
        ("model.framework", "tensorflo", None),
        (f"{CALIBRATION}.sampling_size", 0, "got 0; expected whole numbers of at least 1, such as 100 or '50, 100'"),
        (
            f"{CALIBRATION}.sampling_size",
            True,
            "got True; expected whole numbers of at least 1, such as 100 or '50, 100'",
        ),
        (f"{CALIBRATION}.sampling_size", [], "got []; expected at least one value"),
        (f"{CALIBRATION}.q_dataloader", "loader", "got 'loader'; expected package.module:name"),
        (f"{CALIBRATION}.q_dataloader", "a.b:c()", "got 'a.b:c()'; expected package.module:name"),
        (f"{CALIBRATION}.dataloader.dataset", {}, "got none of them; expected exactly one of COCORecord, COCORaw"),
        (f"{CALIBRATION}.dataloader.dataset.COCORecord", {}, None),
        (f"{CALIBRATION}.dataloader.dataset.COCORecord.root", " ", "got ' '; expected a path"),
        ("tuning.accuracy_criterion.relative", 0, "got 0; expected a number above 0, such as 0.01 or '1%'"),
        ("tuning.accuracy_criterion.relative", "0%", "got '0%'; expected a number above 0, such as 0.01 or '1%'"),
        ("tuning.accuracy_criterion.relative", True, "got True; expected a number above 0, such as 0.01 or '1%'"),
        ("tuning.accuracy_criterion.relative", "one", "got 'one'; expected a number above 0, such as 0.01 or '1%'"),
        ("tuning.accuracy_criterion.relative", 1, "got 1.0; expected a share below 1, such as 0.01 or '1%'"),
        ("tuning.accuracy_criterion.absolute", -1, "got -1; expected a number above 0, such as 0.01 or '1%'"),
        ("tuning.accuracy_criterion.absolute", 10**400, None),
        (
            "tuning.accuracy_criterion",
            {"relative": 0.01, "absolute": 0.01},
            "got both relative and absolute; expected exactly one of them",
        ),
        ("tuning.accuracy_criterion.higher_is_better", "yes", "got 'yes'; expected true or false"),
        ("tuning.exit_policy.timeout", float("nan"), "got nan; expected a finite number"),
        ("tuning.exit_policy.timeout", "60", "got '60'; expected a number"),
        ("tuning.exit_policy.max_trials", True, "got True; expected a whole number"),
        ("tuning.random_seed", 2**32, "got 4294967296; expected a number of at most 4294967295"),
        ("tuning.tensorboard", 0, "got 0; TensorBoard dumps are not available in this version: use false"),
        ("quantization.model_wise.weight.dtype", ["int8", "int4"], None),
        ("quantization.op_wise", {"conv(": {}}, None),
        ("evaluation.performance.iteration", 0, "got 0; expected -1 or a whole number of at least 1"),
        ("version", "latest", "got 'latest'; expected a version such as 1.0"),
    ],
)
def test_wrong_settings(key: str, written: object, message: str | None, parse: Parse) -> None:
    with pytest.raises(ConfigError) as caught:
        parse({key: written})
    text = str(caught.value)
    assert text.startswith(f"f.yaml: {key}") and "\n" not in text
    assert message is None or f"{key}: {message}" in text or f"{key}.{message}" in text


def test_what_is_refused_is_not_suggested(parse: Parse) -> None:
    with pytest.raises(ConfigError, match=f"got 'sigop'; expected one of {STRATEGIES}$"):
        parse({"tuning.strategy.name": "sigop"})


@pytest.mark.parametrize(
    "settings, message",
    [
        (
            [1],
            "f.yaml: got [1]; expected a mapping with keys of model, device, quantization, tuning, evaluation, version",
        ),
        ("text", "f.yaml: got 'text'; expected a mapping with keys of "),
        (None, "f.yaml: model: missing, and required"),
        ({"model": {}}, "f.yaml: model.name: missing, and required"),
        ({"modle": {"name": "m"}}, "f.yaml: modle: unknown key with the value {'name': 'm'}; expected one of "),
        ({1: 2}, "f.yaml: 1: unknown key with the value 2; expected one of "),
        ({"model": {"name": 1, "inputs": 2}}, "; model.inputs: got 2; "),
        ({"model": {"a\nb": 1}}, r"f.yaml: model.a\nb: unknown key"),
    ],
)
def test_wrong_files(settings: object, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(settings, "f.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_only_the_first_problems_are_told(parse: Parse) -> None:
    with pytest.raises(ConfigError, match=r"quantization\.op_wise\.op4\.dtype: .*; and 15 more$"):
        parse({"quantization.op_wise": {f"op{i}": {"dtype": "int8"} for i in range(20)}})


@pytest.mark.parametrize(
    "settings, message",
    [
        (
            {"quantization.engine": "inc", "quantization.advance.weight_rounding": True},
            "quantization.engine: got inc and weight_rounding; expected lowering, which makes these corrections",
        ),
        (
            {f"{CALIBRATION}.dataloader.dataset": RECORD, f"{CALIBRATION}.q_dataloader": "a:b"},
            f"{CALIBRATION}: got both dataloader and q_dataloader; expected one of them",
        ),
        (
            {"evaluation.accuracy.metric.COCOmAP": {}, "evaluation.accuracy.eval_func": "a:b"},
            "evaluation.accuracy: got both metric and eval_func; expected one of them",
        ),
        (
            {f"{CALIBRATION}.dataloader": {"dataset": RECORD, "batch_size": 0, "last_batch": "drop"}},
            f"f.yaml: {CALIBRATION}.dataloader.batch_size: got 0; expected a number of at least 1; "
            f"{CALIBRATION}.dataloader.last_batch: got 'drop'; expected one of rollover",
        ),
        (
            {f"{CALIBRATION}.dataloader.dataset": {**RECORD, "COCORaw": {"root": "b"}}},
            "got both; expected exactly one of COCORecord, COCORaw",
        ),
        (
            {"quantization.op_wise": {"a": {"weight": {"dtype": "int8"}, "activation": {"dtype": ["fp32"]}}}},
            "quantization.op_wise.a: got weight.dtype and activation.dtype with nothing in common",
        ),
    ],
)
def test_several_settings(settings: dict[str, Any], message: str, parse: Parse) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(settings)
    assert message in str(caught.value)


def test_records_may_lie_at_an_address(parse: Parse) -> None:
    url = "https://me:secret@host/sets//val.record?sig=abc"
    config = parse({f"{CALIBRATION}.dataloader.dataset.COCORecord.root": url})
    dataset = config.quantization.calibration.dataset
    assert dataset is not None and dataset.source == CocoRecord.model_construct(root=Address(url), num_cores=28)
    # What files and reports are made of.
    written = config.model_dump_json() + pinned_yaml(config, PrecisionPlan({}), 1, ())
    assert "https://me:***@host/sets//val.record?sig=***" in written
    assert "secret" not in written and "abc" not in written


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (f"{CALIBRATION}.dataloader.dataset.COCORaw.root", "s3://b/coco", "got 's3://b/coco'; expected a local path: "),
        ("tuning.workspace.path", "gs://me:secret@b/w", "got 'gs://me:***@b/w'; expected a local path: "),
        (f"{CALIBRATION}.dataloader.dataset.COCORecord.root", "zip://*::s3://b/x", "zip://*::s3://b/x: is a chain"),
    ],
)
def test_an_address_of_anything_else_is_refused(parse: Parse, key: str, value: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse({key: value})
    assert str(error.value).startswith(f"f.yaml: {key}: {message}")
