import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.python.framework import tensor_util

from tuner.model.nodes import op_node
from tuner.quantization.lowering.codes import QuantizedConvolution
from tuner.quantization.lowering.convolutions import Convolution
from tuner.quantization.lowering.kernels import (
    CodeTensor,
    code_dtype,
    convolution_nodes,
    end_nodes,
    matmul_nodes,
    sums_to_float_nodes,
)
from tuner.quantization.lowering.scales import ActivationScale

DATA = CodeTensor("codes", tf.quint8)
INPUT = ActivationScale(np.ones(4, np.float32), True)


def quantized(
    peaks: list[float], *, output: ActivationScale | None = None, bias: bool = True, activation: str | None = None
) -> QuantizedConvolution:
    node = op_node("Conv2D", "conv", ["x", "w"], strides=[1, 1, 1, 1], padding="SAME")
    shape = (1, 1, 4, len(peaks))
    convolution = Convolution(
        node,
        np.zeros(shape, np.float32),
        None,
        None if activation is None else op_node(activation, "activation", ["conv"]),
        ("conv",),
        is_pointwise=True,
    )
    values = np.arange(len(peaks), dtype=np.float32) if bias else None
    return QuantizedConvolution(
        convolution, INPUT, output, np.zeros(shape, np.int8), np.array(peaks, np.float32), values
    )


def constants(nodes: list[NodeDef]) -> dict[str, np.ndarray]:
    return {
        node.name: tensor_util.MakeNdarray(node.attr["value"].tensor) for node in nodes if node.op.endswith("Const")
    }


def kernel(nodes: list[NodeDef]) -> NodeDef:
    (found,) = (node for node in nodes if not node.op.endswith("Const"))
    return found


@pytest.mark.parametrize("is_unsigned", [True, False])
def test_ends_of_codes(is_unsigned: bool) -> None:
    dtype = code_dtype(ActivationScale(np.ones(1, np.float32), is_unsigned))
    assert dtype == (tf.quint8 if is_unsigned else tf.qint8)
    values = constants(end_nodes())
    assert [float(values[end]) for end in CodeTensor("x", dtype).ends] == [0 if is_unsigned else -1, 1]
    assert {node.op for node in end_nodes()} == {"HostConst"}


@pytest.mark.parametrize(("peaks", "sizes"), [([0.5, 0.5], 1), ([0.5, 0.25], 2)])
@pytest.mark.parametrize("write", ["convolution", "matmul"])
def test_equal_weight_peaks_are_written_as_one_scale(write: str, peaks: list[float], sizes: int) -> None:
    codes = quantized(peaks, output=ActivationScale(np.ones(2, np.float32), True))
    nodes = convolution_nodes(codes, DATA, None, "n") if write == "convolution" else matmul_nodes(codes, DATA, "n")
    assert constants(nodes)["n/weights_high"].tolist() == peaks[:sizes]
    assert list(kernel(nodes).input).count("n/weights_high") == 2


def test_sums_are_on_one_scale_for_all_channels() -> None:
    values = constants(convolution_nodes(quantized([0.5, 0.25]), DATA, None, "n"))
    assert values["n/weights_high"].tolist() == [1]
    assert values["n/bias"].tolist() == [0, 4]


@pytest.mark.parametrize(
    ("activation", "makes_codes", "convolution_fuses", "matmul_fuses"),
    [
        (None, False, ["BiasAdd"], ["BiasAdd", "Dequantize"]),
        (None, True, ["BiasAdd", "Requantize"], ["BiasAdd", "Requantize"]),
        ("Relu", False, ["BiasAdd", "Relu"], ["BiasAdd", "Relu", "Dequantize"]),
        ("Relu", True, ["BiasAdd", "Relu", "Requantize"], ["BiasAdd", "Relu", "Requantize"]),
        # Codes end at 6 anyway, sums do not.
        ("Relu6", False, ["BiasAdd"], ["BiasAdd", "Relu6", "Dequantize"]),
        ("Relu6", True, ["BiasAdd", "Relu", "Requantize"], ["BiasAdd", "Relu", "Requantize"]),
        ("LeakyRelu", True, None, ["BiasAdd", "LeakyRelu", "Requantize"]),
    ],
)
def test_what_kernels_fuse(
    activation: str | None, makes_codes: bool, convolution_fuses: list[str] | None, matmul_fuses: list[str]
) -> None:
    output = ActivationScale(np.ones(2, np.float32), True) if makes_codes else None
    codes = quantized([0.5, 0.25], output=output, activation=activation)
    if convolution_fuses is not None:
        fused = kernel(convolution_nodes(codes, DATA, None, "n")).attr["fused_ops"].list.s
        assert [name.decode() for name in fused] == convolution_fuses
    fused = kernel(matmul_nodes(codes, DATA, "n")).attr["fused_ops"].list.s
    assert [name.decode() for name in fused] == matmul_fuses


def test_as_many_types_as_inputs() -> None:
    for output in (None, ActivationScale(np.ones(2, np.float32), False)):
        for bias in (False, True):
            codes = quantized([0.5, 0.25], output=output, bias=bias)
            for nodes in (convolution_nodes(codes, DATA, None, "n"), matmul_nodes(codes, DATA, "n")):
                node = kernel(nodes)
                assert len(node.attr["Thost_inputs"].list.type) == len(node.input)
                assert {node.name for node in nodes} >= {name for name in node.input if name.startswith("n/")}


def test_reading_sums() -> None:
    *_, last = nodes = sums_to_float_nodes("sums", np.array([0.5, 2]), "out")
    assert (last.name, last.op) == ("out", "Mul")
    assert constants(nodes)["sums/units"].tolist() == [0.5, 2]
