from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tuner.quantization.corrections.outlier_channels import split_outlier_channels
from tuner.quantization.lowering.convolutions import find_convolutions

IMAGES = np.random.default_rng(3).normal(0, 1, (4, 9, 9, 8)).astype(np.float32)
TENSORS = ["x", "first/activation", "middle/activation"]


@pytest.mark.parametrize("share", [0.02, 0.5, 2.0])
def test_results_stay_and_ranges_are_those_of_the_new_graph(
    share: float, uneven_chain: Any, run: Any, observe: Any
) -> None:
    graph = uneven_chain().view()
    ranges = observe(graph, IMAGES, TENSORS)
    split, split_ranges = split_outlier_channels(graph, ranges, share)
    expected = run(graph, IMAGES)[0]
    np.testing.assert_allclose(run(split, IMAGES)[0], expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    for tensor, observed in observe(split, IMAGES, TENSORS).items():
        np.testing.assert_allclose(split_ranges[tensor].highs, observed.highs, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(split_ranges[tensor].lows, observed.lows, rtol=1e-4, atol=1e-5)
    assert split_ranges["x"] is ranges["x"]
    assert split_ranges["first/activation"].channels == 12 + np.ceil(share * 12)


def test_the_largest_channels_are_split_first(uneven_chain: Any, observe: Any) -> None:
    graph = uneven_chain().view()
    ranges = observe(graph, IMAGES, TENSORS)
    ranges = {**ranges, "first/activation": replace(ranges["first/activation"], shape=(4, 9, 9, 12))}
    peaks = np.sort(ranges["first/activation"].highs.max(0))
    split = split_outlier_channels(graph, ranges, 1 / 12)[1]["first/activation"]
    np.testing.assert_allclose(np.sort(split.highs.max(0)), np.sort([*peaks[:-1], peaks[-1] / 2, peaks[-1] / 2]))
    assert split.shape == (4, 9, 9, 13)


@pytest.mark.parametrize(("middle", "activation"), [("DepthwiseConv2dNative", "Relu"), ("Conv2D", "Relu6")])
def test_left_alone(middle: str, activation: str, uneven_chain: Any, observe: Any) -> None:
    graph = uneven_chain(middle, activation).view()
    ranges = observe(graph, IMAGES, TENSORS)
    split, split_ranges = split_outlier_channels(graph, ranges)
    assert list(split.graph_def.node) == list(graph.graph_def.node)
    assert split_ranges == ranges


def test_a_result_without_a_range_is_left_alone(uneven_chain: Any) -> None:
    graph = uneven_chain().view()
    assert list(split_outlier_channels(graph, {})[0].graph_def.node) == list(graph.graph_def.node)


def test_ops_keep_their_names(uneven_chain: Any, observe: Any) -> None:
    graph = uneven_chain().view()
    split, _ = split_outlier_channels(graph, observe(graph, IMAGES, TENSORS))
    found, refused = find_convolutions(split)
    assert (list(found), refused) == (["first", "middle", "last"], {})
