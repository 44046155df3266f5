import itertools
from typing import Any

import numpy as np
import pytest

from tuner.precision import INT8, Correction, Dtype, Granularity, OpPrecision, PrecisionPlan
from tuner.quantization.corrections.apply import apply_corrections
from tuner.quantization.lowering.convolutions import find_convolutions
from tuner.quantization.quantize import find_quantizable_ops, quantize
from tuner.quantization.ranges import collect_ranges

IMAGES = [np.random.default_rng(seed).normal(1, 1, (1, 10, 10, 8)).astype(np.float32) for seed in range(20)]
PER_TENSOR = OpPrecision(Dtype.INT8, Granularity.PER_TENSOR)
PLAN = PrecisionPlan(dict.fromkeys(["first", "middle", "last"], PER_TENSOR))


def test_none_wanted_is_the_model_as_it_is(uneven_chain: Any) -> None:
    model = uneven_chain().model()
    assert apply_corrections(model, PLAN, {}, IMAGES, ()) == (model, {})


@pytest.mark.parametrize(
    "wanted", [set(some) for count in (1, 2, 4) for some in itertools.combinations(Correction, count)]
)
def test_corrected_models_are_lowered_and_near_the_float_one(
    wanted: set[Correction], uneven_chain: Any, run: Any
) -> None:
    model = uneven_chain().model()
    ranges = collect_ranges(model, find_quantizable_ops(model).tensors, IMAGES)
    corrected, corrected_ranges = apply_corrections(model, PLAN, ranges, IMAGES, wanted)
    assert list(find_convolutions(corrected.graph)[0]) == ["first", "middle", "last"]

    int8 = quantize(corrected, PLAN, corrected_ranges)
    exact, rounded = (np.concatenate([run(one.graph, image)[0] for image in IMAGES]) for one in (model, int8))
    assert np.sum((rounded - exact) ** 2) < 0.002 * np.sum(exact**2)


def test_no_more_images_are_run_than_it_takes(uneven_chain: Any) -> None:
    model = uneven_chain().model()
    ranges = collect_ranges(model, find_quantizable_ops(model).tensors, IMAGES)
    biases = [
        find_convolutions(apply_corrections(model, PLAN, ranges, images, [Correction.BIAS])[0].graph)[0]["last"].bias
        for images in (IMAGES, IMAGES[:16], IMAGES[:15])
    ]
    assert np.array_equal(biases[0], biases[1])
    assert not np.array_equal(biases[0], biases[2])


def test_biases_are_corrected_towards_the_weights_before_rounding(uneven_chain: Any, run: Any) -> None:
    """Whatever rounding did to the means of the results is taken back as well."""
    model = uneven_chain().model()
    plan = PrecisionPlan({"last": INT8})
    ranges = collect_ranges(model, find_quantizable_ops(model).tensors, IMAGES)
    corrected, _ = apply_corrections(model, plan, ranges, IMAGES[:16], [Correction.ROUNDING, Correction.BIAS])
    int8 = quantize(corrected, plan, ranges)
    exact, rounded = (np.concatenate([run(one.graph, image)[0] for image in IMAGES[:16]]) for one in (model, int8))
    np.testing.assert_allclose(rounded.mean((0, 1, 2)), exact.mean((0, 1, 2)), atol=2e-4 * np.abs(exact).max())
