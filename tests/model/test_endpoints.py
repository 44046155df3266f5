"""Which tensors go in and come out, and which nodes lie between."""

from collections.abc import Callable

import pytest
import tensorflow as tf

from tuner.errors import ModelError
from tuner.model.endpoints import find_inputs, find_outputs, prune

tf1 = tf.compat.v1


def build(make: Callable[[], object]) -> tf.Graph:
    with tf.Graph().as_default() as graph:
        make()
    return graph


def two_branches() -> None:
    image = tf1.placeholder(tf.float32, [None, 4], name="image")
    size = tf1.placeholder(tf.float32, [], name="size")
    training = tf1.placeholder_with_default(False, [], name="training")
    shared = tf.nn.relu(image, name="shared")
    tf.multiply(shared, size, name="scaled")
    with tf.control_dependencies([tf.debugging.Assert(training, [image], name="check")]):
        tf.split(shared, 2, axis=1, name="halves")
    tf.constant(1.0, name="unrelated")
    tf.constant(2.0, name="lonely") + 1.0


@pytest.mark.parametrize(
    ("outputs", "inputs"),
    [
        (("shared",), ("image:0",)),
        (("scaled:0",), ("image:0", "size:0")),
        (("halves:1", "halves", "halves:0"), ("image:0",)),
    ],
)
def test_inputs_are_the_placeholders_that_outputs_need(outputs: tuple[str, ...], inputs: tuple[str, ...]) -> None:
    graph = build(two_branches)
    found = find_outputs(graph, outputs)
    assert found == tuple(dict.fromkeys(name if ":" in name else f"{name}:0" for name in outputs))
    assert find_inputs(graph, found) == inputs


def test_sinks_depend_on_a_placeholder_and_are_results() -> None:
    assert find_outputs(build(two_branches)) == ("scaled:0", "halves:0")


def test_detection_outputs_go_before_sinks() -> None:
    def detector() -> None:
        image = tf1.placeholder(tf.float32, [1], name="image_tensor")
        for name in ("raw", "num_detections", "detection_scores", "detection_classes", "detection_boxes"):
            tf.identity(image, name)

    names = ("detection_boxes:0", "detection_scores:0", "detection_classes:0", "num_detections:0")
    assert find_outputs(build(detector)) == names

    def with_masks() -> None:
        detector()
        tf.identity(tf1.get_default_graph().get_tensor_by_name("raw:0"), "detection_masks")

    assert find_outputs(build(with_masks)) == (*names, "detection_masks:0")


def test_a_placeholder_with_a_default_is_the_input_when_it_is_alone() -> None:
    graph = build(lambda: tf.identity(tf1.placeholder_with_default([1.0], [1], name="image"), "out"))
    assert find_inputs(graph, find_outputs(graph)) == ("image:0",)


def test_any_tensor_may_be_fed() -> None:
    graph = build(two_branches)
    assert find_inputs(graph, ["scaled:0"], ["shared", "size"]) == ("shared:0", "size:0")


@pytest.mark.parametrize(
    ("inputs", "outputs", "fault"),
    [
        ((), ("shard",), r"output 'shard' is not in the graph \(did you mean 'shared'"),
        ((), ("zzzzzz",), r"output 'zzzzzz' is not in the graph of \d+ ops"),
        ((), ("halves:2",), r"output 'halves:2': the op Split has 2 outputs"),
        ((), ("halves:x",), r"output 'halves:x'"),
        ((), ("halves:\N{SUPERSCRIPT TWO}",), r"output 'halves:.': the op Split has 2 outputs"),
        ((), (f"halves:{'9' * 5000}",), r"output 'halves:9+': the op Split has 2 outputs"),
        ((), ("half \ud83d",), r"output 'half .*' is not in the graph"),
        (("imag",), ("shared",), r"input 'imag' is not in the graph \(did you mean 'image'"),
        (("size",), ("shared",), r"input 'size:0' does not reach any of the outputs shared:0"),
        (("image",), ("scaled",), r"the outputs need placeholder 'size' as well as image:0"),
        ((), ("unrelated",), r"no placeholder"),
    ],
)
def test_faults(inputs: tuple[str, ...], outputs: tuple[str, ...], fault: str) -> None:
    graph = build(two_branches)
    with pytest.raises(ModelError, match=fault):
        find_inputs(graph, find_outputs(graph, outputs), inputs)


def test_a_graph_of_constants_has_no_outputs() -> None:
    with pytest.raises(ModelError, match="no outputs"):
        find_outputs(build(lambda: tf.identity(tf.constant(1.0), "out")))


def test_prune_keeps_what_outputs_need_in_its_order() -> None:
    graph_def = build(two_branches).as_graph_def()
    pruned = prune(graph_def, ["scaled:0"])
    assert [node.name for node in pruned.node] == ["image", "size", "shared", "scaled"]
    kept = {node.name for node in prune(graph_def, ["halves:1"]).node}
    assert "training" in kept  # through a control input


def test_prune_forgets_a_place_next_to_a_pruned_node() -> None:
    graph_def = build(two_branches).as_graph_def()
    shared = next(node for node in graph_def.node if node.name == "shared")
    shared.attr["_class"].list.s[:] = [b"loc:@scaled", b"loc:@image"]
    image = next(node for node in graph_def.node if node.name == "image")
    image.attr["_class"].list.s[:] = [b"loc:@scaled"]
    nodes = {node.name: node for node in prune(graph_def, ["shared:0"]).node}
    assert list(nodes["shared"].attr["_class"].list.s) == [b"loc:@image"]
    assert "_class" not in nodes["image"].attr
    assert list(shared.attr["_class"].list.s) == [b"loc:@scaled", b"loc:@image"]  # the graph given is not changed
