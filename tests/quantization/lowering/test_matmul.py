"""The arithmetic of `_QuantizedMatMul` that docs/kernels.md states, to the last bit, on nodes written by hand."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.core.framework.graph_pb2 import GraphDef

from tuner.model.nodes import const_node, op_node

Array = NDArray[Any]
PLAIN = {tf.quint8: tf.uint8, tf.qint8: tf.int8}
LEVELS = {tf.quint8: 255, tf.qint8: 127}
LOWEST = {tf.quint8: 0, tf.qint8: -128}
LEAK = 0.1
FUNCTIONS = {
    "": lambda v: v,
    "Relu": lambda v: np.maximum(v, 0),
    "Relu6": lambda v: np.clip(v, 0, 6),
    "LeakyRelu": lambda v: np.where(v > 0, v, v * np.float32(LEAK)),
}
INPUT_PEAK = np.float32(2.3)
LOW, HIGH = np.float32(-1.7), np.float32(5)


class Case:
    """Random codes, weights, bias and addend of one product."""

    def __init__(self, pixels: int, channels_in: int, channels: int, dtype: tf.DType, *, per_channel: bool) -> None:
        random = np.random.default_rng([pixels, channels_in, channels])
        self.dtype = dtype
        self.x = random.integers(0 if dtype == tf.quint8 else -127, LEVELS[dtype] + 1, (pixels, channels_in))
        self.weights = random.integers(-127, 128, (channels_in, channels)).astype(np.int8)
        self.peaks = random.uniform(0.01, 0.1, channels if per_channel else 1).astype(np.float32)
        self.bias = random.normal(0, 2, channels).astype(np.float32)
        self.addend = random.normal(0, 2, (pixels, channels)).astype(np.float32)

    def result(self, function: str) -> Array:
        """The product in float32, in the kernel's order: sums times unit, plus bias, then the function."""
        sums = (self.x @ self.weights.astype(np.int64)).astype(np.float32)
        unit = (INPUT_PEAK / np.float32(LEVELS[self.dtype])) * (self.peaks / np.float32(127))
        return np.asarray(FUNCTIONS[function](sums * unit + self.bias), np.float32)

    def run(self, output: tf.DType, *fused: str, is_transposed: bool = False, is_asymmetric: bool = False) -> Array:
        plain = PLAIN[self.dtype]
        ends = [-INPUT_PEAK if self.dtype == tf.qint8 else np.float32(0), INPUT_PEAK, -self.peaks, self.peaks]
        if output != tf.float32:
            ends += [LOW if is_asymmetric else -HIGH, HIGH]
        weights = self.weights.T.copy() if is_transposed else self.weights
        graph_def = GraphDef()
        graph_def.node.extend(
            [
                op_node("Placeholder", "x", [], dtype=plain),
                op_node("Bitcast", "codes", ["x"], T=plain, type=self.dtype),
                op_node("Placeholder", "addend", [], dtype=tf.float32),
                const_node("weights", weights, tf.qint8),
                const_node("bias", self.bias),
                *(const_node(f"end_{index}", end, on_host=True) for index, end in enumerate(ends)),
                op_node(
                    "_QuantizedMatMul",
                    "product",
                    [
                        "codes",
                        "weights",
                        "bias",
                        *["addend"] * ("Add" in fused),
                        *(f"end_{i}" for i in range(len(ends))),
                    ],
                    T1=self.dtype,
                    T2=tf.qint8,
                    Tbias=tf.float32,
                    U=tf.float32,
                    Tout=output,
                    Tdevice_inputs=list[tf.DType](),
                    Tdevice_outputs=list[tf.DType](),
                    Thost_inputs=[self.dtype, tf.qint8, *[tf.float32] * (1 + ("Add" in fused) + len(ends))],
                    Thost_outputs=[output, *[tf.float32] * (0 if output == tf.float32 else 2)],
                    transpose_a=False,
                    transpose_b=is_transposed,
                    is_weight_const=True,
                    is_bias_const=True,
                    fused_ops=["BiasAdd", *filter(None, fused), "Dequantize" if output == tf.float32 else "Requantize"],
                    input_quant_mode="SCALED",
                    output_quant_mode="MIN_FIRST" if is_asymmetric else "SCALED",
                    leakyrelu_alpha=LEAK,
                ),
                op_node("Bitcast", "out", ["product"], T=output, type=PLAIN.get(output, output)),
            ]
        )
        with tf.Graph().as_default() as graph:
            tf.import_graph_def(graph_def, name="")
            with tf.compat.v1.Session(graph=graph) as session:
                feeds = {"x:0": self.x.astype(plain.as_numpy_dtype), "addend:0": self.addend}
                out: Array = session.run("out:0", feeds)
                return out


def codes(values: Array, scale: np.float32, output: tf.DType, offset: Any = 0) -> Array:
    # A fused multiply-add: rounded once.
    exact = (values.astype(np.float64) * scale + offset).astype(np.float32)
    return np.clip(np.round(exact), LOWEST[output], LEVELS[output])


@pytest.fixture(params=[tf.quint8, tf.qint8], ids=lambda dtype: str(dtype.name))
def dtype(request: pytest.FixtureRequest) -> Any:
    return request.param


SHAPES = [(400, 96, 96), (100, 192, 33), (1, 3, 7), (2500, 24, 24), (30, 116, 58)]


@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_floats_are_never_rounded(
    shape: tuple[int, int, int], per_channel: bool, is_transposed: bool, dtype: tf.DType
) -> None:
    case = Case(*shape, dtype, per_channel=per_channel)
    np.testing.assert_array_equal(case.run(tf.float32, is_transposed=is_transposed), case.result(""))


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("output", [tf.float32, tf.quint8, tf.qint8], ids=lambda output: str(output.name))
def test_functions_are_fused(function: str, output: tf.DType, dtype: tf.DType) -> None:
    case = Case(400, 96, 48, dtype, per_channel=True)
    wanted = case.result(function)
    if output != tf.float32:
        wanted = codes(wanted, np.float32(LEVELS[output]) / HIGH, output)
    np.testing.assert_array_equal(case.run(output, function), wanted)


@pytest.mark.parametrize("function", [tf.sigmoid, tf.tanh, tf.nn.elu], ids=lambda function: str(function.__name__))
def test_curves_are_fused(function: Any, dtype: tf.DType) -> None:
    case = Case(400, 96, 48, dtype, per_channel=True)
    out = case.run(tf.float32, function.__name__.capitalize())
    np.testing.assert_allclose(out, function(case.result("")).numpy(), rtol=1e-5, atol=1e-6)


def test_a_float_tensor_is_added(dtype: tf.DType) -> None:
    case = Case(400, 96, 48, dtype, per_channel=True)
    np.testing.assert_array_equal(case.run(tf.float32, "Add"), case.result("") + case.addend)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_codes_may_start_at_any_value(function: str, dtype: tf.DType) -> None:
    case = Case(400, 96, 48, dtype, per_channel=True)
    scale = np.float32(255) / (HIGH - LOW)
    wanted = codes(case.result(function), scale, tf.quint8, offset=-LOW * np.float32(255) / (HIGH - LOW))
    np.testing.assert_array_equal(case.run(tf.quint8, function, is_asymmetric=True), wanted)
