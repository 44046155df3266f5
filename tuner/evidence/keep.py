"""What a report shows that takes the models: measured at the end of a run, once, and kept in its workspace."""

import logging
from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from tuner.cache import Cache
from tuner.data.dataset import DetectionDataset
from tuner.errors import TunerError
from tuner.evidence.changed_images import SHOWN, detect_changes, most_changed
from tuner.evidence.op_values import op_values
from tuner.graph.profile import profile
from tuner.model.detection_model import DetectionModel
from tuner.quantization.ranges import Ranges
from tuner.run_record import RunRecord

# Traced runs of either model. Longer ones are left to `tuner profile`.
TRACED_RUNS, WARMUP_RUNS = 3, 1
LONGEST_TRACED_MS = 500.0

_log = logging.getLogger(__name__)


def keep_evidence(
    graph: DetectionModel,
    run: RunRecord,
    *,
    float_model: DetectionModel,
    prepared: DetectionModel,
    ranges: Ranges,
    dataset: DetectionDataset | None,
    image: NDArray[Any],
) -> None:
    """Keep, of a run's best graph, what `RunRecord` has as op_times, op_values and changed_images.

    dataset: the evaluation set; None where an eval_func keeps its own. image: [1, H, W, 3], to take times on.
    What cannot be measured is logged and left out: a report without a picture is no reason to lose a run.
    """
    best = run.best
    if best is None:
        return
    cache, key = Cache(run.workspace), run.records_key(graph.sha256)

    def changes() -> None:
        before, after = run.matches(float_model.sha256), run.matches(graph.sha256)
        if dataset is None or before is None:
            return
        # Without matches of a graph that does not meet the criterion, the first images have to do.
        image_ids = before.image_ids[:SHOWN].tolist() if after is None else most_changed(before, after)
        cache.write_arrays("changed", key, detect_changes(float_model, graph, dataset, image_ids))

    def times() -> None:
        if best.measurement.latency_ms <= LONGEST_TRACED_MS:
            cache.write_json("times", key, {"float": _times(float_model, image), "best": _times(graph, image)})

    def values() -> None:
        cache.write_json("values", key, op_values(prepared, best.proposal.plan, ranges))

    parts: dict[str, Callable[[], None]] = {"changed images": changes, "times": times, "histograms": values}
    for name, keep in parts.items():
        try:
            keep()
        except TunerError as error:
            _log.warning("the report goes without %s: %s", name, error)


def _times(model: DetectionModel, image: NDArray[Any]) -> dict[str, float]:
    """Op type -> microseconds in a run, the slowest first."""
    return {op: us for op, _, us in profile(model, image, runs=TRACED_RUNS, warmup=WARMUP_RUNS).ops}
