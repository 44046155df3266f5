"""The graph of a trained detector as inference needs it: nothing that trains or checks, and everything folded."""

import logging

from tuner.graph.fold_constants import fold_constants
from tuner.graph.fold_scale_and_shift import fold_scale_and_shift
from tuner.graph.map_loop import NotRecognisedError
from tuner.graph.merge_duplicates import merge_duplicates
from tuner.graph.strip_debug import strip_debug_ops
from tuner.graph.strip_dropout import strip_dropout
from tuner.model.detection_model import DetectionModel
from tuner.model.fold_batch_norm import fold_batch_norm
from tuner.model.graph_view import GraphView
from tuner.model.skip_identities import skip_identities

LOGGER = logging.getLogger(__name__)


def optimize_for_inference(model: DetectionModel) -> DetectionModel:
    """The same detector without training and debug nodes, with constants and BatchNorm folded and duplicates merged.

    Inputs and outputs keep their names. Results differ by what rounding of float32 makes of another order of the same
    arithmetic; `check_same_results` measures it.
    """
    graph = skip_identities(strip_dropout(strip_debug_ops(model.graph)))
    graph = _with_constants(graph)
    # What one folding leaves behind, a factor or another BatchNorm, may be the next one's.
    while (folded := fold_scale_and_shift(fold_batch_norm(graph))).graph_def != graph.graph_def:
        graph = folded
    return model.with_graph(merge_duplicates(graph).graph_def)


def _with_constants(graph: GraphView) -> GraphView:
    try:
        return fold_constants(graph)
    except NotRecognisedError as reason:
        LOGGER.warning("constants are left as they are: %s", reason)
        return graph
