"""The first screen: did it meet the criterion, what was lost, how much faster and smaller, where is the file."""

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from tuner.criterion import loss, passes
from tuner.report.html.losses import Judged, formats, loss_text
from tuner.report.html.markup import join
from tuner.report.table import times_text
from tuner.run_record import RunRecord

_HEADLINES = {
    "accepted": "The graph meets the criterion",
    "best_effort": "No graph meets the criterion; this one loses least",
    "failed": "No graph was made",
    "interrupted": "Stopped before the end",
}


def summary(run: RunRecord, judged: list[Judged]) -> Markup:
    """The headline and four cards; of an unfinished run what is known so far."""
    status = None if run.result is None else str(run.result["status"])
    met = _meets(run)
    headline = _HEADLINES.get(status or "", "The run has not ended, or was cut off: what is known so far")
    if status in (None, "interrupted") and run.best is not None:
        headline += "; the best graph so far " + ("meets the criterion" if met else "does not meet the criterion")
    reason = "" if run.result is None else f"The search ended: {run.result['reason']}."
    return Markup('<h1 class="{}">{}</h1><p>{}</p><div class="cards">{}</div>').format(
        "good" if met and status != "best_effort" else "bad", headline, reason, join(_cards(run, judged))
    )


def _cards(run: RunRecord, judged: list[Judged]) -> list[Markup]:
    baseline, best = run.baseline, run.best
    if baseline is None:
        return [_card("accuracy", "not measured yet", "the float model was not evaluated")]
    # Of a run that ended, latencies that were taken in turns.
    before: Mapping[str, Any] = baseline.to_json() if run.result is None else run.result["baseline"]
    metric = "mAP" if baseline.metrics else "accuracy"
    if best is None:
        return [
            _card(metric, f"{baseline.accuracy:.4f}", "float; no plan was measured in full yet"),
            _card("latency", f"{before['latency_ms']:.1f} ms", "float"),
            _card("file size", _megabytes(before["size_bytes"]), "float"),
        ]
    after: Mapping[str, Any] = best.measurement.to_json() if run.result is None else run.result["best"]
    criterion = run.config.tuning.accuracy_criterion
    lost = loss(criterion, baseline, best.measurement)
    interval = next((one.interval for one in judged if one.trial.number == best.number), None)
    interval = interval if run.result is None else run.result["best"]["loss_interval_95"] or interval
    bounds = (
        ""
        if interval is None
        else f"; on 95 of 100 other sets of images {loss_text(run, interval[0])} to {loss_text(run, interval[1])}"
    )
    kind = "relative " if criterion.kind == "relative" else ""
    cards = [
        _card(
            f"{kind}loss; {loss_text(run, criterion.limit)} is allowed",
            loss_text(run, lost) + (" (a gain)" if lost < 0 else ""),
            f"{metric} {baseline.accuracy:.4f} to {best.measurement.accuracy:.4f}{bounds}",
        ),
        _card(
            "speed",
            times_text(before["latency_ms"], after["latency_ms"], "faster", "slower"),
            f"median {before['latency_ms']:.1f} ms to {after['latency_ms']:.1f} ms",
        ),
        _card(
            "size",
            times_text(before["size_bytes"], after["size_bytes"], "smaller", "larger"),
            f"{_megabytes(before['size_bytes'])} to {_megabytes(after['size_bytes'])}",
        ),
        _card("operators", formats(best), f"trial {best.number + 1} of {len(run.trials)}: {best.proposal.idea}"),
    ]
    where = run.facts.output_model if run.result is None else run.result["best"]["output_model"]
    written = "" if run.result is not None else " (once the run ends, or is stopped by Ctrl-C)"
    file = Markup('<div class="card wide"><span>the graph is in{}</span><br><code>{}</code></div>').format(
        written, where
    )
    return [*cards, file]


def _meets(run: RunRecord) -> bool:
    if run.baseline is None or run.best is None:
        return False
    return passes(run.config.tuning.accuracy_criterion, run.baseline, run.best.measurement)


def _card(title: str, figure: str, more: str) -> Markup:
    return Markup('<div class="card"><span>{}</span><b>{}</b><span>{}</span></div>').format(title, figure, more)


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.2f} MB"
