"""Graphs that parse, and are wrong: changes of nodes, edges, attributes and constants."""

from collections.abc import Callable, Iterable, Iterator
from random import Random

import numpy as np
import tensorflow as tf
from google.protobuf.message import Message

GraphDef = tf.compat.v1.GraphDef
NodeDef = tf.compat.v1.NodeDef
Change = Callable[[Message, Random], None]

HUGE = 10**12
DETECTIONS = ("detection_boxes", "detection_scores", "detection_classes", "num_detections")


def wrong_graphs(content: bytes, random: Random, names: Iterable[str] = ()) -> Iterator[tuple[str, bytes]]:
    """The changed graphs of a serialised one, each with its name; all changes unless some are named."""
    for name in names or CHANGES:
        graph = GraphDef.FromString(content)
        CHANGES[name](graph, random)
        yield name, graph.SerializeToString()


def node(graph: Message, name: str) -> Message:
    """The node of this name, or the first whose name ends so."""
    return next(one for one in graph.node if one.name == name or one.name.endswith(name))


def constant(graph: Message, random: Random) -> Message:
    return random.choice([one for one in graph.node if one.op == "Const"])


def _set_shape(sizes: list[int]) -> Change:
    def change(graph: Message, random: Random) -> None:
        tensor = constant(graph, random).attr["value"].tensor
        del tensor.tensor_shape.dim[:]
        for size in sizes:
            tensor.tensor_shape.dim.add(size=size)

    return change


def _one_value_of(sizes: list[int], dtype: int = 1) -> Change:
    """A few bytes that stand for any number of values."""

    def change(graph: Message, random: Random) -> None:
        one = constant(graph, random)
        one.attr["dtype"].type = dtype
        tensor = one.attr["value"].tensor
        tensor.Clear()
        tensor.dtype = dtype
        for size in sizes:
            tensor.tensor_shape.dim.add(size=size)
        (tensor.float_val if dtype == 1 else tensor.int_val).append(1)

    return change


def _values(name: str, value: float) -> Change:
    """Weights of a convolution, all or the first of them."""

    def change(graph: Message, random: Random) -> None:
        weights = node(graph, node(graph, name).input[1].partition(":")[0])
        values = tf.make_ndarray(weights.attr["value"].tensor).copy()
        values.reshape(-1)[: 1 if random.random() < 0.5 else None] = value
        weights.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(values))

    return change


def _type(name: str, attribute: str, number: int) -> Change:
    return lambda graph, random: setattr(node(graph, name).attr[attribute], "type", number)


def _ints(name: str, attribute: str, values: list[int]) -> Change:
    def change(graph: Message, random: Random) -> None:
        node(graph, name).attr[attribute].list.i[:] = values

    return change


def _text(name: str, attribute: str, value: bytes) -> Change:
    return lambda graph, random: setattr(node(graph, name).attr[attribute], "s", value)


def _without(name: str, attribute: str) -> Change:
    def change(graph: Message, random: Random) -> None:
        del node(graph, name).attr[attribute]

    return change


def _input_shape(sizes: list[int] | None) -> Change:
    def change(graph: Message, random: Random) -> None:
        shape = node(graph, "image_tensor").attr["shape"].shape
        shape.Clear()
        shape.unknown_rank = sizes is None
        for size in sizes or ():
            shape.dim.add(size=size)

    return change


def _edge(source: str) -> Change:
    """Something reads `source`."""

    def change(graph: Message, random: Random) -> None:
        reader = random.choice([one for one in graph.node if one.input])
        reader.input[0] = source

    return change


def _input_of(name: str, position: int, value: str) -> Change:
    def change(graph: Message, random: Random) -> None:
        node(graph, name).input[position] = value

    return change


def _instead(name: str, value: object) -> Change:
    """A constant where the node was; what it read is still fed, and waited for."""

    def change(graph: Message, random: Random) -> None:
        one = node(graph, name)
        one.Clear()
        one.name, one.op = name, "Const"
        tensor = tf.make_tensor_proto(value)
        one.attr["value"].tensor.CopyFrom(tensor)
        one.attr["dtype"].type = tensor.dtype
        one.input.append("^image_tensor")

    return change


def _rename(graph: Message, random: Random, new: str) -> None:
    random.choice(graph.node).name = new


def _cycle(graph: Message, random: Random) -> None:
    node(graph, "stem").input[0] = "deep"


def _itself(graph: Message, random: Random) -> None:
    node(graph, "deep").input[0] = "deep"


def _waits_for_itself(graph: Message, random: Random) -> None:
    node(graph, "deep").input.append("^deep")


def _duplicate(graph: Message, random: Random) -> None:
    graph.node.add().CopyFrom(random.choice(graph.node))


def _duplicate_of_other_kind(graph: Message, random: Random) -> None:
    graph.node.add(name="deep", op="NoOp")


def _remove(graph: Message, random: Random) -> None:
    del graph.node[random.randrange(len(graph.node))]


def _shuffle(graph: Message, random: Random) -> None:
    nodes = [one.SerializeToString() for one in graph.node]
    random.shuffle(nodes)
    del graph.node[:]
    for content in nodes:
        graph.node.add().ParseFromString(content)


def _only_the_input(graph: Message, random: Random) -> None:
    kept = node(graph, "image_tensor").SerializeToString()
    del graph.node[:]
    graph.node.add().ParseFromString(kept)


def _long_chain(graph: Message, random: Random) -> None:
    last = node(graph, "stem").input[0]
    for number in range(5000):
        one = graph.node.add(name=f"same{number}", op="Identity", input=[last])
        one.attr["T"].type = 1
        last = one.name
    node(graph, "stem").input[0] = last


def _circle_of_identities(graph: Message, random: Random) -> None:
    for name, source in (("round", "about"), ("about", "round")):
        graph.node.add(name=name, op="Identity", input=[source]).attr["T"].type = 1
    node(graph, "deep").input[1] = "round"


def _half_a_loop(graph: Message, random: Random) -> None:
    one = node(graph, "deep")
    enter = graph.node.add(name="enter", op="Enter", input=[one.input[0]])
    enter.attr["T"].type = 1
    enter.attr["frame_name"].s = b"f"
    one.input[0] = "enter"


def _endless_loop(graph: Message, random: Random) -> None:
    """A loop of TF1 whose condition is a constant true would never end; here it has no condition at all."""
    one = node(graph, "deep")
    for name, op, sources in (
        ("enter", "Enter", [one.input[0]]),
        ("merge", "Merge", ["enter", "next"]),
        ("next", "NextIteration", ["merge"]),
        ("exit", "Exit", ["merge"]),
    ):
        added = graph.node.add(name=name, op=op, input=sources)
        added.attr["T"].type = 1
        if op == "Enter":
            added.attr["frame_name"].s = b"f"
        if op == "Merge":
            added.attr["N"].i = 2
    one.input[0] = "exit"


def _versions(producer: int, least: int, refused: list[int]) -> Change:
    def change(graph: Message, random: Random) -> None:
        graph.versions.producer, graph.versions.min_consumer = producer, least
        graph.versions.bad_consumers.extend(refused)

    return change


def _function_that_calls_itself(graph: Message, random: Random) -> None:
    function = graph.library.function.add()
    function.signature.name = "Again"
    function.signature.input_arg.add(name="x", type=1)
    function.signature.output_arg.add(name="y", type=1)
    function.node_def.add(name="again", op="Again", input=["x"])
    function.ret["y"] = "again:y:0"
    one = node(graph, "deep")
    graph.node.add(name="call", op="Again", input=[one.input[0]])
    one.input[0] = "call"


def _function_named_as_an_op(graph: Message, random: Random) -> None:
    function = graph.library.function.add()
    function.signature.name = "Conv2D"
    function.signature.output_arg.add(name="y", type=1)


def _colocation(place: bytes) -> Change:
    def change(graph: Message, random: Random) -> None:
        node(graph, "deep").attr["_class"].list.s.append(place)

    return change


def _device(graph: Message, random: Random) -> None:
    for one in graph.node:
        one.device = random.choice(["/job:x/task:9/device:TPU:7", "not a device", "/device:GPU:0"])


def _lies_about_shapes(graph: Message, random: Random) -> None:
    shape = node(graph, "deep").attr["_output_shapes"].list.shape.add()
    shape.dim.add(size=-7)
    shape.dim.add(size=HUGE)


def _value_missing(graph: Message, random: Random) -> None:
    del constant(graph, random).attr["value"]


def _content_cut(graph: Message, random: Random) -> None:
    tensor = node(graph, node(graph, "deep").input[1].partition(":")[0]).attr["value"].tensor
    tensor.tensor_content = tensor.tensor_content[:13]


def _constant_of_type(number: int) -> Change:
    def change(graph: Message, random: Random) -> None:
        one = node(graph, node(graph, "deep").input[1].partition(":")[0])
        one.attr["dtype"].type = number
        one.attr["value"].tensor.dtype = number

    return change


def _op(name: str, op: str) -> Change:
    return lambda graph, random: setattr(node(graph, name), "op", op)


def _attribute_of_unknown_kind(graph: Message, random: Random) -> None:
    node(graph, "deep").attr["strides"].func.name = "f"


def _many_attributes(graph: Message, random: Random) -> None:
    for number in range(20_000):
        node(graph, "deep").attr[f"_a{number}"].i = number


_NAN = float("nan")
_SLOTS = 8
CHANGES: dict[str, Change] = {
    "a constant of negative size": _set_shape([-3, 8]),
    "a constant of size -1": _set_shape([-1]),
    "a constant of huge size": _set_shape([HUGE, HUGE]),
    "a constant whose size overflows": _set_shape([2**62, 4, 4]),
    "a constant of 300 sides": _set_shape([1] * 300),
    "a constant without values": _set_shape([0]),
    "a constant of another shape": _set_shape([7, 5, 3]),
    "one value for a terabyte": _one_value_of([10**6, 10**6]),
    "one value for 3 GB": _one_value_of([3000, 250, 1000]),
    "one int32 for 3 GB": _one_value_of([3000, 250, 1000], 3),
    "one value of negative shape": _one_value_of([-5]),
    "a constant without its value": _value_missing,
    "a constant with half its content": _content_cut,
    **{f"weights of type {number}": _constant_of_type(number) for number in (0, 2, 3, 7, 14, 19, 20, 21, 99, 101)},
    "a missing node is read": _edge("nowhere"),
    "a missing output is read": _edge("deep:7"),
    "a negative output is read": _edge("deep:-1"),
    "an output of no number is read": _edge("deep:x"),
    "nothing is read": _edge(""),
    "a control edge is read": _edge("^deep"),
    "a caret alone is read": _edge("^"),
    "a cycle": _cycle,
    "a node that reads itself": _itself,
    "a node that waits for itself": _waits_for_itself,
    "a circle of identities": _circle_of_identities,
    "a node twice": _duplicate,
    "two nodes of one name": _duplicate_of_other_kind,
    "a node without a name": lambda graph, random: _rename(graph, random, ""),
    "a name of blanks": lambda graph, random: _rename(graph, random, " a b "),
    "a name of control characters": lambda graph, random: _rename(graph, random, "a\x1b[31m\n"),
    "a long name": lambda graph, random: _rename(graph, random, "n" * 100_000),
    "a node removed": _remove,
    "the order lost": _shuffle,
    "only the input": _only_the_input,
    "5,000 identities in a chain": _long_chain,
    "half a loop": _half_a_loop,
    "a loop without a condition": _endless_loop,
    "an unknown op": _op("deep", "Conv2DFromTheFuture"),
    "an op of no name": _op("deep", ""),
    "another op": _op("deep", "MatMul"),
    "an op without a CPU kernel": _op("deep", "CudnnRNN"),
    "strides of zero": _ints("deep", "strides", [1, 0, 0, 1]),
    "strides of negative size": _ints("deep", "strides", [1, -1, -1, 1]),
    "no strides": _ints("deep", "strides", []),
    "huge strides": _ints("deep", "strides", [1, 2**40, 2**40, 1]),
    "dilations of zero": _ints("deep", "dilations", [1, 0, 0, 1]),
    "dilations of 5 sides": _ints("deep", "dilations", [1, 1, 1, 1, 1]),
    "strides missing": _without("deep", "strides"),
    "strides of unknown kind": _attribute_of_unknown_kind,
    "padding unknown": _text("deep", "padding", b"SIDEWAYS"),
    "padding explicit without sizes": _text("deep", "padding", b"EXPLICIT"),
    "padding that is no text": _text("deep", "padding", b"\xff\xfe"),
    "NCHW": _text("deep", "data_format", b"NCHW"),
    "20,000 attributes": _many_attributes,
    **{f"a convolution of type {number}": _type("deep", "T", number) for number in (0, 3, 7, 99)},
    **{f"an input of type {number}": _type("image_tensor", "dtype", number) for number in (0, 7, 10, 20, 21, 101)},
    "an input of huge size": _input_shape([1, HUGE, HUGE, 3]),
    "an input of negative size": _input_shape([-5, -6, -7, -8]),
    "an input of 60 sides": _input_shape([1] * 60),
    "an input of no side": _input_shape([]),
    "an input of unknown rank": _input_shape(None),
    "an empty input": _input_shape([0, 0, 0, 3]),
    "an input without a shape": _without("image_tensor", "shape"),
    "weights that are not numbers": _values("deep", _NAN),
    "infinite weights": _values("stem", float("inf")),
    "huge weights": _values("boxes", 3e38),
    "weights of zero": _values("classes", 0.0),
    "version 0": _versions(0, 0, []),
    "a version to come": _versions(99_999, 99_999, []),
    "a refused version": _versions(2000, 0, [*range(1000, 3000)]),
    "a negative version": _versions(-1, -1, [-1]),
    "a function that calls itself": _function_that_calls_itself,
    "a function named as an op": _function_named_as_an_op,
    "colocated with nothing": _colocation(b"loc:@nowhere"),
    "colocated with no text": _colocation(b"\xff\xff"),
    "devices that are not there": _device,
    "shapes that are lies": _lies_about_shapes,
    "boxes of another shape": _instead(DETECTIONS[0], np.zeros((3, 7), "f")),
    "boxes that are not numbers": _instead(DETECTIONS[0], np.full((1, _SLOTS, 4), _NAN, "f")),
    "boxes reversed": _instead(DETECTIONS[0], np.tile(np.array([1, 1, 0, 0], "f"), (1, _SLOTS, 1))),
    "huge boxes": _instead(DETECTIONS[0], np.tile(np.array([-1e30, -1e30, 1e30, 1e30], "f"), (1, _SLOTS, 1))),
    "boxes of text": _instead(DETECTIONS[0], np.full((1, _SLOTS, 4), "x")),
    "scores that are not numbers": _instead(DETECTIONS[1], np.full((1, _SLOTS), _NAN, "f")),
    "classes that are not numbers": _instead(DETECTIONS[2], np.full((1, _SLOTS), _NAN, "f")),
    "huge classes": _instead(DETECTIONS[2], np.full((1, _SLOTS), 1e30, "f")),
    "negative classes": _instead(DETECTIONS[2], np.full((1, _SLOTS), -4, "f")),
    "a number of detections that is none": _instead(DETECTIONS[3], np.array([_NAN], "f")),
    "a negative number of detections": _instead(DETECTIONS[3], np.array([-3], "f")),
    "a huge number of detections": _instead(DETECTIONS[3], np.array([1e30], "f")),
    "no detections": _instead(DETECTIONS[3], np.array([0], "f")),
}
