from typing import Any

import numpy as np

from tuner.evidence.op_values import BINS, op_values
from tuner.precision import FP32, INT8, OpPrecision, PrecisionPlan, RangeAlgorithm
from tuner.quantization.quantize import find_quantizable_ops, prepare
from tuner.quantization.ranges import collect_ranges


def test_values_and_chosen_ranges_of_each_operator(float_graph: Any) -> None:
    made = float_graph(channels=4, size=(16, 16))
    first = made.convolve(made.x, "first", activation="Relu")
    made.named(made.convolve(first, "second", out=8), "out")
    prepared = prepare(made.model())
    images = [np.random.default_rng(index).normal(0, 1, (1, 16, 16, 4)).astype(np.float32) for index in range(3)]
    images[2][0, 0, 0, 0] = 50.0
    ranges = collect_ranges(prepared, find_quantizable_ops(prepared).tensors, images)
    clipped = OpPrecision(activation_algorithm=RangeAlgorithm.PERCENTILE)

    found = op_values(prepared, PrecisionPlan({"first": clipped, "second": FP32}), ranges)
    weights, read = found["first"]["weights"], found["first"]["input"]
    assert sum(weights["counts"]) == 3 * 3 * 4 * 12
    assert (len(read["counts"]), sum(read["counts"])) == (BINS, 3 * 16 * 16 * 4)
    assert read["high"] == 50.0
    assert 0 < read["chosen"][1] <= 50.0
    # In float nothing is cut; nor with an algorithm that goes from extreme to extreme.
    assert found["second"]["input"]["chosen"] == [found["second"]["input"][end] for end in ("low", "high")]
    whole = op_values(prepared, PrecisionPlan({"first": INT8, "second": INT8}), ranges)
    assert whole["first"]["input"]["chosen"][1] == 50.0
