"""Settings and plans drawn from their own definitions: sound ones are read back, one broken field is named."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tuner.config import parse_config, pinned_yaml
from tuner.errors import ConfigError
from tuner.precision import Dtype, Granularity, OpPrecision, Output, PrecisionPlan, RangeAlgorithm, Scheme

NAMES = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1, max_size=20)
WORDS = st.from_regex(r"[a-z][a-z0-9_]{0,9}", fullmatch=True)
COUNTS = st.integers(1, 10**6)
# Each key of a settings file that takes one value: what it accepts, and what it does not.
NO_NUMBER = st.one_of(st.just("many"), st.just([[]]), st.just({"a": 1}), st.just(float("nan")))
FIELDS: dict[str, tuple[st.SearchStrategy[Any], st.SearchStrategy[Any]]] = {
    "model.name": (WORDS, st.one_of(st.integers(), st.just([]), st.just({}))),
    "model.inputs": (WORDS, st.one_of(st.integers(), st.just([1]), st.just({}))),
    "model.outputs": (st.lists(WORDS, min_size=1, max_size=4), st.one_of(st.integers(), st.just([None]))),
    "quantization.calibration.sampling_size": (COUNTS, st.one_of(NO_NUMBER, st.integers(max_value=0))),
    "tuning.accuracy_criterion.relative": (
        st.floats(1e-6, 0.9),
        st.one_of(NO_NUMBER, st.floats(max_value=0, allow_nan=False)),
    ),
    "tuning.exit_policy.max_trials": (COUNTS, st.one_of(NO_NUMBER, st.integers(max_value=-1))),
    "tuning.exit_policy.timeout": (st.integers(0, 10**6), st.one_of(NO_NUMBER, st.integers(max_value=-1))),
    "tuning.random_seed": (st.integers(0, 2**31), st.one_of(NO_NUMBER, st.integers(max_value=-1))),
    "evaluation.performance.warmup": (st.integers(0, 1000), st.one_of(NO_NUMBER, st.integers(max_value=-1))),
}
REQUIRED = "model.name"
PRECISIONS = st.one_of(
    st.sampled_from([OpPrecision(Dtype.FP32), OpPrecision(Dtype.BF16)]),
    st.builds(
        OpPrecision,
        st.just(Dtype.INT8),
        st.sampled_from(Granularity),
        st.sampled_from(RangeAlgorithm),
        st.sampled_from(Output),
        st.sampled_from(Scheme),
    ),
)
PLANS = st.dictionaries(NAMES, PRECISIONS, max_size=8).map(PrecisionPlan)


@st.composite
def sound_settings(draw: st.DrawFn) -> dict[str, Any]:
    """Some of the fields, with values that they accept."""
    keys = [REQUIRED, *draw(st.lists(st.sampled_from(sorted(FIELDS.keys() - {REQUIRED})), unique=True))]
    drawn: dict[str, Any] = {}
    for key in keys:
        put(drawn, key.split("."), draw(FIELDS[key][0]))
    return drawn


def put(into: dict[str, Any], keys: Sequence[str], value: object) -> None:
    for key in keys[:-1]:
        into = into.setdefault(key, {})
    into[keys[-1]] = value


@given(sound_settings())
@settings(max_examples=60, deadline=None)
def test_sound_settings_are_read_and_read_again(drawn: dict[str, Any]) -> None:
    config = parse_config(yaml.safe_load(yaml.safe_dump(drawn)), "f.yaml")
    dumped = config.model_dump(mode="json", by_alias=True, exclude_unset=True)
    assert parse_config(dumped, "again.yaml") == config


@given(sound_settings(), st.sampled_from(sorted(FIELDS)), st.data())
@settings(max_examples=120, deadline=None)
def test_one_broken_field_is_named_in_one_line(drawn: dict[str, Any], key: str, data: st.DataObject) -> None:
    put(drawn, key.split("."), data.draw(FIELDS[key][1]))
    with pytest.raises(ConfigError) as caught:
        parse_config(drawn, "f.yaml")
    text = str(caught.value)
    assert text.startswith(f"f.yaml: {key}") and "\n" not in text and len(text) < 600


@given(PLANS)
@settings(max_examples=60, deadline=None)
def test_a_plan_is_read_as_it_was_written(plan: PrecisionPlan) -> None:
    assert PrecisionPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


@given(st.dictionaries(WORDS, PRECISIONS, max_size=5).map(PrecisionPlan), COUNTS)
@settings(max_examples=40, deadline=None)
def test_a_pinned_plan_is_settings_of_one_choice(plan: PrecisionPlan, images: int) -> None:
    base = parse_config({"model": {"name": "m"}}, "f.yaml")
    pinned = parse_config(yaml.safe_load(pinned_yaml(base, plan, images, ())), "plan.yaml")
    assert pinned.quantization.op_wise.keys() == plan.keys()
    assert pinned.quantization.calibration.sampling_sizes == (images,)


@given(PLANS.filter(len), st.sampled_from(["dtype", "weight_granularity", "output", "bits"]), st.data())
@settings(max_examples=60, deadline=None)
def test_a_broken_decision_is_named(plan: PrecisionPlan, key: str, data: st.DataObject) -> None:
    written = {op: dict(decision) for op, decision in plan.to_json().items()}
    op = data.draw(st.sampled_from(sorted(written)))
    written[op][key] = data.draw(st.one_of(st.just("int9"), st.integers(), st.none(), st.just([]), st.just({})))
    with pytest.raises(ConfigError) as caught:
        PrecisionPlan.from_json(written, "plan")
    assert f"plan.{op}" in str(caught.value) and key in str(caught.value)
