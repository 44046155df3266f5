"""Cut a detector at its raw heads: the network for another runtime, and the rest as a graph that joins on to it."""

from dataclasses import dataclass, replace

import numpy as np
import tensorflow as tf

from tuner.model.detection_model import DetectionModel
from tuner.model.endpoints import find_inputs, prune, prune_nodes
from tuner.model.frozen_graph import copy_graph, import_graph
from tuner.model.graph_view import GraphView, node_name
from tuner.model.nodes import const_node, op_node
from tuner.quantization.sensitivity import find_heads

# Suppression and loops: what runtimes and converters lack, or run each in their own way.
_ELSEWHERE = ("NonMaxSuppression", "CombinedNonMaxSuppression", "TensorArray", "TensorList")
_LOOPS = ("Enter", "Exit", "While", "StatelessWhile", "If", "StatelessIf")


@dataclass(frozen=True)
class Cut:
    """network: from the image to the heads. postprocess: from the heads to the outputs; None where nothing was cut.

    Both are for one image at a time.
    """

    network: DetectionModel
    postprocess: DetectionModel | None


def cut_at_heads(model: DetectionModel) -> Cut:
    """The model cut behind its last convolutions where suppression or loops come after them, else as it is.

    postprocess has the heads as inputs, by the names of the network's outputs, and the image too where the detections
    depend on its size.
    """
    model = _of_one_image(model)
    heads = tuple(map(node_name, find_heads(model.graph)))
    after = _behind(model.graph, heads)
    kinds = {model.graph.nodes[name].op for name in after}
    if not heads or not any(kind.startswith(_ELSEWHERE) or kind in _LOOPS for kind in kinds):
        return Cut(model, None)
    outputs = tuple(f"{head}:0" for head in heads)
    network = replace(model, graph_def=prune(model.graph_def, outputs), outputs=outputs)
    return Cut(network, _postprocess(model, heads))


def _of_one_image(model: DetectionModel) -> DetectionModel:
    graph_def = copy_graph(model.graph_def)
    inputs = {node_name(name) for name in model.inputs}
    for node in graph_def.node:
        if node.name in inputs and node.attr["shape"].shape.dim:
            node.attr["shape"].shape.dim[0].size = 1
            # What a file may say about shapes besides is of any number of images.
            node.attr.pop("_output_shapes", None)
    return model.with_graph(graph_def)


def _behind(graph: GraphView, heads: tuple[str, ...]) -> set[str]:
    found: set[str] = set()
    pending = list(heads)
    while pending:
        for node in graph.consumers(pending.pop()):
            if node.name not in found:
                found.add(node.name)
                pending.append(node.name)
    return found


def _postprocess(model: DetectionModel, heads: tuple[str, ...]) -> DetectionModel:
    written = {}
    for head in heads:
        written[head] = op_node("Placeholder", head, [], dtype=tf.float32)
        written[head].attr["shape"].shape.CopyFrom(tf.TensorShape(model.graph.shape(head) or None).as_proto())
    # Anchors are laid out by the sizes of feature maps: known sizes do not need the network that makes the maps.
    for node in model.graph_def.node:
        sizes = model.graph.shape(node_name(node.input[0])) if node.op == "Shape" else ()
        if sizes and None not in sizes:
            sizes_type = tf.as_dtype(node.attr["out_type"].type or tf.int32).as_numpy_dtype
            written[node.name] = const_node(node.name, np.array(sizes, sizes_type))
    nodes = [written.get(node.name, node) for node in model.graph_def.node]
    pruned = prune_nodes(nodes, model.outputs, model.graph_def)
    with tf.Graph().as_default() as imported:
        import_graph(pruned)
        inputs = find_inputs(imported, model.outputs)
    # The heads in the network's order, then the image where it is still needed.
    order = [f"{head}:0" for head in heads] + list(model.inputs)
    return replace(model, graph_def=pruned, inputs=tuple(sorted(inputs, key=order.index)))
