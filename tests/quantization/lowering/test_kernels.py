"""Codes of the input, one by one."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tuner.model.graph_view import GraphView
from tuner.quantization.lowering.kernels import code_dtype, kernel_nodes, quantize_nodes
from tuner.quantization.lowering.scales import ActivationScale
from tuner.quantization.nodes import op_node


def codes_of(scale: ActivationScale, x: Any, float_graph: Any, run: Callable[..., Any]) -> Any:
    graph_def = float_graph(channels=x.shape[-1]).view("x").graph_def
    tensor, nodes = quantize_nodes("x", scale, "codes")
    graph_def.node.extend(nodes)
    assert tensor.dtype == code_dtype(scale)
    codes, low, high = run(GraphView(graph_def, frozenset({"codes"})), x, "codes")[0], *run_ranges(graph_def, x)
    assert (low, high) == ((0, peak_of(scale)) if scale.is_unsigned else (-peak_of(scale), peak_of(scale)))
    return codes.astype(np.int32)


def run_ranges(graph_def: Any, x: Any) -> tuple[float, float]:
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
        with tf.compat.v1.Session(graph=graph) as session:
            low, high = session.run(["codes:1", "codes:2"], {"x:0": x})
    return float(low), float(high)


def peak_of(scale: ActivationScale) -> float:
    return 1.0 if scale.peaks.ndim else float(scale.peaks)


@pytest.mark.parametrize(("is_unsigned", "span"), [(False, (-127, 127)), (True, (0, 255))])
@pytest.mark.parametrize("peak", [1e-4, 1.0, 6.0, 2550.0])
def test_every_code_is_exact(
    is_unsigned: bool, span: tuple[int, int], peak: float, float_graph: Any, run: Callable[..., Any]
) -> None:
    scale = ActivationScale(np.float32(peak), is_unsigned)
    lowest, highest = span
    wanted = np.arange(lowest, highest + 1)
    # A little off the middle of each code, on either side, and far beyond both ends.
    shifted = [wanted * float(scale.step) + shift * float(scale.step) for shift in (-0.45, 0.0, 0.45)]
    x = np.stack([*shifted, np.full(wanted.shape, -3 * peak), np.full(wanted.shape, 3 * peak)]).astype(np.float32)
    codes = codes_of(scale, x[np.newaxis, ..., np.newaxis], float_graph, run)[0, ..., 0]
    np.testing.assert_array_equal(codes[:3], [wanted] * 3)
    assert set(codes[3]) == {lowest}
    assert set(codes[4]) == {highest}


@pytest.mark.parametrize("is_unsigned", [False, True])
def test_each_channel_has_its_own_scale(is_unsigned: bool, float_graph: Any, run: Callable[..., Any]) -> None:
    scale = ActivationScale(np.array([0.01, 1, 100], np.float32), is_unsigned)
    shares = np.linspace(0 if is_unsigned else -1, 1, 41)
    x = (shares[:, np.newaxis] * scale.peaks).astype(np.float32)[np.newaxis, np.newaxis]
    codes = codes_of(scale, x, float_graph, run)[0, 0]
    expected = np.round(shares * scale.levels)
    # Half a step is a tie that float32 may round either way.
    certain = np.abs(np.abs(shares * scale.levels - expected) - 0.5) > 1e-3
    np.testing.assert_array_equal(codes[certain], np.repeat(expected[certain, np.newaxis], 3, axis=1))


def test_equal_weight_peaks_are_written_as_one_scale() -> None:
    convolution = op_node("Conv2D", "conv", ["x", "w"], strides=[1, 1, 1, 1], padding="SAME")
    data, _ = quantize_nodes("x", ActivationScale(np.float32(1), True), "codes")
    for peaks, sizes in (([0.5, 0.5], [1]), ([0.5, 0.25], [2])):
        nodes = kernel_nodes(
            convolution,
            data,
            np.zeros((1, 1, 1, 2), np.int8),
            np.array(peaks, np.float32),
            bias=None,
            name="kernel",
            relu=False,
            output=None,
        )
        (high,) = (node for node in nodes if node.name == "kernel/weights_high")
        assert [dimension.size for dimension in high.attr["value"].tensor.tensor_shape.dim] == sizes
