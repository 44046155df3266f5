from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tuner.quantization.lowering.data_movement import find_carrier

tf1 = tf.compat.v1
ZEROS_AROUND = [[0, 0], [1, 1], [1, 1], [0, 0]]


def joined(x: tf.Tensor, axis: int) -> tf.Tensor:
    return tf.concat([x, x], axis)


def pooled(x: tf.Tensor, layout: str = "NHWC") -> tf.Tensor:
    return tf.raw_ops.MaxPool(input=x, ksize=[1, 2, 2, 1], strides=[1, 1, 1, 1], padding="SAME", data_format=layout)


@pytest.mark.parametrize(
    ("make", "positions"),
    [
        pytest.param(tf.identity, (0,), id="Identity"),
        pytest.param(pooled, (0,), id="MaxPool"),
        pytest.param(lambda x: tf.raw_ops.ResizeNearestNeighbor(images=x, size=[4, 4]), (0,), id="Resize"),
        pytest.param(lambda x: tf.pad(x, ZEROS_AROUND), (0,), id="Pad"),
        pytest.param(lambda x: tf.pad(x, ZEROS_AROUND, "REFLECT"), (0,), id="MirrorPad"),
        pytest.param(lambda x: tf.space_to_batch_nd(x, [2, 2], [[0, 0], [0, 0]]), (0,), id="SpaceToBatchND"),
        pytest.param(lambda x: tf.batch_to_space(x, [1, 1], [[0, 0], [0, 0]]), (0,), id="BatchToSpaceND"),
        pytest.param(lambda x: joined(x, 3), (0, 1), id="ConcatV2"),
        pytest.param(lambda x: joined(x, -1), (0, 1), id="ConcatV2 of the last axis"),
        pytest.param(lambda x: joined(x, 1), None, id="ConcatV2 of rows"),
        pytest.param(lambda x: joined(x[0], 2), (0, 1), id="ConcatV2 of the last of three axes"),
        pytest.param(lambda x: joined(x[:, tf.newaxis], 3), None, id="ConcatV2 of the fourth of five axes"),
        pytest.param(lambda x: tf.space_to_batch_nd(x, [1, 1, 2], [[0, 0]] * 3), None, id="SpaceToBatchND of channels"),
        pytest.param(lambda x: tf.pad(x, [[0, 0], [0, 0], [0, 0], [1, 0]]), None, id="Pad with channels"),
        pytest.param(lambda x: tf.pad(x, ZEROS_AROUND, constant_values=1.0), None, id="PadV2"),
        pytest.param(lambda x: tf.nn.avg_pool2d(x, 2, 1, "SAME"), None, id="AvgPool"),
        pytest.param(tf.nn.relu, None, id="Relu"),
        pytest.param(lambda x: tf.transpose(x, [0, 2, 1, 3]), None, id="Transpose"),
        pytest.param(lambda x: tf.raw_ops.ResizeBilinear(images=x, size=[4, 4]), None, id="ResizeBilinear"),
        pytest.param(lambda x: pooled(x, "NCHW"), None, id="MaxPool of another layout"),
    ],
)
def test_what_moves_codes(
    make: Callable[[tf.Tensor], tf.Tensor], positions: tuple[int, ...] | None, float_graph: Any
) -> None:
    sketch = float_graph()
    with sketch.graph.as_default():
        name = make(sketch.x).op.name
    carrier = find_carrier(sketch.view(name), name)
    if positions is None:
        assert carrier is None
    else:
        assert carrier is not None
        assert carrier.node.name == name
        assert (carrier.positions, carrier.sizes, carrier.outputs) == (positions, (), (name,))
        assert len(set(carrier.inputs)) == 1
        channels = np.arange(8)
        assert [part.tolist() for part in carrier.parts(channels)] == [channels.tolist()]


@pytest.mark.parametrize(
    ("make", "channels"),
    [
        pytest.param(lambda x: tf.slice(x, [0, 1, 1, 2], [-1, 2, 2, 3]), [2, 3, 4], id="Slice"),
        pytest.param(lambda x: tf.slice(x, [0, 1, 1, 2], [-1, 2, 2, -1]), [2, 3, 4, 5, 6, 7], id="Slice to the end"),
        pytest.param(lambda x: tf.slice(x, [0, 0, 0, 2], [-1, 2, 2, 0]), None, id="Slice of no channels"),
        pytest.param(lambda x: tf.slice(x, tf.shape(x) * 0, [-1, 2, 2, 3]), None, id="Slice from anywhere"),
        pytest.param(lambda x: x[:, ::2, 1:], list(range(8)), id="rows and columns"),
        pytest.param(lambda x: x[1:], list(range(8)), id="images"),
        pytest.param(lambda x: x[:, 1], list(range(8)), id="one row"),
        pytest.param(lambda x: x[:, tf.newaxis], list(range(8)), id="a new axis"),
        pytest.param(lambda x: x[..., 2:5], [2, 3, 4], id="channels"),
        pytest.param(lambda x: x[:, :, :, -3:], [5, 6, 7], id="the last channels"),
        pytest.param(lambda x: x[:, 0, ..., 6:1:-2], [6, 4, 2], id="channels backwards in steps"),
        pytest.param(lambda x: x[..., tf.newaxis, ::4], [0, 4], id="channels behind a new axis"),
        pytest.param(lambda x: x[:, :, :, :3, ...], [0, 1, 2], id="an ellipsis of nothing"),
        pytest.param(lambda x: x[..., 1:1], None, id="no channels"),
        pytest.param(lambda x: x[..., 2], None, id="one channel as an image without any"),
        pytest.param(lambda x: x[..., tf.newaxis], None, id="a new last axis"),
        pytest.param(lambda x: x[:, :, :, :3, tf.newaxis], None, id="a new last axis behind channels"),
        pytest.param(lambda x: x[:, :, :, : tf.shape(x)[1]], None, id="as many channels as rows"),
    ],
)
def test_slices(make: Callable[[tf.Tensor], tf.Tensor], channels: list[int] | None, float_graph: Any) -> None:
    assert_channels(float_graph(), make, channels)


@pytest.mark.parametrize(
    ("make", "repeats"),
    [
        pytest.param(lambda x: tf.reshape(x, [-1, 8]), 1, id="pixels in rows"),
        pytest.param(lambda x: tf.reshape(x, [-1, 2, 8, 8]), 1, id="other rows and columns"),
        pytest.param(lambda x: tf.reshape(x, tf.stack([tf.shape(x)[0], -1, 8])), 1, id="as many images"),
        pytest.param(lambda x: tf.reshape(x, [-1, 4 * 4 * 8]), 16, id="an image in a row"),
        pytest.param(lambda x: tf.reshape(x, [-1, 4, 16]), 2, id="two pixels in one"),
        pytest.param(lambda x: tf.reshape(x, [-1, 4, 4]), None, id="half the channels"),
        pytest.param(lambda x: tf.reshape(x, [-1, 4, 12]), None, id="one and a half times the channels"),
        pytest.param(lambda x: tf.reshape(x, tf.shape(x) * 1), None, id="who knows"),
        pytest.param(lambda x: tf.expand_dims(x, 1), 1, id="ExpandDims"),
        pytest.param(lambda x: tf.expand_dims(x, -1), None, id="ExpandDims behind the channels"),
        pytest.param(lambda x: tf.squeeze(x[:, :1], [1]), 1, id="Squeeze"),
        pytest.param(lambda x: tf.squeeze(x[..., :1], [3]), None, id="Squeeze of the channel"),
        pytest.param(lambda x: tf.nn.space_to_depth(x, 2), 4, id="SpaceToDepth"),
        pytest.param(lambda x: tf.nn.space_to_depth(x, 2, "NCHW"), None, id="SpaceToDepth of another layout"),
        pytest.param(lambda x: tf.nn.depth_to_space(x, 2), None, id="DepthToSpace"),
    ],
)
def test_reshapes(make: Callable[[tf.Tensor], tf.Tensor], repeats: int | None, float_graph: Any) -> None:
    assert_channels(float_graph(), make, None if repeats is None else [*range(8)] * repeats)


def assert_channels(sketch: Any, make: Callable[[tf.Tensor], tf.Tensor], channels: list[int] | None) -> None:
    """A carrier's channels are those that TensorFlow moves where each value is the number of its channel."""
    with sketch.graph.as_default():
        made = make(sketch.x)
    carrier = find_carrier(sketch.view(made.op.name), made.op.name)
    assert (carrier is not None) == (channels is not None)
    if carrier is not None:
        (part,) = carrier.parts(np.arange(8))
        assert part.tolist() == channels
        with tf1.Session(graph=sketch.graph) as session:
            moved = session.run(made, {sketch.x: np.broadcast_to(np.arange(8), (2, 4, 4, 8))})
        np.testing.assert_array_equal(moved, np.broadcast_to(part, moved.shape))


@pytest.mark.parametrize(
    ("sizes", "axis", "carries"), [([3, 5], 3, True), ([3, -1], 3, False), ([0, 8], 3, False), ([4, 4], 2, False)]
)
def test_split(sizes: list[int], axis: int, carries: bool, float_graph: Any) -> None:
    sketch = float_graph()
    with sketch.graph.as_default():
        tf.split(sketch.x, sizes, axis, name="split")
    carrier = find_carrier(sketch.view("split"), "split:1")
    assert (carrier is not None) == carries
    if carrier is not None:
        assert carrier.outputs == ("split", "split:1")
        assert [part.tolist() for part in carrier.parts(np.arange(8))] == [[0, 1, 2], [3, 4, 5, 6, 7]]


def test_what_waits_for_another_op_stays(float_graph: Any) -> None:
    sketch = float_graph()
    with sketch.graph.as_default(), sketch.graph.control_dependencies([tf.nn.relu(sketch.x, name="first")]):
        tf.identity(sketch.x, name="waits")
    assert find_carrier(sketch.view("waits"), "waits") is None


@pytest.mark.parametrize("tensor", ["x", "nowhere"])
def test_nothing_makes_it(tensor: str, float_graph: Any) -> None:
    assert find_carrier(float_graph().view("x"), tensor) is None
