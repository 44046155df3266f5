from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tuner.quantization.lowering.fused_hard_swish import FUSED_OPS, fuse_hard_swish

X = np.random.default_rng(3).normal(0, 3, (2, 6, 5, 8)).astype(np.float32)
SIXTH = np.float32(1 / 6)


def clipped(x: tf.Tensor, shift: float = 3) -> tf.Tensor:
    return tf.nn.relu6(x + np.float32(shift))


FORMS: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "x * (r * 1/6)": lambda x: x * (clipped(x) * SIXTH),
    "(x * r) * 1/6": lambda x: (x * clipped(x)) * SIXTH,
    "(x * 1/6) * r": lambda x: (x * SIXTH) * clipped(x),
    "r first": lambda x: tf.multiply(SIXTH, clipped(x)) * x,
}


@pytest.mark.parametrize("op", FUSED_OPS)
@pytest.mark.parametrize("form", FORMS)
def test_one_kernel_with_the_same_result(op: str, form: str, float_graph: Any, run: Callable[..., Any]) -> None:
    sketch = float_graph()
    data = sketch.convolve(sketch.x, "conv", op, bias=True)
    with sketch.graph.as_default():
        tf.identity(FORMS[form](data), name="out")
    graph = sketch.view()
    fused = fuse_hard_swish(graph, ["conv"])
    assert fused.nodes["conv"].op == FUSED_OPS[op]
    assert not any(node.op in ("Mul", "AddV2", "Relu6", "BiasAdd", op) for node in fused.graph_def.node)
    (expected,), (found,) = run(graph, X), run(fused, X)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


OTHER_FORMS: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "another shift": lambda x: x * (clipped(x, 2) * SIXTH),
    "another factor": lambda x: x * (clipped(x) * np.float32(0.2)),
    "hard sigmoid": lambda x: clipped(x) * SIXTH,
    "x is read again": lambda x: x * (clipped(x) * SIXTH) + x,
    "x is clipped twice": lambda x: x * (clipped(x) * SIXTH) + clipped(x),
    "the gate is read again": lambda x: tf.add_n([x * gate + gate for gate in [clipped(x) * SIXTH]]),
}


@pytest.mark.parametrize("form", OTHER_FORMS)
def test_left_alone(form: str, float_graph: Any) -> None:
    sketch = float_graph()
    data = sketch.convolve(sketch.x, "conv", bias=True)
    with sketch.graph.as_default():
        tf.identity(OTHER_FORMS[form](data), name="out")
    graph = sketch.view()
    assert fuse_hard_swish(graph, ["conv"]).nodes == graph.nodes
