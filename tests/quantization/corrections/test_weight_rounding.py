import itertools
from typing import Any

import numpy as np
import pytest

from tuner.errors import QuantizationError
from tuner.precision import FP32, INT8, Dtype, Granularity, OpPrecision, PrecisionPlan
from tuner.quantization.corrections import weight_rounding
from tuner.quantization.corrections.weight_rounding import least_error_codes, round_weights
from tuner.quantization.lowering.codes import decide_codes
from tuner.quantization.lowering.convolutions import find_convolutions
from tuner.quantization.quantize import find_quantizable_ops
from tuner.quantization.ranges import collect_ranges

RANDOM = np.random.default_rng(7)
DEPTHWISE = "DepthwiseConv2dNative"


def correlated_images(count: int = 3) -> list[Any]:
    """Channels and neighbouring positions that say nearly the same: where rounding errors add up."""
    common = RANDOM.normal(1, 1, (count, 1, 10, 10, 1)).repeat(2, 2).repeat(2, 3)[:, :, :12, :12]
    return list((common + RANDOM.normal(0, 0.2, (count, 1, 12, 12, 8))).astype(np.float32))


IMAGES = correlated_images()


def random_problem(inputs: int, outputs: int = 3, groups: int = 2) -> tuple[Any, Any, Any]:
    vectors = RANDOM.normal(0.5, 1, (groups, 50, inputs))
    exact = RANDOM.uniform(-100, 100, (groups, inputs, outputs))
    return exact, RANDOM.uniform(0.5, 2, (groups, inputs, outputs)), vectors.transpose(0, 2, 1) @ vectors


def errors(codes: Any, exact: Any, steps: Any, moments: Any) -> Any:
    apart = (codes - exact) * steps
    return np.einsum("gio,gij,gjo->go", apart, moments, apart)


def test_codes_are_neighbours_that_no_single_change_makes_better() -> None:
    exact, steps, moments = random_problem(12)
    codes = least_error_codes(exact, steps, moments)
    assert np.all((codes == np.floor(exact)) | (codes == np.ceil(exact)))
    reached = errors(codes, exact, steps, moments)
    assert np.all(reached <= errors(np.rint(exact), exact, steps, moments))
    for index in range(12):
        other = codes.copy()
        other[:, index] = np.floor(exact[:, index]) + np.ceil(exact[:, index]) - codes[:, index]
        assert np.all(errors(other, exact, steps, moments) >= reached - 1e-9)


def test_near_the_best_of_all_choices() -> None:
    exact, steps, moments = random_problem(8, outputs=1, groups=20)
    best = np.min(
        [
            errors(np.floor(exact) + np.array(up)[:, np.newaxis], exact, steps, moments)
            for up in itertools.product((0, 1), repeat=8)
        ],
        axis=0,
    )
    reached = errors(least_error_codes(exact, steps, moments), exact, steps, moments)
    nearest = errors(np.rint(exact), exact, steps, moments)
    assert best.mean() <= reached.mean() < best.mean() + 0.5 * (nearest.mean() - best.mean())


def test_inputs_that_have_nothing_to_do_with_each_other_are_rounded_to_the_nearest() -> None:
    exact, steps, _ = random_problem(12)
    codes = least_error_codes(exact, steps, np.eye(12)[np.newaxis].repeat(2, 0))
    np.testing.assert_array_equal(codes, np.rint(exact))


@pytest.mark.parametrize("value", [127, 126.9, 126.5, -126.9, -127])
def test_the_highest_codes_stay(value: float) -> None:
    _, _, moments = random_problem(12)
    exact = np.full((2, 12, 3), value)
    codes = least_error_codes(exact, np.ones(1), moments * np.sign(value))
    assert np.abs(codes).max() <= 127
    if abs(value) > 126.5:
        np.testing.assert_array_equal(codes, np.rint(exact))


CASES: dict[str, dict[str, Any]] = {
    "3x3": {},
    "1x1": {"weights": (1, 1, 8, 16)},
    "depthwise": {"op": DEPTHWISE},
    "strided": {"stride": 2},
    "dilated": {"dilation": 2, "padding": "VALID"},
    "padded": {"padding": [[0, 0], [1, 2], [2, 1], [0, 0]]},
    "grouped": {"weights": (3, 3, 4, 10)},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("granularity", Granularity)
def test_weights_lie_on_their_codes_and_disturb_results_less(
    case: str, granularity: Granularity, float_graph: Any, run: Any
) -> None:
    sketch = float_graph()
    arguments = dict(CASES[case])
    if "weights" in arguments:
        arguments["weights"] = sketch.weights(*arguments["weights"])
    sketch.named(sketch.convolve(sketch.x, "conv", bias=True, **arguments), "out")
    model = sketch.model()
    plan = PrecisionPlan({"conv": OpPrecision(Dtype.INT8, granularity)})
    ranges = collect_ranges(model, find_quantizable_ops(model).tensors, IMAGES)
    rounded = round_weights(model, plan, ranges, IMAGES)

    before, after = (decide_codes(one.graph, plan, ranges).kernels["conv"] for one in (model, rounded))
    moved = np.abs(after.weights.astype(int) - before.weights)
    assert moved.max() == 1
    np.testing.assert_allclose(after.weight_peaks, before.weight_peaks, rtol=1e-6)

    def disturbance(weights: Any) -> float:
        """Of float inputs, by these weights."""
        changed = float_graph()
        changed.named(changed.convolve(changed.x, "conv", **{**arguments, "weights": weights}), "out")
        return float(sum(np.sum(run(changed.view(), image)[0] ** 2) for image in IMAGES))

    exact, found = (find_convolutions(one.graph)[0]["conv"].weights for one in (model, rounded))
    steps = np.abs(found[after.weights != 0] / after.weights[after.weights != 0]).max()
    assert np.abs(found - exact).max() <= 1.01 * steps
    nearest = found - (after.weights.astype(int) - before.weights) * _step_of(after, found)
    assert disturbance(found - exact) < 0.7 * disturbance((nearest - exact).astype(np.float32))


def _step_of(kernel: Any, weights: Any) -> Any:
    """The value of one code of each weight: where a code is 0, that of another weight with the same two channels."""
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.where(kernel.weights != 0, weights / kernel.weights, np.nan)
    return np.nanmedian(steps, axis=(0, 1, 2) if not kernel.convolution.is_depthwise else (0, 1), keepdims=True)


def test_what_stays_float_or_is_too_large_stays(float_graph: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sketch = float_graph()
    data = sketch.convolve(sketch.x, "in_float")
    data = sketch.convolve(data, "large")
    sketch.named(sketch.convolve(data, "rounded", weights=sketch.weights(1, 1, 12, 4)), "out")
    model = sketch.model()
    monkeypatch.setattr(weight_rounding, "MOST_INPUTS", 20)
    plan = PrecisionPlan({"in_float": FP32, "large": INT8, "rounded": INT8})
    ranges = collect_ranges(model, find_quantizable_ops(model).tensors, IMAGES)
    found, _ = find_convolutions(round_weights(model, plan, ranges, IMAGES).graph)
    for name, exact in find_convolutions(model.graph)[0].items():
        assert np.array_equal(found[name].weights, exact.weights) == (name != "rounded"), name


def test_shared_weights_stay_shared(float_graph: Any) -> None:
    sketch = float_graph()
    weights = sketch.weights(3, 3, 8, 8)
    data = sketch.convolve(sketch.x, "first", weights=weights)
    sketch.named(sketch.convolve(sketch.convolve(data, "second", weights=weights), "last"), "out")
    model = sketch.model()
    plan = PrecisionPlan(dict.fromkeys(["first", "second", "last"], INT8))
    ranges = collect_ranges(model, find_quantizable_ops(model).tensors, IMAGES)
    found, _ = find_convolutions(round_weights(model, plan, ranges, IMAGES).graph)
    assert np.array_equal(found["first"].weights, weights) and np.array_equal(found["second"].weights, weights)
    assert not np.array_equal(found["last"].weights, find_convolutions(model.graph)[0]["last"].weights)


def test_no_images(float_graph: Any) -> None:
    sketch = float_graph()
    sketch.named(sketch.convolve(sketch.x, "conv"), "out")
    model = sketch.model()
    ranges = collect_ranges(model, find_quantizable_ops(model).tensors, IMAGES)
    with pytest.raises(QuantizationError, match=r"^no calibration images: at least one is needed to round weights$"):
        round_weights(model, PrecisionPlan({"conv": INT8}), ranges, [])
