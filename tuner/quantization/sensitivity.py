"""How much each operator's rounding disturbs the detector's raw results: measured on a handful of images."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.core.framework.node_def_pb2 import NodeDef

from tuner.model.detection_model import DetectionModel
from tuner.model.endpoints import prune
from tuner.model.frozen_graph import import_graph
from tuner.model.graph_view import GraphView, node_name
from tuner.model.nodes import op_node
from tuner.model.runner import ModelRunner
from tuner.precision import Dtype, PrecisionPlan
from tuner.quantization.gated_simulation import simulate_gated
from tuner.quantization.lowering.convolutions import find_convolutions
from tuner.quantization.ranges import Ranges

# Backward passes for each image. Errors of ops are orders of magnitude apart; these tell them within about a third.
PROJECTIONS = 4
_GATES, _DRAW, _DERIVATIVES = "sensitivity/gates", "sensitivity/draw", "sensitivity/derivatives"
# An image, and the boxes to cut out of it.
_CROP = "CropAndResize"
# Added to squared norms, against results of nothing but zeros.
_TINY = 1e-12


def measure_sensitivity(
    prepared: DetectionModel, plan: PrecisionPlan, ranges: Ranges, images: Iterable[NDArray[np.generic]]
) -> dict[str, float]:
    """The raw results' error when one operator of `plan` alone is int8, to first order in its rounding error.

    Raw results are `find_heads`. The error is the squared distance to the float results over their squared norm,
    averaged over results and images. images: each [1, H, W, 3]. Returns op -> error, for every int8 op of the plan.

    With e the rounding error of an op's result, J the derivative of the raw results by it and r normal numbers, the
    mean of (r J e)^2 over draws of r is |J e|^2 (Hutchinson 1990), and one backward pass gives r J e of all ops. Where
    the graph has no derivative, as behind a while loop or a selection of boxes, ops are rounded one at a time instead.
    A later stage's crops are taken to stay where they are: what moves them counts as an error of the stage before.

    On five real detectors it ranks operators as the heads' error of real graphs with one int8 op does with a mean
    Spearman's rho of 0.68; one at a time reaches 0.73 in up to five times the time, leaving one out 0.22
    (`benchmarks/sensitivity.py`).
    """
    graph = prepared.graph
    convolutions, _ = find_convolutions(graph)
    ops = [name for name in convolutions if name in plan and plan[name].dtype is Dtype.INT8]
    if not ops:
        return {}
    heads = find_heads(graph)
    simulation = prepared.with_graph(prune(simulate_gated(graph, plan, ranges, _GATES).graph_def, heads))
    derived = _with_derivatives(simulation, heads, [convolutions[op].linear_members[-1] for op in ops])
    damage = _one_by_one(simulation, heads, ops, images) if derived is None else _at_once(derived, ops, images)
    return dict(zip(ops, damage.tolist(), strict=True))


def find_heads(graph: GraphView) -> tuple[str, ...]:
    """The raw results: the tensors that convolutions make and no other convolution computes on.

    A stage that says no more to the next one than where to crop (a region proposal network) has raw results, too.
    """
    convolutions, _ = find_convolutions(graph)
    return tuple(convolutions[name].output + ":0" for name in convolutions if _is_last(graph, name, convolutions))


def _at_once(derived: DetectionModel, ops: Sequence[str], images: Iterable[NDArray[np.generic]]) -> NDArray[np.float64]:
    shut = np.zeros(len(ops), np.float32)
    found: list[NDArray[np.float32]] = []
    # Optimising this graph takes longer than the few runs of it.
    with ModelRunner(derived, as_written=True) as runner:
        for image in images:
            for _ in range(PROJECTIONS):
                fed = {f"{_GATES}:0": shut, f"{_DRAW}:0": np.array(len(found), np.int32)}
                found += runner.fetch(derived.outputs, image, fed)
    damage: NDArray[np.float64] = np.mean(np.square(found, dtype=np.float64), axis=0)
    return damage


def _with_derivatives(
    simulation: DetectionModel, heads: Sequence[str], results: Sequence[str]
) -> DetectionModel | None:
    """The simulation with r J e of every op, of [ops], as output, or None where an op has no derivative.

    results: what each op makes, as the gates have it. The derivatives are the float graph's: of rounding errors none
    is taken, and with all gates shut none counts. Nor is any taken of crops by their boxes.
    """
    with tf.Graph().as_default() as graph:
        import_graph(_with_given_crops(GraphView(simulation.graph_def, frozenset(map(node_name, heads)))).graph_def)
        errors, gated = (
            [graph.get_tensor_by_name(f"{one}/{end}:0") for one in results] for end in ("error", "gated_error")
        )
        draw = tf.compat.v1.placeholder(tf.int32, [], _DRAW)
        projection = tf.add_n([_project(graph.get_tensor_by_name(head), draw, i) for i, head in enumerate(heads)])
        try:
            derivatives = tf.gradients(projection / len(heads) ** 0.5, gated, stop_gradients=errors)
        except (LookupError, AttributeError):
            # An op without a derivative, or a while loop: frozen ones have lost what TensorFlow needs for theirs.
            return None
        if any(derivative is None for derivative in derivatives):
            return None
        products = [tf.reduce_sum(by * error) for by, error in zip(derivatives, errors, strict=True)]
        tf.stack(products, name=_DERIVATIVES)
        return replace(simulation, graph_def=graph.as_graph_def(), outputs=(f"{_DERIVATIVES}:0",))


def _with_given_crops(graph: GraphView) -> GraphView:
    """The same graph without a derivative of crops by their boxes, which would lead through loops and selections."""
    crops = [node for node in graph.graph_def.node if node.op == _CROP]
    added = []
    for node in crops:
        # Of integers there is no derivative: TensorFlow does not even look at what comes before them.
        bits, given = f"{node.name}/box_bits", f"{node.name}/given_boxes"
        crop = NodeDef()
        crop.CopyFrom(node)
        crop.input[1] = given
        added += [
            op_node("Bitcast", bits, [node.input[1]], T=tf.float32, type=tf.int32),
            op_node("Bitcast", given, [bits], T=tf.int32, type=tf.float32),
            crop,
        ]
    return graph.replace([node.name for node in crops], added)


def _project(head: tf.Tensor, draw: tf.Tensor, index: int) -> tf.Tensor:
    """The product of a result, over its norm, with normal numbers."""
    numbers = tf.random.stateless_normal(tf.shape(head), tf.stack([draw, index]))
    squared_norm = tf.stop_gradient(tf.reduce_sum(head**2))
    return tf.reduce_sum(head * numbers) / tf.sqrt(squared_norm + _TINY)


def _one_by_one(
    simulation: DetectionModel, heads: Sequence[str], ops: Sequence[str], images: Iterable[NDArray[np.generic]]
) -> NDArray[np.float64]:
    errors = []
    with ModelRunner(simulation) as runner:
        for image in images:
            exact = runner.fetch(heads, image, {f"{_GATES}:0": np.zeros(len(ops), np.float32)})
            opened = (
                runner.fetch(heads, image, {f"{_GATES}:0": gates}) for gates in np.eye(len(ops), dtype=np.float32)
            )
            errors.append([_error(exact, disturbed) for disturbed in opened])
    damage: NDArray[np.float64] = np.mean(errors, axis=0)
    return damage


def _error(exact: Sequence[NDArray[np.float32]], disturbed: Sequence[NDArray[np.float32]]) -> float:
    shares = [
        float(np.sum((value - reference) ** 2, dtype=np.float64) / (np.sum(reference**2, dtype=np.float64) + _TINY))
        for value, reference in zip(disturbed, exact, strict=True)
    ]
    return sum(shares) / len(shares)


def _is_last(graph: GraphView, name: str, convolutions: Mapping[str, object]) -> bool:
    """Whether no other convolution depends on this one, but for what it is told about places and sizes."""
    seen: set[str] = set()
    pending = [name]
    while pending:
        read = pending.pop()
        for consumer in graph.consumers(read):
            if consumer.op == "Shape" or (consumer.op == _CROP and node_name(consumer.input[0]) != read):
                continue
            if consumer.name in convolutions:
                return False
            if consumer.name not in seen:
                seen.add(consumer.name)
                pending.append(consumer.name)
    return True
