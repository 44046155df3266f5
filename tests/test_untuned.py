"""Graphs made without tuning: a plan that is followed to the bit, a small file of weights, bf16."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tuner.cache import Cache
from tuner.config import TuningConfig, parse_config, pinned_yaml
from tuner.engine import calibrated_ranges, make_engine, search_space
from tuner.errors import ConfigError, ModelError
from tuner.model.detection_model import DetectionModel
from tuner.precision import FP32, Correction, Dtype, PrecisionPlan, RangeAlgorithm
from tuner.quantization.profit import ALONE
from tuner.quantization.quantize import find_quantizable_ops, prepare
from tuner.trial import Proposal
from tuner.untuned import quantize_to_bf16, quantize_to_eight_bits, read_calibration_images, store_weights

IMAGES = [np.random.default_rng(n).normal(0, 1, (1, 24, 24, 3)).astype(np.float32) for n in range(4)]


@pytest.fixture(scope="module")
def model(float_graph: Any) -> DetectionModel:
    sketch = float_graph(channels=3, size=(24, 24))
    y = sketch.convolve(sketch.x, "first", out=64, bias=True, activation="Relu")
    y = sketch.convolve(y, "second", out=128, bias=True, activation="Relu")
    y = sketch.convolve(y, "third", out=128, bias=True, activation="Relu6")
    sketch.named(sketch.batch_norm(sketch.convolve(y, "last", out=64), "norm").y, "out")
    made: DetectionModel = sketch.model()
    return made


def settings(**quantization: Any) -> TuningConfig:
    return parse_config({"model": {"name": "m"}, "quantization": quantization}, "f.yaml")


def test_every_op_that_gains_is_int8(model: DetectionModel) -> None:
    made = quantize_to_eight_bits(settings(calibration={"sampling_size": 3}), model, IMAGES)
    assert made.ops[Dtype.INT8] == 4
    assert made.notes == ("ranges from 3 images",)
    assert made.model.size_bytes < 0.35 * model.size_bytes


def test_rules_are_followed(model: DetectionModel) -> None:
    rule = {"second": {"activation": {"dtype": ["fp32"]}, "weight": {"dtype": ["fp32"]}}}
    made = quantize_to_eight_bits(settings(op_wise=rule), model, IMAGES)
    assert (made.ops[Dtype.INT8], made.ops[Dtype.FP32]) == (2, 2)
    # The rule leaves another one without a neighbour.
    assert made.left_in_float == {"first": ALONE}


@pytest.mark.parametrize("corrections", [(), (Correction.BIAS,)])
def test_a_plan_makes_the_same_graph_again(
    model: DetectionModel, tmp_path: Path, corrections: tuple[Correction, ...]
) -> None:
    """As a run ends: a plan of its own, written to plan.yaml with the settings."""
    config = settings(calibration={"sampling_size": [2, 4]})
    prepared = prepare(model)
    ops = find_quantizable_ops(prepared)
    ranges, _ = calibrated_ranges(Cache(tmp_path), prepared, ops, IMAGES, "")
    choices = search_space(config, model, ops, None, len(IMAGES)).choices
    decided = {op: allowed[-1 if op == "last" else 0] for op, allowed in choices.items()}
    decided["first"] = next(
        one for one in choices["first"] if one.activation_algorithm is RangeAlgorithm.KL and one.dtype is Dtype.INT8
    )
    plan = PrecisionPlan(decided)
    assert plan["last"] == FP32
    engine = make_engine(config, model, prepared, ops=ops, ranges=ranges, images=IMAGES)
    expected = engine.quantize(Proposal(plan, 2, corrections))

    written = yaml.safe_load(pinned_yaml(config, plan, 2, corrections))
    made = quantize_to_eight_bits(parse_config(written, "plan.yaml"), model, IMAGES[:2])

    assert made.model.sha256 == expected.sha256
    assert (made.ops[Dtype.INT8], made.ops[Dtype.FP32]) == (3, 1)


def test_calibration_without_a_source(model: DetectionModel) -> None:
    with pytest.raises(ConfigError, match=r"^quantization.calibration: no images: .* or --calibration_location$"):
        read_calibration_images(settings(), model)


def test_bf16(model: DetectionModel, run: Callable[..., Any]) -> None:
    made = quantize_to_bf16(model)
    assert (made.ops[Dtype.BF16], made.ops[Dtype.FP32]) == (3, 1)
    assert set(made.left_in_float) == {"first"}
    (expected,), (found,) = run(model.graph, IMAGES[0]), run(made.model.graph, IMAGES[0])
    assert 0 < np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


def test_weights(model: DetectionModel, run: Callable[..., Any]) -> None:
    made = store_weights(model)
    assert made.ops == {Dtype.FP32: 4}
    assert made.notes[0].endswith(" weights of 4 tensors in 8 bits, 0 tensors as they were")
    assert made.notes[1].startswith("largest error of a weight: 0.")
    assert made.model.size_bytes < 0.27 * model.size_bytes
    (expected,), (found,) = run(model.graph, IMAGES[0]), run(made.model.graph, IMAGES[0])
    # A step of 4 / 127 standard deviations: 0.9 % of noise in each of four convolutions.
    assert 0 < np.std(found - expected) < 0.03 * np.std(expected)


@pytest.mark.parametrize(("make", "fault"), [(quantize_to_bf16, "nothing can be bf16"), (store_weights, "no weights")])
def test_nothing_to_do(make: Callable[[DetectionModel], Any], fault: str, float_graph: Any) -> None:
    sketch = float_graph()
    sketch.named(sketch.x, "out")
    with pytest.raises(ModelError, match=f"^x.pb: {fault}"):
        make(sketch.model())
