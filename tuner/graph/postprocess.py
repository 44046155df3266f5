"""The whole optimisation of what surrounds a detector's network, checked against the graph it came from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.errors import ModelError
from tuner.graph.batched_nms import batch_multi_class_nms
from tuner.graph.compare import differences
from tuner.graph.fold_constants import fold_constants
from tuner.graph.fuse_transposes import fuse_transposes
from tuner.graph.map_loop import NotRecognisedError
from tuner.graph.preprocessor import batch_preprocessor
from tuner.model.detection_model import DetectionModel
from tuner.model.graph_view import GraphView, node_name
from tuner.model.runner import ModelRunner

TOLERANCE = 1e-5
# So many images show whether the rewritten graph finds the same.
OPTIMIZATION_IMAGES = 10

_TRANSFORMATIONS: dict[str, Callable[[GraphView], GraphView]] = {
    "preprocessing": batch_preprocessor,
    "non-max suppression": batch_multi_class_nms,
}


@dataclass(frozen=True)
class Optimization:
    """A detector with what surrounds its network rewritten, or as it was.

    notes: what was done, or why it was not, in one line each; none where the graph has nothing of the kind.
    done: whether the model is a rewritten one.
    """

    model: DetectionModel
    notes: tuple[str, ...] = ()
    done: bool = False


def optimize_postprocess(model: DetectionModel, images: Sequence[NDArray[Any]]) -> Optimization:
    """Rewrite the Object Detection API's while loops and per-class ops, where the detections stay the same.

    images: each [1, H, W, 3]; every one is run through both graphs, and the first one and its mirror image as a batch
    where the model takes one. The original comes back where a box, class or score differs by more than 1e-5.
    """
    graph = GraphView(model.graph_def, frozenset(map(node_name, model.outputs)))
    done, notes = [], []
    for title, transform in _TRANSFORMATIONS.items():
        try:
            changed = transform(graph)
        except NotRecognisedError as reason:
            notes.append(f"{title} left as it is: {reason}")
            continue
        if changed is not graph:
            done.append(title)
            graph = changed
    if not done:
        return Optimization(model, tuple(notes))
    try:
        # Only now: sizes are known behind loops that are gone.
        graph = fold_constants(graph)
    except NotRecognisedError as reason:
        notes.append(f"constants left as they are: {reason}")
    rewritten = model.with_graph(fuse_transposes(graph).graph_def)
    fault = _first_difference(model, rewritten, images)
    if fault is not None:
        return Optimization(model, (*notes, f"{' and '.join(done)} left as they are: {fault}"))
    nodes = f"{len(model.graph_def.node)} to {len(rewritten.graph_def.node)} nodes"
    note = f"{' and '.join(done)} batched, {nodes}, same detections on {len(images)} images"
    return Optimization(rewritten, (note, *notes), done=True)


def _first_difference(model: DetectionModel, rewritten: DetectionModel, images: Sequence[NDArray[Any]]) -> str | None:
    """What differs first between the two on these images, or None.

    Both run as written: TensorFlow's own rewriting changes the last bits, and differently where shapes are known.
    """
    batches = [(f"image {number}", image) for number, image in enumerate(images, 1)]
    if _takes_batches(model):
        batches.append(("a batch of two", np.concatenate([images[0], images[0][:, :, ::-1]])))
    with ModelRunner(model, as_written=True) as before, ModelRunner(rewritten, as_written=True) as after:
        for what, batch in batches:
            expected = before.run(batch)
            try:
                found = after.run(batch)
            except ModelError as error:
                return f"{what}: {error}"
            for output, difference in differences(expected, found).items():
                if difference > TOLERANCE:
                    return f"{output} differs by {difference:.2g} on {what}"
    return None


def _takes_batches(model: DetectionModel) -> bool:
    """Whether the input's first axis is open."""
    name = node_name(model.inputs[0])
    shape = next(node.attr["shape"].shape for node in model.graph_def.node if node.name == name)
    return bool(shape.unknown_rank or (len(shape.dim) > 0 and shape.dim[0].size == -1))
