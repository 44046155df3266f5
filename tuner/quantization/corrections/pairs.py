"""Convolutions with nothing but Relu or LeakyRelu between: a factor per channel can move from one to the other."""

from collections.abc import Mapping

from tuner.model.fold_batch_norm import CONVOLUTION_OPS
from tuner.model.graph_view import GraphView
from tuner.quantization.lowering.convolutions import Convolution
from tuner.quantization.lowering.shared_weights import find_shared_weights

# f(s * x) = s * f(x) for s > 0; a bias is divided as the weights are.
_KEEP_FACTORS = (*CONVOLUTION_OPS, "BiasAdd", "Relu", "LeakyRelu")


def find_pairs(graph: GraphView, convolutions: Mapping[str, Convolution]) -> dict[str, list[str]]:
    """For each convolution, in the graph's order, those that read its result, where nothing else does.

    Left out: a result behind anything but these functions (Relu6 is another one at another scale, a sum has a second
    summand), a grouped convolution that reads, and weights that several convolutions share, which are stored once.
    """
    shared = find_shared_weights(convolutions)
    pairs: dict[str, list[str]] = {}
    for name, convolution in convolutions.items():
        consumers = graph.consumers(convolution.output)
        readers = [node.name for node in consumers if node.name in convolutions]
        if (
            all(graph.nodes[member].op in _KEEP_FACTORS for member in convolution.members)
            and convolution.output not in graph.outputs
            and 0 < len(readers) == len(consumers)
            and shared.keys().isdisjoint((name, *readers))
            and all(_reads_every_channel(convolutions[reader], convolution) for reader in readers)
        ):
            pairs[name] = readers
    return pairs


def channels_made(convolution: Convolution) -> int:
    """Number of output channels; the depth multiplier of a depthwise convolution is 1."""
    return int(convolution.weights.shape[2 if convolution.is_depthwise else 3])


def _reads_every_channel(reader: Convolution, producer: Convolution) -> bool:
    return reader.input == producer.output and reader.weights.shape[2] == channels_made(producer)
