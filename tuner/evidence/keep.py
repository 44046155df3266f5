"""What a report shows that takes the models: measured at the end of a run, once, and kept in its workspace."""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from numpy.typing import NDArray

from tuner.cache import Cache
from tuner.data.dataset import DetectionDataset
from tuner.errors import TunerError
from tuner.evidence.changed_images import detect_changes, most_changed
from tuner.evidence.op_values import op_values
from tuner.graph.profile import profile_running
from tuner.model.detection_model import DetectionModel
from tuner.model.runner import ModelRunner
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
    What cannot be measured is logged and left out: a report without a picture is no reason to lose a run. Ctrl-C leaves
    out what is being measured.
    """
    best = run.best
    if best is None:
        return
    cache, key = Cache(run.workspace), run.records_key(graph.sha256)

    def changes(runners: Mapping[str, ModelRunner]) -> None:
        before, after = run.matches(float_model.sha256), run.matches(graph.sha256)
        if dataset is not None and before is not None and after is not None:
            found = detect_changes(runners, dataset, most_changed(before, after))
            cache.write_arrays("changed", key, found)

    def times(runners: Mapping[str, ModelRunner]) -> None:
        if best.measurement.latency_ms <= LONGEST_TRACED_MS:
            cache.write_json("times", key, {name: _times(runner, image) for name, runner in runners.items()})

    def values() -> None:
        cache.write_json("values", key, op_values(prepared, best.proposal.plan, ranges))

    def of_running() -> None:
        # One session of each for both: where a graph has thousands of nodes, starting one takes most of the time.
        with (
            ModelRunner(float_model, keeps_graphs=True) as of_float,
            ModelRunner(graph, keeps_graphs=True) as of_best,
        ):
            runners = {"float": of_float, "best": of_best}
            _attempt("changed images", partial(changes, runners))
            _attempt("times", partial(times, runners))

    _attempt("changed images and times", of_running)
    _attempt("histograms", values)


def _attempt(name: str, keep: Callable[[], None]) -> None:
    try:
        keep()
    except TunerError as error:
        _log.warning("the report goes without %s: %s", name, error)
    except KeyboardInterrupt:
        _log.warning("the report goes without %s: Ctrl-C", name)


def _times(runner: ModelRunner, image: NDArray[Any]) -> dict[str, float]:
    """Op type -> microseconds in a run, the slowest first."""
    return {op: us for op, _, us in profile_running(runner, image, runs=TRACED_RUNS, warmup=WARMUP_RUNS).ops}
