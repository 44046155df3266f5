from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import tensor_util

from tuner.model.nodes import const_node, op_node


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (True, "b", True),
        (3, "i", 3),
        (0.5, "f", 0.5),
        ("SAME", "s", b"SAME"),
        (tf.qint8, "type", tf.qint8.as_datatype_enum),
        ([1, 2], "list.i", [1, 2]),
        (["Relu"], "list.s", [b"Relu"]),
        ([tf.float32, tf.qint8], "list.type", [tf.float32.as_datatype_enum, tf.qint8.as_datatype_enum]),
    ],
)
def test_attributes(value: Any, kind: str, expected: Any) -> None:
    node = op_node("AnyOp", "name", ["a", "b:1"], key=value)
    assert (node.op, node.name, list(node.input)) == ("AnyOp", "name", ["a", "b:1"])
    found = node.attr["key"]
    for part in kind.split("."):
        found = getattr(found, part)
    assert (list(found) if "." in kind else found) == expected
    assert node.attr["key"].WhichOneof("value") == kind.partition(".")[0]


def test_an_empty_list_is_a_list() -> None:
    assert op_node("AnyOp", "name", [], key=list[tf.DType]()).attr["key"].WhichOneof("value") == "list"


def test_constants() -> None:
    node = const_node("c", np.array([1.5, 2], np.float32))
    assert (node.op, node.attr["dtype"].type) == ("Const", tf.float32.as_datatype_enum)
    assert tensor_util.MakeNdarray(node.attr["value"].tensor).tolist() == [1.5, 2]
    assert const_node("c", np.float32(1), on_host=True).op == "HostConst"


def test_codes_keep_their_bytes_and_change_their_type() -> None:
    codes = np.array([-127, 0, 127], np.int8)
    node = const_node("c", codes, tf.qint8)
    assert node.attr["dtype"].type == node.attr["value"].tensor.dtype == tf.qint8.as_datatype_enum
    assert node.attr["value"].tensor.tensor_content == codes.tobytes()
