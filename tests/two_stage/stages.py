"""What must hold of the operators that a plan may decide about, by the structure of the graph and not by its names."""

import tensorflow as tf

from tuner.model.graph_view import GraphView, node_name
from tuner.quantization.lowering.bfloat16 import to_bfloat16
from tuner.quantization.lowering.convolutions import MATCHES
from tuner.quantization.quantize import QuantizableOps

# What suppresses, sorts and selects boxes, and what carries values out of loops over images: no layers of a network.
SELECTIONS = ("NonMaxSuppression", "CombinedNonMaxSuppression", "TopK", "Where", "TensorArrayGather", "GatherV2")
CROP = "CropAndResize"


def assert_only_layers(graph: GraphView, ops: QuantizableOps) -> None:
    """Every product of a prepared graph is among `ops`, found or refused, and none of them has to do with boxes.

    No op lies in a loop. One that reads what other ops made reads it through layers and crops of layers, and through no
    selection: of boxes it knows where features are cut out, and no more. The others read the preprocessed images.
    """
    products = {node.name for node in graph.graph_def.node if node.op in MATCHES}
    assert set(ops.names) | set(ops.refused) == products
    assert not products & graph.loop_body
    for name in ops.names:
        sources = made_of(graph, name, products)
        selections = [one for one in sources if graph.nodes[one].op.startswith(SELECTIONS)]
        assert not (sources & products and selections), (name, selections)


def assert_only_layers_become_bfloat16(graph: GraphView, ops: QuantizableOps) -> None:
    """With every op in bf16 that gains by it, so is what lies between them, and nothing that makes or reads boxes."""
    written = to_bfloat16(graph, ops.names)
    changed = [
        node.name
        for node in written.graph_def.node
        if node.op not in ("Cast", "Const") and node.attr["T"].type == tf.bfloat16
    ]
    assert changed
    products = {node.name for node in graph.graph_def.node if node.op in MATCHES}
    for name in changed:
        assert name not in written.loop_body
        # A layer is made of ops, or is one; what decodes boxes is made of anchors and of selections, too.
        sources = made_of(written, name, products)
        assert sources & products or name in products, name
        assert not [one for one in sources if written.nodes[one].op.startswith((*SELECTIONS, "Exp"))], name


def made_of(graph: GraphView, name: str, products: set[str]) -> set[str]:
    """The nodes that a node's data come through, back to the products before it and with them.

    Not its weights, nor the sizes of tensors, nor what tells where to crop.
    """
    found: set[str] = set()
    pending = _data(graph, name)
    while pending:
        one = pending.pop()
        if one not in found:
            found.add(one)
            if one not in products:
                pending += _data(graph, one)
    return found


def _data(graph: GraphView, name: str) -> list[str]:
    node = graph.nodes[name]
    if node.op == "Shape":
        return []
    is_first_only = node.op in (*MATCHES, CROP, "Reshape", "BiasAdd", "Mean", "ResizeBilinear", "Transpose")
    reads = node.input[:1] if is_first_only else node.input
    return [node_name(tensor) for tensor in reads if not tensor.startswith("^")]
