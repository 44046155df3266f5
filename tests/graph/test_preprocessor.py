"""Images resized as a batch against images resized in a loop."""

from collections.abc import Callable

import numpy as np
import pytest

from tests.graph.conftest import Nms, resized, tf1, tf1_graph, view
from tuner.graph.map_loop import NotRecognisedError, find_map_loops
from tuner.graph.preprocessor import batch_preprocessor
from tuner.model.graph_view import GraphView


def graph_of(resize: str) -> GraphView:
    with tf1_graph() as graph:
        image = tf1.placeholder("float32", [None, None, None, 3], name="image")
        names = [tensor.op.name for tensor in resized(image, resize)]
    return view(graph.as_graph_def(), names)


def run(graph: GraphView, images: np.ndarray) -> list[np.ndarray]:
    with tf1_graph() as imported:
        tf1.import_graph_def(graph.graph_def, name="")
        with tf1.Session(graph=imported) as session:
            return list(session.run([f"{name}:0" for name in sorted(graph.outputs)], {"image:0": images}))


@pytest.mark.parametrize("resize", ["fixed", "keep_ratio", "padded"])
def test_the_same_images_and_shapes(resize: str) -> None:
    graph = graph_of(resize)
    batched = batch_preprocessor(graph)
    assert find_map_loops(batched) == []
    assert len(batched.nodes) < len(graph.nodes)
    for shape in [(1, 20, 30, 3), (3, 50, 31, 3), (2, 24, 32, 3), (1, 7, 7, 3)]:
        images = np.random.default_rng(4).uniform(0, 255, shape).astype(np.float32)
        for expected, found in zip(run(graph, images), run(batched, images), strict=True):
            assert expected.dtype == found.dtype
            np.testing.assert_array_equal(expected, found)


def test_an_op_on_pixels_that_is_not_known_is_refused() -> None:
    with pytest.raises(NotRecognisedError, match=r"the op \w+ is not known in a preprocessor"):
        batch_preprocessor(graph_of("brightened"))


def test_other_loops_stay(nms_graph: Callable[[Nms], GraphView]) -> None:
    graph = nms_graph(Nms())
    assert batch_preprocessor(graph) is graph


def test_a_loop_that_reads_something_else_is_refused() -> None:
    with tf1_graph() as graph:
        image = tf1.placeholder("float32", [None, None, None, 3], name="image")
        size = tf1.placeholder("int32", [2], name="size")

        def one(pixels: object) -> object:
            return tf1.squeeze(tf1.image.resize_bilinear(pixels[None], size), [0])  # type: ignore[index]

        name = tf1.map_fn(one, image).op.name
    with pytest.raises(NotRecognisedError, match="reads other tensors than the images"):
        batch_preprocessor(view(graph.as_graph_def(), [name]))


def test_the_frame_of_a_loop_names_it() -> None:
    (loop,) = find_map_loops(graph_of("fixed"))
    assert (loop.scope, list(loop.reads.values())) == ("Preprocessor/map", ["image"])
    assert len(loop.writes) == 2


def test_a_loop_that_sums_is_no_map() -> None:
    with tf1_graph() as graph:
        rows = tf1.placeholder("float32", [None, 4], name="rows")
        name = tf1.foldl(lambda total, row: total + row, rows).op.name
    assert find_map_loops(view(graph.as_graph_def(), [name])) == []
