from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tuner.model.fold_batch_norm import fold_batch_norm
from tuner.model.graph_view import GraphView, node_name
from tuner.model.loading import load_model
from tuner.quantization.lowering.fold_channel_shuffles import SHUFFLES_PER_GATHER, fold_channel_shuffles

ROWS, COLUMNS, CHANNELS = 6, 4, 8
X = np.random.default_rng(7).normal(0, 1, (2, ROWS, COLUMNS, CHANNELS)).astype(np.float32)


def shuffle(data: tf.Tensor, groups: int = 2, *, rank: int = 5, name: str = "shuffle") -> tf.Tensor:
    """A channel shuffle, which ends in the node `name`."""
    _, rows, columns, channels = data.shape
    grouped = tf.reshape(data, [-1, *(rows, columns)[5 - rank :], groups, channels // groups][-rank:])
    *leading, before_last, last = range(rank)
    shuffled = tf.transpose(grouped, [*leading, last, before_last])
    return tf.reshape(shuffled, [-1, rows, columns, channels], name=name)


class Sketch:
    """What the tests draw on: `float_graph` with an input whose rows and columns are known."""

    def __init__(self, float_graph: Any, seed: int = 0) -> None:
        self.sketch = float_graph(CHANNELS, seed)
        self.count = 0
        with self.sketch.graph.as_default():
            self.x = tf.ensure_shape(self.sketch.x, [None, ROWS, COLUMNS, CHANNELS])

    def convolve(self, data: tf.Tensor, out: int, **options: Any) -> tf.Tensor:
        self.count += 1
        return self.sketch.convolve(data, f"conv_{self.count}", out=out, bias=True, activation="Relu", **options)

    def stage(self, data: tf.Tensor, blocks: int, groups: int = 2, width: int = 8) -> tf.Tensor:
        """ShuffleNet v2: shuffle, split, convolve one half and join it to the other, `blocks` times."""
        data = tf.concat([self.convolve(data, width), self.convolve(data, width)], -1)
        for _ in range(blocks):
            left, right = tf.split(shuffle(data, groups), 2, -1)
            data = tf.concat([left, self.convolve(self.convolve(right, width), width)], -1)
        return data

    def finish(self, **outputs: tf.Tensor) -> GraphView:
        for name, data in outputs.items():
            self.sketch.named(data, name)
        graph: GraphView = self.sketch.view(*outputs)
        return graph_of_outputs(graph)


def graph_of_outputs(graph: GraphView) -> GraphView:
    return graph.replace((), ())


def ops_of(graph: GraphView) -> Counter[str]:
    return Counter(node.op for node in graph.graph_def.node)


def assert_same_results(graph: GraphView, folded: GraphView, run: Callable[..., Any]) -> None:
    names = sorted(graph.outputs)
    for name, expected, found in zip(names, run(graph, X, *names), run(folded, X, *names), strict=True):
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max(), name


@pytest.fixture
def sketch(float_graph: Any) -> Sketch:
    return Sketch(float_graph)


@pytest.mark.parametrize("rank", [4, 5])
@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_stage_without_transposes(blocks: int, groups: int, rank: int, sketch: Sketch, run: Callable[..., Any]) -> None:
    with sketch.sketch.graph.as_default():
        data = sketch.stage(sketch.x, blocks, groups)
        graph = sketch.finish(out=sketch.convolve(shuffle(data, rank=rank), 4))
    folded = fold_channel_shuffles(graph)
    assert_same_results(graph, folded, run)
    ops = ops_of(folded)
    assert ops["Transpose"] == ops["GatherV2"] == ops["Split"] == ops["Reshape"] == 0
    assert ops["SplitV"] <= blocks + 2
    assert ops["ConcatV2"] <= blocks + 1
    for name, node in graph.nodes.items():
        if node.op in ("Conv2D", "BiasAdd", "Relu"):
            assert folded.nodes[name].op == node.op


CHANNELWISE: dict[str, Callable[[tf.Tensor, Sketch], tf.Tensor]] = {
    "bias": lambda data, sketch: tf.nn.bias_add(data, sketch.sketch.weights(16)),
    "leaky relu": lambda data, sketch: tf.nn.leaky_relu(data),
    "factor of each channel": lambda data, sketch: data * sketch.sketch.weights(16),
    "one factor": lambda data, sketch: 1.5 * data,
    "summand of each value": lambda data, sketch: sketch.sketch.weights(ROWS, COLUMNS, 16) + data,
    "factor of each row": lambda data, sketch: data * sketch.sketch.weights(ROWS, 1, 1),
    "SiLU": lambda data, sketch: data * tf.sigmoid(data),
    "hard-swish": lambda data, sketch: data * tf.nn.relu6(data + 3.0) / 6.0,
    "depthwise": lambda data, sketch: sketch.convolve(data, 16, op="DepthwiseConv2dNative", stride=2),
    "max pool": lambda data, sketch: tf.nn.max_pool2d(data, 3, 2, "SAME"),
    "average pool": lambda data, sketch: tf.nn.avg_pool2d(data, 3, 1, "SAME"),
    "pad": lambda data, sketch: tf.pad(data, [[0, 0], [1, 1], [0, 2], [0, 0]]),
    "mirror pad": lambda data, sketch: tf.pad(data, [[0, 0], [1, 1], [0, 2], [0, 0]], "REFLECT"),
    "nearest": lambda data, sketch: tf.compat.v1.image.resize_nearest_neighbor(data, [12, 8]),
    "bilinear": lambda data, sketch: tf.compat.v1.image.resize_bilinear(data, [9, 7]),
}


@pytest.mark.parametrize("name", CHANNELWISE)
def test_channelwise_op_after_a_shuffle(name: str, sketch: Sketch, run: Callable[..., Any]) -> None:
    with sketch.sketch.graph.as_default():
        data = CHANNELWISE[name](sketch.stage(sketch.x, 2), sketch)
        left, right = tf.split(shuffle(data, name="another"), 2, -1)
        graph = sketch.finish(out=sketch.convolve(left, 4), second=sketch.convolve(right, 4))
    folded = fold_channel_shuffles(graph)
    assert_same_results(graph, folded, run)
    assert ops_of(folded)["Transpose"] == ops_of(folded)["GatherV2"] == 0


MOVERS: dict[str, Callable[[tf.Tensor], list[tf.Tensor]]] = {
    "Split": lambda data: tf.split(data, 4, 3),
    "SplitV": lambda data: tf.split(data, [5, -1, 4], -1),
    "Slice": lambda data: [tf.slice(data, [0, 0, 0, 3], [-1, -1, -1, 6]), tf.slice(data, [0, 0, 0, 3], [-1] * 4)],
    "StridedSlice": lambda data: [data[:, :, :, 3:9], data[:, :, :, ::2]],
    "StridedSlice with ellipsis": lambda data: [data[..., 5:], data[..., :-2], data[..., 1::3]],
}


@pytest.mark.parametrize("name", MOVERS)
def test_parts_of_a_shuffled_tensor(name: str, sketch: Sketch, run: Callable[..., Any]) -> None:
    with sketch.sketch.graph.as_default():
        parts = MOVERS[name](shuffle(sketch.stage(sketch.x, 1)))
        graph = sketch.finish(**{f"out_{index}": sketch.convolve(part, 4) for index, part in enumerate(parts)})
    folded = fold_channel_shuffles(graph)
    assert_same_results(graph, folded, run)
    assert ops_of(folded)["Transpose"] == ops_of(folded)["GatherV2"] == 0


FIXED: dict[str, Callable[[tf.Tensor, Sketch], tf.Tensor]] = {
    "graph output": lambda data, sketch: data,
    "sum of two tensors": lambda data, sketch: data + sketch.convolve(sketch.x, 16),
    "grouped convolution": lambda data, sketch: sketch.convolve(data, 8, weights=sketch.sketch.weights(3, 3, 4, 8)),
    "depth multiplier": lambda data, sketch: sketch.convolve(
        data, 32, op="DepthwiseConv2dNative", weights=sketch.sketch.weights(3, 3, 16, 2)
    ),
    "weights that are computed": lambda data, sketch: sketch.convolve(
        data, 4, weights=tf.reduce_mean(sketch.x) * sketch.sketch.weights(3, 3, 16, 4)
    ),
    "reshape to heads": lambda data, sketch: tf.reshape(data, [-1, 4]),
    "pad of channels": lambda data, sketch: tf.pad(data, [[0, 0], [0, 0], [0, 0], [1, 0]]),
    "slice of rows": lambda data, sketch: data[:, 1:4, :, 3:],
    "joined twice": lambda data, sketch: tf.concat([data, data], -1),
}


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("blocks", [4, 5])
def test_original_order_where_it_matters(name: str, blocks: int, sketch: Sketch, run: Callable[..., Any]) -> None:
    with sketch.sketch.graph.as_default():
        data = sketch.stage(sketch.x, blocks)
        graph = sketch.finish(out=FIXED[name](data, sketch), second=sketch.convolve(data, 4))
    folded = fold_channel_shuffles(graph)
    assert_same_results(graph, folded, run)
    ops = ops_of(folded)
    # One gather takes as long as several shuffles.
    assert (ops["Transpose"], ops["GatherV2"]) == ((blocks, 0) if blocks <= SHUFFLES_PER_GATHER else (0, 1))


def one_shuffle(sketch: Sketch, **changes: Any) -> GraphView:
    data = sketch.convolve(sketch.x, 8)
    return sketch.finish(out=sketch.convolve(shuffle(data, **changes), 4))


def without_shuffle(sketch: Sketch) -> GraphView:
    return sketch.finish(out=sketch.convolve(tf.transpose(sketch.convolve(sketch.x, 4), [0, 2, 1, 3]), 4))


def unknown_rows(sketch: Sketch) -> GraphView:
    sketch.x = sketch.sketch.x
    data = sketch.convolve(sketch.x, 8)
    data = tf.reshape(tf.transpose(tf.reshape(data, [-1, 6, 4, 2, 4]), [0, 1, 2, 4, 3]), [-1, 6, 4, 8])
    return sketch.finish(out=sketch.convolve(data, 4))


def other_rows(sketch: Sketch) -> GraphView:
    data = tf.reshape(sketch.convolve(sketch.x, 8), [-1, 4, 6, 2, 4])
    data = tf.reshape(tf.transpose(data, [0, 1, 2, 4, 3]), [-1, 4, 6, 8])
    return sketch.finish(out=sketch.convolve(data, 4))


def rows_are_swapped(sketch: Sketch) -> GraphView:
    data = tf.reshape(sketch.convolve(sketch.x, 8), [-1, 6, 4, 2, 4])
    data = tf.reshape(tf.transpose(data, [0, 2, 1, 4, 3]), [-1, 6, 4, 8])
    return sketch.finish(out=sketch.convolve(data, 4))


def groups_of_pixels(sketch: Sketch) -> GraphView:
    data = tf.reshape(sketch.convolve(sketch.x, 8), [-1, 3, 4, 2, 8])
    data = tf.reshape(tf.transpose(data, [0, 1, 2, 4, 3]), [-1, 6, 4, 8])
    return sketch.finish(out=sketch.convolve(data, 4))


def inner_reader(sketch: Sketch) -> GraphView:
    data = tf.reshape(sketch.convolve(sketch.x, 8), [-1, 6, 4, 2, 4])
    shuffled = tf.reshape(tf.transpose(data, [0, 1, 2, 4, 3]), [-1, 6, 4, 8])
    return sketch.finish(out=sketch.convolve(shuffled, 4), second=data)


def shuffle_is_an_output(sketch: Sketch) -> GraphView:
    shuffle(sketch.convolve(sketch.x, 8), name="out")
    return graph_of_outputs(sketch.sketch.view("out"))


def shuffle_of_the_input(sketch: Sketch) -> GraphView:
    return sketch.finish(out=shuffle(sketch.x))


def waited_for(sketch: Sketch) -> GraphView:
    shuffled = shuffle(sketch.convolve(sketch.x, 8))
    with tf.control_dependencies([shuffled]):
        return sketch.finish(out=sketch.convolve(shuffled, 4))


def inside_a_loop(sketch: Sketch) -> GraphView:
    tf.compat.v1.disable_control_flow_v2()

    def body(step: tf.Tensor, data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return step + 1, sketch.convolve(shuffle(tf.ensure_shape(data, sketch.x.shape)), 8)

    data = tf.compat.v1.while_loop(lambda step, _: step < 2, body, [0, sketch.x])[1]
    return sketch.finish(out=data)


@pytest.mark.parametrize(
    "make",
    [
        without_shuffle,
        unknown_rows,
        other_rows,
        rows_are_swapped,
        groups_of_pixels,
        inner_reader,
        shuffle_is_an_output,
        shuffle_of_the_input,
        waited_for,
        inside_a_loop,
    ],
)
def test_left_alone(make: Callable[[Sketch], GraphView], sketch: Sketch) -> None:
    with sketch.sketch.graph.as_default():
        graph = make(sketch)
    assert fold_channel_shuffles(graph).graph_def == graph.graph_def


def test_other_networks_are_left_alone(sketch: Sketch, run: Callable[..., Any]) -> None:
    with sketch.sketch.graph.as_default():
        before = sketch.convolve(tf.concat(tf.split(sketch.convolve(sketch.x, 8), 2, -1)[::-1], -1), 8)
        graph = sketch.finish(out=sketch.convolve(shuffle(sketch.stage(before, 1)), 4))
    folded = fold_channel_shuffles(graph)
    assert_same_results(graph, folded, run)
    assert folded.nodes["conv_1"] == graph.nodes["conv_1"]
    assert folded.nodes["conv_2"] == graph.nodes["conv_2"]
    assert ops_of(folded)["Split"] == 1


@pytest.mark.parametrize("seed", range(20))
def test_random_graphs(seed: int, float_graph: Any, run: Callable[..., Any]) -> None:
    random, sketch = np.random.default_rng(seed), Sketch(float_graph, seed)
    with sketch.sketch.graph.as_default():
        tensors = [sketch.convolve(sketch.x, 8), sketch.convolve(sketch.x, 4)]
        for _ in range(20):
            data, other = tensors[-1 - random.integers(2)], tensors[random.integers(len(tensors))]
            channels = data.shape[-1]
            match random.integers(7):
                case 0 | 1 if channels + other.shape[-1] <= 40:
                    tensors.append(tf.concat([data, other], -1))
                case 2 | 3 if channels % 4 == 0:
                    tensors.append(shuffle(data, random.choice([2, 4])))
                case 4 if channels % 2 == 0:
                    tensors += tf.split(data, 2, -1)
                case 5:
                    tensors.append(data * tf.sigmoid(data) + sketch.sketch.weights(channels))
                case _:
                    tensors.append(sketch.convolve(data, 8))
        graph = sketch.finish(out=sketch.convolve(tensors[-1], 4), second=tensors[random.integers(len(tensors))])
    assert_same_results(graph, fold_channel_shuffles(graph), run)


def test_max_pool_of_a_part(sketch: Sketch, run: Callable[..., Any]) -> None:
    """Not Relu of a later output of a SplitV: TensorFlow itself would pool another output."""
    with sketch.sketch.graph.as_default():
        parts = tf.split(shuffle(sketch.convolve(sketch.x, 8)), 2, -1)
        outputs = [sketch.convolve(tf.nn.max_pool2d(tf.nn.relu(part), 3, 1, "SAME"), 4) for part in parts]
        graph = sketch.finish(out=outputs[0], second=outputs[1])
    folded = fold_channel_shuffles(graph)
    data = run(folded, X, "conv_1/activation")[0]
    assert ops_of(folded)["Transpose"] == 0
    assert ops_of(folded)["Slice"] == 1
    for half, channels in zip(("Relu", "Relu_1"), (data[..., :4], data[..., 4:]), strict=True):
        np.testing.assert_array_equal(run(folded, X, half)[0], channels)


@pytest.mark.parametrize("name", ["fastestdet", "yolo_fastestv2_bn", "nanodet_plus_m_320"])
def test_real_detectors(name: str, assets: Path) -> None:
    model = load_model(assets / f"detectors/{name}.pb")
    graph = fold_batch_norm(GraphView(model.graph_def, frozenset(map(node_name, model.outputs))))
    folded = fold_channel_shuffles(graph)
    assert not [node for node in folded.graph_def.node if node.op == "Transpose"]
    assert ops_of(folded)["GatherV2"] == ops_of(graph)["GatherV2"]
    heads = ["Postprocessor/raw_boxes:0", "Postprocessor/raw_scores:0"]
    for path in sorted((assets / "coco_val/images").iterdir())[:2]:
        image = tf.io.decode_jpeg(path.read_bytes(), 3).numpy()[None]
        results = []
        for each in (graph, folded):
            with tf.Graph().as_default() as imported:
                tf.import_graph_def(each.graph_def, name="")
                with tf.compat.v1.Session(graph=imported) as session:
                    results.append(session.run(heads, {model.inputs[0]: image}))
        for expected, found in zip(*results, strict=True):
            assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
