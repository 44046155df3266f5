"""Which tensors are codes: how far they reach, and which channels meet."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tuner.quantization.lowering.convolutions import find_convolutions
from tuner.quantization.lowering.regions import Regions, find_regions, possible_sources

CHANNELS = 8


@pytest.fixture
def sketch(float_graph: Any) -> Any:
    return float_graph(channels=CHANNELS)


def regions_of(sketch: Any, kernels: str, *outputs: str) -> Regions:
    """The regions where the convolutions named in `kernels` are int8; everything has eight channels."""
    found, _ = find_convolutions(sketch.view(*outputs))
    chosen = {name: found[name] for name in kernels.split()}
    wanted = [convolution.input for convolution in chosen.values()]

    class Eight(dict[str, int]):
        def __missing__(self, tensor: str) -> int:
            return CHANNELS

    return find_regions(sketch.view(*outputs), wanted, chosen, Eight())


def test_from_kernel_to_kernel(sketch: Any) -> None:
    data = sketch.convolve(sketch.x, "a", out=8, activation="Relu")
    sketch.named(sketch.convolve(data, "b"), "out")
    regions = regions_of(sketch, "a b")
    assert {tensor: source.kernel for tensor, source in regions.sources.items()} == {"x": None, "a/activation": "a"}
    assert not regions.carriers
    assert regions.channels["x"].tolist() != regions.channels["a/activation"].tolist()
    assert len(regions.group) == 16
    assert len(set(regions.group.tolist())) == 2


def test_a_float_op_ends_a_region(sketch: Any) -> None:
    data = sketch.convolve(sketch.x, "a", out=8)
    with sketch.graph.as_default():
        data = tf.nn.sigmoid(data, name="sigmoid")
    sketch.named(sketch.convolve(data, "b"), "out")
    regions = regions_of(sketch, "a b")
    assert {tensor: source.kernel for tensor, source in regions.sources.items()} == {"x": None, "sigmoid": None}


def test_codes_pass_through_what_only_moves_them(sketch: Any) -> None:
    data = sketch.convolve(sketch.x, "a", out=8)
    with sketch.graph.as_default():
        data = tf.pad(tf.nn.max_pool2d(data, 2, 1, "SAME", name="pool"), [[0, 0], [1, 1], [1, 1], [0, 0]], name="pad")
    sketch.named(sketch.convolve(data, "b"), "out")
    regions = regions_of(sketch, "a b")
    assert set(regions.sources) == {"x", "a"}
    assert list(regions.carriers) == ["pool", "pad"]
    for tensor in ("pool", "pad"):
        np.testing.assert_array_equal(regions.channels[tensor], regions.channels["a"])


def test_what_no_kernel_makes_moves_in_float(sketch: Any) -> None:
    """To round behind a MaxPool, rather than in front of it, rounds fewer values."""
    with sketch.graph.as_default():
        data = tf.nn.max_pool2d(sketch.x, 2, 2, "SAME", name="pool")
    sketch.named(sketch.convolve(data, "b"), "out")
    regions = regions_of(sketch, "b")
    assert {tensor: source.kernel for tensor, source in regions.sources.items()} == {"pool": None}
    assert not regions.carriers


def test_branches_meet_in_one_type(sketch: Any) -> None:
    left, right = sketch.convolve(sketch.x, "left", out=8), sketch.convolve(sketch.x, "right", out=8)
    joined = sketch.concatenate([left, right]).op.name
    sketch.named(sketch.convolve(sketch.graph.get_tensor_by_name(f"{joined}:0"), "b"), "out")
    regions = regions_of(sketch, "left right b")
    assert regions.channels[joined].tolist() == [*regions.channels["left"], *regions.channels["right"]]
    assert len(set(regions.group[regions.channels[joined]].tolist())) == 1
    assert regions.group[regions.channels["x"]][0] != regions.group[regions.channels["left"]][0]


def test_a_float_branch_is_rounded_where_it_meets_codes(sketch: Any) -> None:
    left = sketch.convolve(sketch.x, "left", out=8)
    with sketch.graph.as_default():
        right = tf.nn.tanh(sketch.x, name="right")
        joined = tf.concat([left, right], -1, name="joined")
    sketch.named(sketch.convolve(joined, "b"), "out")
    regions = regions_of(sketch, "left b")
    assert {tensor: source.kernel for tensor, source in regions.sources.items()} == {
        "x": None,
        "left": "left",
        "right": None,
    }


def test_parts_of_a_split(sketch: Any) -> None:
    data = sketch.convolve(sketch.x, "a", out=8)
    with sketch.graph.as_default():
        first, second = tf.split(data, [3, 5], 3, name="split")
    sketch.named(sketch.convolve(first, "b"), "out")
    sketch.named(sketch.convolve(second, "c"), "also")
    regions = regions_of(sketch, "a b c", "out", "also")
    assert regions.channels["split"].tolist() == regions.channels["a"][:3].tolist()
    assert regions.channels["split:1"].tolist() == regions.channels["a"][3:].tolist()
    assert list(regions.carriers) == ["split"]


def test_carriers_are_in_the_order_of_data_flow(sketch: Any) -> None:
    data = sketch.convolve(sketch.x, "a", out=8)
    with sketch.graph.as_default():
        pooled = tf.nn.max_pool2d(data, 3, 1, "SAME", name="z_first")
        padded = tf.pad(pooled, [[0, 0], [1, 0], [1, 0], [0, 0]], name="a_second")
        joined = tf.concat([padded, padded], -1, name="b_third")
    sketch.named(sketch.convolve(joined, "reads_late"), "out")
    sketch.named(sketch.convolve(pooled, "reads_early"), "also")
    regions = regions_of(sketch, "a reads_early reads_late", "out", "also")
    assert list(regions.carriers) == ["z_first", "a_second", "b_third"]


def test_every_plan_finds_its_ranges(sketch: Any) -> None:
    """Whatever op is float, the sources of the rest are among those that were foreseen."""
    data = sketch.convolve(sketch.x, "a", out=8, activation="Relu")
    with sketch.graph.as_default():
        pooled = tf.nn.max_pool2d(data, 2, 1, "SAME", name="pool")
        joined = tf.concat([pooled, tf.nn.tanh(sketch.x, name="tanh")], -1, name="joined")
    sketch.named(sketch.convolve(joined, "b"), "out")
    sketch.named(sketch.convolve(data, "c", "DepthwiseConv2dNative"), "also")
    found, _ = find_convolutions(sketch.view("out", "also"))
    foreseen = possible_sources(sketch.view("out", "also"), found)
    assert list(foreseen) == sorted(set(foreseen))
    for kernels in ("a b c", "a b", "a c", "b c", "a", "b", "c"):
        assert set(regions_of(sketch, kernels, "out", "also").sources) <= set(foreseen)
