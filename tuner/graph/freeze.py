"""Any model on disk as one frozen graph for inference, in place of TensorFlow 1's `freeze_graph`."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from tuner.errors import ModelError
from tuner.graph.added_constant import AddedConstant, add_constant
from tuner.graph.strip_debug import strip_debug_ops
from tuner.model.detection_model import DetectionModel
from tuner.model.endpoints import prune
from tuner.model.graph_view import GraphView, node_name, tensor_name
from tuner.model.loading import load_model
from tuner.model.skip_identities import skip_identities


def freeze(
    path: Path,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
    *,
    checkpoint: Path | None = None,
    constant: AddedConstant | None = None,
    allow_ops: bool = False,
) -> DetectionModel:
    """The model with its variables as constants, without what its outputs do not need and without training's nodes.

    path, inputs, outputs, checkpoint, allow_ops: as `load_model`. constant: is added to a tensor of the graph; the sum
    takes the place of that tensor among the outputs, or comes after them. `outputs` may name the sum.
    Raises ModelError, in one line, for whatever cannot be read, frozen, found or added.
    """
    load = partial(load_model, path, inputs, checkpoint=checkpoint, allow_ops=allow_ops)
    model = load(outputs) if constant is None else _with_constant(_load_with(load, outputs, constant), constant)
    kept = frozenset(map(node_name, (*model.inputs, *model.outputs)))
    stripped = skip_identities(strip_debug_ops(GraphView(model.graph_def, kept)))
    graph_def = prune(stripped.graph_def, model.outputs)
    left = {node.name for node in graph_def.node}
    # A placeholder that only a check read is no input any more.
    read = tuple(name for name in model.inputs if node_name(name) in left)
    return replace(model, graph_def=graph_def, inputs=read)


def _load_with(
    load: Callable[[Sequence[str]], DetectionModel], outputs: Sequence[str], constant: AddedConstant
) -> DetectionModel:
    """The model with the tensor that the constant is added to in the place of the sum among its outputs."""
    if not outputs:
        outputs = load(()).outputs
    named = [constant.to if node_name(name) == constant.output else name for name in outputs]
    return load([*named, constant.to])


def _with_constant(model: DetectionModel, constant: AddedConstant) -> DetectionModel:
    try:
        graph_def = add_constant(model.graph_def, constant)
    except ModelError as error:
        raise ModelError(f"{model.source}: {error}") from error.__cause__
    summed = f"{constant.output}:0"
    outputs = (summed if tensor_name(name) == tensor_name(constant.to) else name for name in model.outputs)
    return replace(model, graph_def=graph_def, outputs=tuple(dict.fromkeys(outputs)))
