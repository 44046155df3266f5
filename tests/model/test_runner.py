"""A model in a session: what goes in, what comes out, and what is said when it does not."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from tuner.detections import Reading, View
from tuner.errors import EvaluationError, ModelError
from tuner.model.detection_model import DetectionModel, ModelFormat
from tuner.model.loading import load_model
from tuner.model.runner import ModelRunner, grey_image

tf1 = tf.compat.v1


def model_of(make: Callable[[], Any], inputs: tuple[str, ...] = ("image:0",)) -> DetectionModel:
    """The graph that `make` builds; its outputs are the tensors that `make` returns."""
    with tf.Graph().as_default() as graph:
        outputs = tuple(tensor.name for tensor in make())
    return DetectionModel(graph.as_graph_def(), inputs, outputs, Path("built.pb"), ModelFormat.FROZEN_GRAPH)


def detector(boxes: tuple[int, ...] = (1, 5, 4), count: float = 3.0) -> DetectionModel:
    def make() -> list[tf.Tensor]:
        tf1.placeholder(tf.uint8, [1, None, None, 3], name="image")
        return [
            tf.constant(np.linspace(0, 1, int(np.prod(boxes))).reshape(boxes), tf.float64, name="detection_boxes"),
            tf.constant([[0.9, 0.8, 0.7, 0.0, 0.0]], name="detection_scores"),
            tf.constant([[1.0, 90.0, 2.9999998, 0.0, 0.0]], name="detection_classes"),
            tf.constant([count], name="num_detections"),
        ]

    return model_of(make)


def test_detect_cuts_to_the_number_and_drops_the_batch() -> None:
    with ModelRunner(detector()) as runner:
        found = runner.detect(np.zeros((4, 4, 3), np.uint8))
    assert (found.boxes.shape, found.boxes.dtype, found.category_ids.dtype) == ((3, 4), np.float32, np.int64)
    assert found.category_ids.tolist() == [1, 90, 3]
    np.testing.assert_allclose(found.scores, [0.9, 0.8, 0.7])


def test_threads_that_ran_a_graph_end_with_it() -> None:
    """What kernels keep in a thread must not meet another graph."""

    def threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    image = np.zeros((4, 4, 3), np.uint8)
    with ModelRunner(detector(), 2, 2) as runner:
        runner.detect(image)
    before = threads()
    with ModelRunner(detector(), 2, 7) as runner:
        runner.detect(image)
        assert threads() >= before + 7
    assert threads() < before + 7


@pytest.mark.parametrize(("count", "length"), [(0.0, 0), (5.0, 5), (9.0, 5)])
def test_number_of_detections(count: float, length: int) -> None:
    with ModelRunner(detector(count=count)) as runner:
        assert len(runner.detect(np.zeros((4, 4, 3), np.uint8))) == length


def test_detection_outputs_of_another_shape() -> None:
    with ModelRunner(detector(boxes=(5, 4))) as runner, pytest.raises(ModelError, match=r"shapes \(5, 4\), \(1, 5\)"):
        runner.detect(np.zeros((4, 4, 3), np.uint8))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("detection_boxes", tf.zeros([1, 5, 4], tf.complex64)),
        ("detection_scores", tf.ones([1, 5], tf.bool)),
        ("detection_classes", [["x"] * 5]),
        ("num_detections", ["x"]),
    ],
)
def test_detection_outputs_that_are_no_numbers(name: str, values: Any) -> None:
    model = detector()
    proto = tf.make_tensor_proto(values.numpy() if isinstance(values, tf.Tensor) else values)
    for node in model.graph_def.node:
        if node.name == name:
            node.attr["value"].tensor.CopyFrom(proto)
            node.attr["dtype"].type = proto.dtype
    with ModelRunner(model) as runner, pytest.raises(ModelError, match=rf"{name} holds \w+, not numbers"):
        runner.detect(np.zeros((4, 4, 3), np.uint8))


def test_no_detection_outputs(frozen: tuple[Path, Any]) -> None:
    model = load_model(frozen[0], (), ["detection_scores"])
    with ModelRunner(model) as runner, pytest.raises(ModelError) as caught:
        runner.detect(np.zeros((4, 4, 3), np.uint8))
    assert "no detection outputs: found detection_scores:0; need detection_boxes" in str(caught.value)


@pytest.mark.parametrize("dtype", [tf.uint8, tf.float32, tf.float16, tf.int32])
def test_images_are_cast_to_the_input(dtype: tf.DType) -> None:
    model = model_of(lambda: [tf.identity(tf1.placeholder(dtype, [None, None, None, 3], name="image"), "out")])
    images = np.arange(2 * 2 * 2 * 3, dtype=np.uint8).reshape(2, 2, 2, 3)
    with ModelRunner(model, intra_op_threads=1, inter_op_threads=1) as runner:
        found = runner.run(images)["out:0"]
    assert found.dtype == dtype.as_numpy_dtype
    np.testing.assert_array_equal(found, images)


@pytest.mark.parametrize("shape", [(1, 5, 8, 3), (2, 8, 8, 3), (1, 8, 8, 1), (8, 8, 3)])
def test_an_image_that_does_not_fit(shape: tuple[int, ...]) -> None:
    model = model_of(lambda: [tf.identity(tf1.placeholder(tf.uint8, [1, 8, 8, 3], name="image"), "out")])
    with ModelRunner(model) as runner, pytest.raises(ModelError) as caught:
        runner.run(np.zeros(shape, np.uint8))
    assert str(caught.value) == (
        f"built.pb: input image:0 takes the shape (1, 8, 8, 3); an image batch of {shape} cannot be fed"
    )


def test_an_input_of_strings() -> None:
    model = model_of(lambda: [tf.identity(tf1.placeholder(tf.string, None, name="image"), "out")])
    with ModelRunner(model) as runner, pytest.raises(ModelError, match="takes string"):
        runner.run(np.zeros((1, 2, 2, 3), np.uint8))


def test_two_inputs() -> None:
    with pytest.raises(ModelError, match="needs one image input, has 2: a:0, b:0"):
        ModelRunner(model_of(list, ("a:0", "b:0")))


def test_a_graph_that_fails_while_running() -> None:
    def make() -> list[tf.Tensor]:
        image = tf1.placeholder(tf.uint8, None, name="image")
        return [tf.reshape(image, [7], name="out")]

    with ModelRunner(model_of(make)) as runner, pytest.raises(ModelError) as caught:
        runner.run(np.zeros((1, 2, 2, 3), np.uint8))
    message = str(caught.value)
    assert message.startswith("built.pb: failed while running: Input to reshape is a tensor with 12 values")
    assert "\n" not in message


def test_fetch_reads_any_tensor(frozen: tuple[Path, Any], images: NDArray[np.uint8]) -> None:
    with ModelRunner(load_model(frozen[0])) as runner:
        first, scores = runner.fetch(["net/first_conv:0", "detection_scores:0"], images)
        assert first.shape == (1, 6, 6, 8)
        # Not bit for bit: a tensor that is fetched cannot be fused away.
        np.testing.assert_allclose(scores, runner.run(images)["detection_scores:0"], rtol=1e-5)
        with pytest.raises(ModelError, match="absent"):
            runner.fetch(["absent:0"], images)


def test_a_trace_tells_the_times_of_the_nodes_of_the_graph_that_ran(
    frozen: tuple[Path, Any], images: NDArray[np.uint8]
) -> None:
    with ModelRunner(load_model(frozen[0]), keeps_graphs=True) as runner:
        with_graphs, without = runner.trace(images, graphs=True), runner.trace(images)
        with pytest.raises(ModelError, match="cannot be fed"):
            runner.trace(images[0])
        assert runner.xla_clusters(images) == 0
    ran = {node.name for graph in with_graphs.partition_graphs for node in graph.node}
    timed = {node.node_name for device in with_graphs.step_stats.dev_stats for node in device.node_stats}
    assert timed - ran <= {"_SOURCE"} and len(timed) > 5
    assert len(without.step_stats.dev_stats) > 0 and len(without.partition_graphs) == 0


@pytest.mark.parametrize(
    ("shape", "expected"),
    [([None, None, None, 3], (480, 640, 3)), ([1, 8, 6, 1], (8, 6, 1)), ([1, None, 9, None], (480, 9, 3)), (None, 0)],
)
def test_the_grey_image_and_the_shape_of_the_input(shape: Any, expected: Any) -> None:
    model = model_of(lambda: [tf.identity(tf1.placeholder(tf.uint8, shape, name="image"), "out")])
    image = grey_image(model)
    assert image.shape == (expected or (480, 640, 3))
    assert np.unique(image).tolist() == [127]
    with ModelRunner(model) as runner:
        assert runner.input_shape == tuple(shape or ())
        assert runner.run(image[np.newaxis])["out:0"].shape == (1, *image.shape)


def test_the_same_image_gives_the_same_bits(frozen: tuple[Path, Any], images: NDArray[np.uint8]) -> None:
    with ModelRunner(load_model(frozen[0])) as one, ModelRunner(load_model(frozen[0])) as other:
        results = [runner.detect(images[0]) for runner in (one, one, other)]
    for found in results:
        np.testing.assert_array_equal(found.boxes, results[0].boxes)


def test_hash_and_size_follow_the_graph(frozen: tuple[Path, Any]) -> None:
    model = load_model(frozen[0])
    changed = tf1.GraphDef()
    changed.CopyFrom(model.graph_def)
    changed.node[-1].attr["_note"].s = b"x"
    other = model.with_graph(changed)
    assert other.sha256 != model.sha256
    assert other.size_bytes > model.size_bytes
    assert (other.inputs, other.outputs, other.source) == (model.inputs, model.outputs, model.source)


def fixed_detector(dtype: tf.DType, shape: tuple[int, ...], box: list[float], *, masks: bool = False) -> DetectionModel:
    """Finds one object of the class 5, there, in any image of the shape."""

    def make() -> list[tf.Tensor]:
        tf1.placeholder(dtype, [1, *shape], name="image")
        outputs = [
            tf.constant([[box]], tf.float32, name="detection_boxes"),
            tf.constant([[0.9]], name="detection_scores"),
            tf.constant([[5.0]], name="detection_classes"),
            tf.constant([1.0], name="num_detections"),
        ]
        return [*outputs, tf.ones([1, 1, 4, 4], name="detection_masks")] if masks else outputs

    return model_of(make)


# A picture of 100 x 100 with 20 rows of padding above and below an image of 120 x 200 pixels.
LETTERBOX = View(120, 200, 100, 100, (-1 / 3, 0, 4 / 3, 1))


@pytest.mark.parametrize(
    ("dtype", "shape", "in_pixels"), [(tf.uint8, (100, 100, 3), False), (tf.float32, (3, 100, 100), True)]
)
def test_boxes_come_back_to_the_image(dtype: tf.DType, shape: tuple[int, ...], in_pixels: bool) -> None:
    box = np.array([0.1, 0.25, 0.5, 0.75]) * (100 if in_pixels else 1)
    model = fixed_detector(dtype, shape, box.tolist())
    reading = Reading({5: 90}, "test", boxes_in_pixels=in_pixels)
    with ModelRunner(replace(model, reading=reading)) as runner:
        found = runner.detect(np.zeros(shape, dtype.as_numpy_dtype), view=LETTERBOX)
    # The upper side lies in the padding; the lower one in the middle.
    np.testing.assert_allclose(found.boxes, [[0, 0.25, 0.5, 0.75]], atol=1e-6)
    assert (found.boxes.dtype, found.category_ids.tolist()) == (np.float32, [90])


def test_masks_come_back_to_the_image() -> None:
    model = fixed_detector(tf.uint8, (100, 100, 3), [0.1, 0.25, 0.5, 0.75], masks=True)
    with ModelRunner(model) as runner:
        found = runner.detect(np.zeros((100, 100, 3), np.uint8), view=LETTERBOX, masks=True)
    assert found.masks is not None
    assert (found.masks.height, found.masks.width) == (120, 200)
    # Rows 0 to 59.5 of 120, columns 49.75 to 149.25: corners of the image are centres of pixels.
    assert found.masks.areas_px.tolist() == [60 * 100]


def test_a_class_that_is_not_in_the_table() -> None:
    model = replace(fixed_detector(tf.uint8, (8, 8, 3), [0, 0, 1, 1]), reading=Reading({1: 1, 4: 7}, "mine.yaml"))
    with (
        ModelRunner(model) as runner,
        pytest.raises(EvaluationError, match=r"the class 5, and mine.yaml knows 1 to 4$"),
    ):
        runner.detect(np.zeros((8, 8, 3), np.uint8))


def test_what_is_read_stays_with_the_detector() -> None:
    model = replace(detector(), reading=Reading({1: 2}, "test"))
    assert model.with_graph(model.graph_def).reading is model.reading


def test_a_run_gives_the_bits_that_a_session_as_shipped_gives() -> None:
    """Of a trained detector, whose graph optimisers have something to do."""
    model = load_model(Path(__file__).parents[2] / "datasets" / "shapes" / "detector.pb", (), ())
    image = np.random.default_rng(0).integers(0, 256, (1, 240, 320, 3), np.uint8)
    with ModelRunner(model, 1, 1) as runner:
        found = runner.run(image)
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(model.graph_def, name="")
        config = tf1.ConfigProto(intra_op_parallelism_threads=1, inter_op_parallelism_threads=1)
        with tf1.Session(graph=graph, config=config) as session:
            expected = session.run(list(model.outputs), {model.inputs[0]: image})
    for name, values in zip(model.outputs, expected, strict=True):
        np.testing.assert_array_equal(found[name], values, strict=True)
