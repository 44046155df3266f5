"""Settings and plans drawn from their own definitions: sound ones are read back, one broken field is named."""

import json
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.faults.bad_input.drawn_settings import TEXTS, WORDS, Place, allowed, places, required_of, sections, wrong
from tuner.config import TuningConfig, parse_config, pinned_yaml
from tuner.errors import ConfigError
from tuner.precision import Dtype, Granularity, OpPrecision, Output, PrecisionPlan, RangeAlgorithm, Scheme

NAMES = TEXTS.filter(len)
COUNTS = st.integers(1, 10**6)
PLACES = list(places())
OF_SECTIONS = [place for place in PLACES if place.section is not None]
# A rule of several fields makes some drawings useless.
PATIENT = [HealthCheck.filter_too_much, HealthCheck.too_slow, HealthCheck.data_too_large]
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


def test_every_field_has_a_place_and_values() -> None:
    names = list(map(str, PLACES))
    assert len(names) == len(set(names)) > 200
    assert {"model.name", "tuning.exit_policy.timeout", "quantization.op_wise", "tuning.tensorboard"} <= set(names)
    for place in PLACES:
        assert place.field is None or allowed(place.field).validate() is None
        assert wrong(place).validate() is None


@given(st.sampled_from(OF_SECTIONS), st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=PATIENT)
def test_a_sound_section_is_read_and_read_again(place: Place, data: st.DataObject) -> None:
    kind = place.section
    assert kind is not None
    drawn = put(data.draw(st.composite(required_of)(TuningConfig)), place, data.draw(sections(kind)), data)
    config = parse_config(yaml.safe_load(yaml.safe_dump(drawn, sort_keys=False)), "f.yaml")
    dumped = config.model_dump(mode="json", by_alias=True, exclude_unset=True)
    assert parse_config(dumped, "again.yaml") == config


@given(sections(), st.sampled_from(PLACES), st.data())
@settings(max_examples=200, deadline=None, suppress_health_check=PATIENT)
def test_one_broken_field_is_named_in_one_line(drawn: dict[str, Any], place: Place, data: st.DataObject) -> None:
    broken = put(drawn, place, data.draw(wrong(place)), data)
    with pytest.raises(ConfigError) as caught:
        parse_config(broken, "f.yaml")
    text = str(caught.value)
    assert text.startswith(f"f.yaml: {place}") and "\n" not in text and len(text) < 1500


def put(into: dict[str, Any], place: Place, value: object, data: st.DataObject) -> dict[str, Any]:
    """The settings with the value at its place; sections on the way there that are missing have what they need."""
    section = into
    for key, kind in zip(place.keys[:-1], place.sections[1:], strict=True):
        section = section.setdefault(key, data.draw(st.composite(required_of)(kind)))
    section[place.keys[-1]] = value
    return into


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
