"""NodeDefs written by hand: the few forms that the lowering needs."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike
from tensorflow.core.framework.attr_value_pb2 import AttrValue
from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.python.framework import tensor_util

Attribute: TypeAlias = "bool | int | float | str | tf.DType | Sequence[int] | Sequence[str] | Sequence[tf.DType]"


def op_node(op: str, name: str, inputs: Sequence[str], **attributes: Attribute) -> NodeDef:
    """A node of any op. Attributes take Python values: bool, int, float, str, dtype, or a list of one of these."""
    node = NodeDef(op=op, name=name, input=inputs)
    for key, value in attributes.items():
        node.attr[key].CopyFrom(_attribute(value))
    return node


def const_node(name: str, value: ArrayLike, dtype: tf.DType | None = None, *, on_host: bool = False) -> NodeDef:
    """A constant. `dtype` relabels the bytes of an integer array as a quantised type.

    `on_host` writes HostConst, which is what oneDNN's kernels expect for the ranges that they read at set-up.
    """
    tensor = tensor_util.make_tensor_proto(np.asarray(value))
    if dtype is not None:
        tensor.dtype = dtype.as_datatype_enum
    node = NodeDef(op="HostConst" if on_host else "Const", name=name)
    node.attr["value"].tensor.CopyFrom(tensor)
    node.attr["dtype"].type = tensor.dtype
    return node


def _attribute(value: Attribute) -> AttrValue:
    if isinstance(value, bool):
        return AttrValue(b=value)
    if isinstance(value, int):
        return AttrValue(i=value)
    if isinstance(value, float):
        return AttrValue(f=value)
    if isinstance(value, str):
        return AttrValue(s=value.encode())
    if isinstance(value, tf.DType):
        return AttrValue(type=value.as_datatype_enum)
    items = AttrValue.ListValue()
    for item in value:
        if isinstance(item, tf.DType):
            items.type.append(item.as_datatype_enum)
        elif isinstance(item, str):
            items.s.append(item.encode())
        else:
            items.i.append(item)
    return AttrValue(list=items)
