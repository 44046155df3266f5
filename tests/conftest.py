"""Fixtures that every test folder may use."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from tuner.model.detection_model import DetectionModel, ModelFormat
from tuner.model.graph_view import GraphView

tf1 = tf.compat.v1

ACTIVATIONS = {"Relu": tf.nn.relu, "Relu6": tf.nn.relu6, "LeakyRelu": tf.nn.leaky_relu}


class FloatGraph:
    """A float graph in the making, with the input `x`: [N, H, W, channels] float32; H and W unknown unless given.

    Weights and biases not given are random; equal seeds make equal graphs.
    """

    def __init__(self, channels: int = 8, seed: int = 0, size: tuple[int, int] | None = None) -> None:
        self.random = np.random.default_rng(seed)
        self.graph = tf.Graph()
        with self.graph.as_default():
            self.x = tf1.placeholder(tf.float32, [None, *(size or (None, None)), channels], name="x")

    def weights(self, *shape: int) -> NDArray[np.float32]:
        return self.random.normal(0, 0.2, shape).astype(np.float32)

    def convolve(
        self,
        data: tf.Tensor,
        name: str,
        op: str = "Conv2D",
        *,
        out: int = 12,
        weights: NDArray[np.float32] | None = None,
        bias: NDArray[np.float32] | bool = False,
        activation: str | None = None,
        stride: int = 1,
        padding: Any = "SAME",
        dilation: int = 1,
    ) -> tf.Tensor:
        """A 3 x 3 convolution `name`, its bias `name/bias` and its activation `name/activation`."""
        channels = data.shape[-1]
        strides, dilations = [1, stride, stride, 1], [1, dilation, dilation, 1]
        with self.graph.as_default():
            if op == "Conv2D":
                weights = self.weights(3, 3, channels, out) if weights is None else weights
                data = tf1.nn.conv2d(data, weights, strides, padding, dilations=dilations, name=name)
            else:
                weights = self.weights(3, 3, channels, 1) if weights is None else weights
                data = tf.raw_ops.DepthwiseConv2dNative(
                    input=data, filter=weights, strides=strides, padding=padding, dilations=dilations, name=name
                )
            if bias is not False:
                values = self.weights(data.shape[-1]) if bias is True else bias
                data = tf.nn.bias_add(data, values, name=f"{name}/bias")
            if activation is not None:
                data = ACTIVATIONS[activation](data, name=f"{name}/activation")
        return data

    def batch_norm(self, data: tf.Tensor, name: str, **changes: Any) -> tf.Tensor:
        """FusedBatchNormV3 with statistics of its own, or another version of it (`op`)."""
        channels = data.shape[-1]
        op = getattr(tf.raw_ops, changes.pop("op", "FusedBatchNormV3"))
        with self.graph.as_default():
            values = {
                "scale": self.random.uniform(0.5, 2, channels).astype(np.float32),
                "offset": self.weights(channels),
                "mean": self.weights(channels),
                "variance": self.random.uniform(0.01, 2, channels).astype(np.float32),
                "epsilon": 1e-3,
                "is_training": False,
                **changes,
            }
            return op(x=data, name=name, **values)

    def named(self, data: tf.Tensor, name: str) -> tf.Tensor:
        """`data` under another name: a float op that reads it."""
        with self.graph.as_default():
            return tf.identity(data, name=name)

    def concatenate(self, parts: list[tf.Tensor]) -> tf.Tensor:
        """Side by side in the last axis: a float op that reads all of `parts`."""
        with self.graph.as_default():
            return tf.concat(parts, -1)

    def view(self, *outputs: str) -> GraphView:
        """The finished graph; `outputs` are names of nodes."""
        return GraphView(self.graph.as_graph_def(), frozenset(outputs or ("out",)))

    def model(self, *outputs: str) -> DetectionModel:
        """The finished graph as a model."""
        tensors = tuple(f"{name}:0" for name in outputs or ("out",))
        return DetectionModel(self.graph.as_graph_def(), ("x:0",), tensors, Path("x.pb"), ModelFormat.FROZEN_GRAPH)


def run_graph(graph: GraphView, x: NDArray[np.float32], *tensors: str) -> list[NDArray[Any]]:
    with tf.Graph().as_default() as imported:
        tf.import_graph_def(graph.graph_def, name="")
        with tf1.Session(graph=imported) as session:
            fetched = [name if ":" in name else f"{name}:0" for name in tensors or ("out",)]
            values: list[NDArray[Any]] = session.run(fetched, {"x:0": x})
            return values


@pytest.fixture(scope="session")
def float_graph() -> type[FloatGraph]:
    """Small float graphs in TensorFlow's own terms."""
    return FloatGraph


@pytest.fixture(scope="session")
def run() -> Callable[..., list[NDArray[Any]]]:
    """Run a graph on `x`: (graph, x, names of tensors; `out` unless told)."""
    return run_graph


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Commands that run in this process set up its logging, on a stream that ends with the test."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers, root.level = handlers, level
    logging.captureWarnings(False)


@pytest.fixture(scope="session")
def assets() -> Path:
    """Real detectors and images that lie beside the repository on some machines; tests skip where they do not."""
    folder = (Path(__file__).parents[1] / "../shared/assets").resolve()
    if not (folder / "PROVENANCE.md").is_file():
        pytest.skip("real detectors and images (../shared/assets) are not on this machine")
    return folder
