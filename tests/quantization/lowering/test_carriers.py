"""docs/kernels.md and TensorFlow agree about what carries 8 bits: the registry, the table and what really runs.

Run as a script, this file prints the table.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.core.framework.graph_pb2 import GraphDef
from tensorflow.python.framework import op_def_registry

from tuner.model.nodes import const_node, op_node
from tuner.quantization.lowering.carriers import takes

DOCUMENT = Path(__file__).parents[3] / "docs/kernels.md"
CODE_TYPES = {tf.quint8: tf.uint8, tf.qint8: tf.int8, tf.uint8: tf.uint8, tf.int8: tf.int8}
PADDINGS = [[0, 0], [1, 1], [1, 1], [0, 0]]
WINDOW = {"ksize": [1, 2, 2, 1], "strides": [1, 2, 2, 1], "padding": "SAME", "data_format": "NHWC"}
MASKS = {f"{name}_mask": 0 for name in ("begin", "end", "ellipsis", "new_axis", "shrink_axis")}
NEAREST = {"align_corners": False, "half_pixel_centers": False}
DATA, ZERO = "data", "zero"
# What each op reads, data [1, 4, 4, 8] or an int32 constant, and its attributes besides the data's type.
CASES: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "Identity": ([DATA], {}),
    "Reshape": ([DATA, [1, 4, 32]], {"Tshape": tf.int32}),
    "Squeeze": ([DATA], {"squeeze_dims": [0]}),
    "ExpandDims": ([DATA, 0], {"Tdim": tf.int32}),
    "Transpose": ([DATA, [0, 2, 1, 3]], {"Tperm": tf.int32}),
    "Split": ([3, DATA], {"num_split": 2}),
    "SplitV": ([DATA, [3, 5], 3], {"num_split": 2, "Tlen": tf.int32}),
    "Slice": ([DATA, [0, 1, 1, 2], [1, 2, 2, 3]], {"Index": tf.int32}),
    "StridedSlice": ([DATA, [0] * 4, [1, 4, 4, 8], [1, 2, 2, 1]], {"Index": tf.int32, **MASKS}),
    "ConcatV2": ([DATA, DATA, 3], {"N": 2, "Tidx": tf.int32}),
    "Concat": ([3, DATA, DATA], {"N": 2}),
    "Pad": ([DATA, PADDINGS], {"Tpaddings": tf.int32}),
    "PadV2": ([DATA, PADDINGS, ZERO], {"Tpaddings": tf.int32}),
    "MirrorPad": ([DATA, PADDINGS], {"Tpaddings": tf.int32, "mode": "REFLECT"}),
    "SpaceToDepth": ([DATA], {"block_size": 2, "data_format": "NHWC"}),
    "DepthToSpace": ([DATA], {"block_size": 2, "data_format": "NHWC"}),
    "SpaceToBatchND": ([DATA, [2, 2], [[0, 0]] * 2], {"Tblock_shape": tf.int32, "Tpaddings": tf.int32}),
    "BatchToSpaceND": ([DATA, [1, 1], [[0, 1]] * 2], {"Tblock_shape": tf.int32, "Tcrops": tf.int32}),
    "Tile": ([DATA, [1, 2, 2, 1]], {"Tmultiples": tf.int32}),
    "BroadcastTo": ([DATA, [2, 4, 4, 8]], {"Tidx": tf.int32}),
    "Pack": ([DATA, DATA], {"N": 2, "axis": 0}),
    "Unpack": ([DATA], {"num": 4, "axis": 1}),
    "GatherV2": ([DATA, [0, 2, 1], 3], {"Tindices": tf.int32, "Taxis": tf.int32, "batch_dims": 0}),
    "ReverseV2": ([DATA, [1]], {"Tidx": tf.int32}),
    "ResizeNearestNeighbor": ([DATA, [8, 8]], NEAREST),
    "MaxPool": ([DATA], WINDOW),
    "Relu": ([DATA], {}),
    "Maximum": ([DATA, DATA], {}),
}


def table() -> list[str]:
    header = f"| op | {' | '.join(dtype.name for dtype in CODE_TYPES)} |"
    rows = (f"| {op} | {' | '.join('yes' if takes(op, dtype) else '' for dtype in CODE_TYPES)} |" for op in CASES)
    return [header, "|---|---|---|---|---|", *rows]


def run(op: str, dtype: tf.DType) -> NDArray[Any]:
    """What the op makes of 128 different values, as TensorFlow's kernel for `dtype` computes it."""
    plain = CODE_TYPES.get(dtype, dtype)
    inputs, attributes = CASES[op]
    type_attribute = op_def_registry.get(op).output_arg[0].type_attr
    graph_def = GraphDef()
    graph_def.node.append(op_node("Placeholder", "x", [], dtype=plain))
    graph_def.node.append(op_node("Bitcast", DATA, ["x"], T=plain, type=dtype))
    graph_def.node.append(const_node(ZERO, np.zeros((), plain.as_numpy_dtype), dtype))
    names = []
    for index, value in enumerate(inputs):
        names.append(value if isinstance(value, str) else f"constant_{index}")
        if not isinstance(value, str):
            graph_def.node.append(const_node(names[-1], np.array(value, np.int32)))
    graph_def.node.append(op_node(op, "moved", names, **{type_attribute: dtype}, **attributes))
    graph_def.node.append(op_node("Bitcast", "out", ["moved"], T=dtype, type=plain))
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
        with tf.compat.v1.Session(graph=graph) as session:
            values = np.arange(128).reshape(1, 4, 4, 8).astype(plain.as_numpy_dtype)
            moved: NDArray[Any] = session.run("out:0", {"x:0": values})
            return moved


@pytest.mark.parametrize("dtype", CODE_TYPES, ids=lambda dtype: str(dtype.name))
@pytest.mark.parametrize("op", CASES)
def test_what_the_registry_says_is_what_runs(op: str, dtype: tf.DType) -> None:
    if takes(op, dtype):
        np.testing.assert_array_equal(run(op, dtype), run(op, tf.float32).astype(np.int32))
    else:
        with pytest.raises((tf.errors.OpError, ValueError)):
            run(op, dtype)


def test_every_carrier_takes_plain_bytes() -> None:
    assert all(takes(op, dtype) for op in CASES for dtype in (tf.uint8, tf.int8))


def test_table_in_the_document_is_what_the_registry_says() -> None:
    lines = DOCUMENT.read_text().splitlines()
    first = lines.index(table()[0])
    assert lines[first : first + len(table())] == table(), "run this file as a script to see the table"


if __name__ == "__main__":
    print("\n".join(table()))
