"""A run's outcome as HTML for a notebook: a few rows of figures, in colours that the notebook's own theme gives."""

from collections.abc import Iterator, Sequence
from html import escape

from tuner.criterion import Status
from tuner.report.result import TuningResult
from tuner.report.table import times_text

_COLOURS = {Status.ACCEPTED: "#2e7d32", Status.BEST_EFFORT: "#b26a00"}
_RIGHT = "text-align:right;padding:0 0.8em"


def result_html(result: TuningResult) -> str:
    """The outcome, the float model beside the best graph, and where that is: HTML that needs nothing else."""
    best = result.best
    colour = _COLOURS.get(result.status, "#c62828")
    status = result.status.value.replace("_", " ")
    head = "".join(f'<th style="{_RIGHT}">{title}</th>' for title in ("", "float", "best", "change"))
    rows = "".join(_row(cells) for cells in _figures(result))
    where = "" if best is None else f"<div>graph: <code>{escape(str(result.output_model))}</code></div>"
    trials = f"{len(result.trials)} trial{'' if len(result.trials) == 1 else 's'} in {result.seconds.total:.0f} s"
    return (
        f'<div><div><b style="color:{colour}">{escape(status)}</b>: {escape(result.reason)}</div>'
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        f"{where}<div>{trials}; model: <code>{escape(str(result.model.path))}</code></div></div>"
    )


def _figures(result: TuningResult) -> Iterator[Sequence[str]]:
    before, criterion = result.baseline, result.criterion
    after = None if result.best is None else result.best.measurement
    accuracy = "mAP" if "mAP" in before.metrics else "accuracy"
    if result.dataset.labels == "model":
        accuracy = "agreement, mAP"
    if after is None or result.best is None:
        yield accuracy, f"{before.accuracy:.4f}"
        yield "latency, median", f"{before.latency_ms:.1f} ms"
        yield "file size", f"{before.size_bytes / 1e6:.2f} MB"
        return
    yield accuracy, f"{before.accuracy:.4f}", f"{after.accuracy:.4f}", f"{after.accuracy - before.accuracy:+.4f}"
    relative = criterion.kind == "relative"
    if relative and result.relative_loss is not None:
        yield "relative loss", "", f"{result.relative_loss:.2%}", f"limit {criterion.limit * 100:g}%"
    elif not relative:
        lost = (before.accuracy - after.accuracy) * (1 if criterion.higher_is_better else -1)
        yield "absolute loss", "", f"{lost:.4f}", f"limit {criterion.limit:g}"
    if result.loss_interval is not None:
        low, high = (f"{bound:.2%}" if relative else f"{bound:.4f}" for bound in result.loss_interval)
        yield "on other images", "", f"{low} to {high}", "95 of 100"
    faster = times_text(before.latency_ms, after.latency_ms, "faster", "slower")
    yield "latency, median", f"{before.latency_ms:.1f} ms", f"{after.latency_ms:.1f} ms", faster
    smaller = times_text(before.size_bytes, after.size_bytes, "smaller", "larger")
    yield "file size", f"{before.size_bytes / 1e6:.2f} MB", f"{after.size_bytes / 1e6:.2f} MB", smaller
    for dtype, count in result.best.applied.count().items():
        yield f"ops in {dtype.value}", "", str(count)
    yield "images", str(before.images), str(after.images)


def _row(cells: Sequence[str]) -> str:
    first, *others = (escape(cell) for cell in [*cells, "", "", ""][:4])
    told = "".join(f'<td style="{_RIGHT}">{cell}</td>' for cell in others)
    return f'<tr><td style="text-align:left">{first}</td>{told}</tr>'
