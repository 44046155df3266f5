"""What a person reads at the end of a run: what was gained and lost, and where it lies."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tuner.criterion import Status
from tuner.precision import Dtype
from tuner.report.result import TuningResult
from tuner.trial import CompletedTrial, FailedTrial, Measurement, RejectedTrial, Trial

_STYLES = {Status.ACCEPTED: "bold green", Status.BEST_EFFORT: "bold yellow"}
_SEVERAL_REASONS = 5


def tuning_table(result: TuningResult, workspace: Path) -> Group:
    """The float model against the best graph, the COCO figures of both, and where the files are."""
    seconds = result.seconds.total
    status = result.status.value.replace("_", " ")
    return Group(
        Text.assemble("\n", (status, _STYLES.get(result.status, "bold red")), f": {result.reason}"),
        _comparison(result),
        *([_figures(result)] if result.baseline.metrics else []),
        f"{_trials(result.trials)} in {seconds:.0f} s"
        + (f" (quantise {result.seconds.quantize:.0f} s, evaluate {result.seconds.evaluate:.0f} s)" if seconds else ""),
        *(_note("rewritten", note) for note in _rewritten(result)),
        *_reasons("left in float:", result.refused.values()),
        *_reasons("failed:", (trial.cause for trial in result.trials if isinstance(trial, FailedTrial))),
        *([_path("graph", result.output_model)] if result.best is not None else []),
        _path("result", workspace / "result.json"),
        _path("report", workspace / "report.html"),
    )


def measurement_table(measurement: Measurement, model: Path) -> Group:
    """What `evaluate` found: accuracy, the COCO figures where there are any, latency and size."""
    table = plain_table("", model.name)
    for name, figure in (measurement.metrics or {"accuracy": measurement.accuracy}).items():
        table.add_row(name, f"{figure:.4f}")
    for name, text in _speed_and_size(measurement).items():
        table.add_row(name, text)
    table.add_row("images", str(measurement.images))
    return Group(table)


def _comparison(result: TuningResult) -> Table:
    before, best, limit = result.baseline, result.best, result.criterion
    table = plain_table("", "FP32", *([_formats(best), "change"] if best is not None else []))
    accuracy = "mAP" if "mAP" in before.metrics else "accuracy"
    if result.dataset.labels == "model":
        accuracy = "agreement, mAP"
    if best is None:
        table.add_row(accuracy, f"{before.accuracy:.4f}")
        for name, value in _speed_and_size(before).items():
            table.add_row(name, value)
        return table
    after = best.measurement
    table.add_row(
        accuracy, f"{before.accuracy:.4f}", f"{after.accuracy:.4f}", f"{after.accuracy - before.accuracy:+.4f}"
    )
    if result.relative_loss is not None:
        allowed = f"limit {limit.limit * 100:g}%" if limit.kind == "relative" else ""
        table.add_row("relative loss", "", f"{result.relative_loss:.2%}", allowed)
    if result.loss_interval is not None:
        form = "{:.2%}" if limit.kind == "relative" else "{:.4f}"
        low, high = (form.format(bound) for bound in result.loss_interval)
        table.add_row("on other images", "", f"{low} to {high}", "95 of 100")
    if result.confirmation is not None:
        kept_back = result.confirmation
        table.add_row(
            "images kept back", f"{kept_back.baseline_accuracy:.4f}", f"{kept_back.accuracy:.4f}", f"{kept_back.images}"
        )
    if limit.kind == "absolute":
        loss = (before.accuracy - after.accuracy) * (1 if limit.higher_is_better else -1)
        table.add_row("absolute loss", "", f"{loss:.4f}", f"limit {limit.limit:g}")
    changes = (
        times_text(before.latency_ms, after.latency_ms, "faster", "slower"),
        times_text(before.latency_p90_ms, after.latency_p90_ms, "faster", "slower"),
        times_text(before.size_bytes, after.size_bytes, "smaller", "larger"),
    )
    for (name, value), new, change in zip(
        _speed_and_size(before).items(), _speed_and_size(after).values(), changes, strict=True
    ):
        table.add_row(name, value, new, change)
    for dtype, count in best.applied.count().items():
        table.add_row(f"ops in {dtype.value}", str(len(best.applied) if dtype == "fp32" else 0), str(count), "")
    table.add_row("images", str(before.images), str(after.images), "")
    return table


def _formats(best: CompletedTrial) -> str:
    """What a graph multiplies in besides float."""
    counts = best.applied.count()
    return " + ".join(dtype.value for dtype in (Dtype.INT8, Dtype.BF16) if counts[dtype]) or "fp32"


def _figures(result: TuningResult) -> Table:
    best = result.best
    after = best.measurement.metrics if best is not None else {}
    table = plain_table("COCO figures", "FP32", *([_formats(best), "change"] if best is not None and after else []))
    for name, value in result.baseline.metrics.items():
        new = [f"{after[name]:.4f}", f"{after[name] - value:+.4f}"] if name in after else []
        table.add_row(name, f"{value:.4f}", *new)
    return table


def _speed_and_size(measurement: Measurement) -> dict[str, str]:
    return {
        "latency, median": f"{measurement.latency_ms:.1f} ms",
        "latency, p90": f"{measurement.latency_p90_ms:.1f} ms",
        "file size": f"{measurement.size_bytes / 1e6:.2f} MB",
    }


def times_text(before: float, after: float, gain: str, cost: str) -> str:
    """How many times less or more `after` is than `before`, as "2.00x faster"; nothing where either is 0."""
    if min(before, after) <= 0:
        return ""
    return f"{before / after:.2f}x {gain}" if after <= before else f"{after / before:.2f}x {cost}"


def plain_table(first: str, *columns: str) -> Table:
    """A table without borders whose first column is text, and the others figures."""
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column(first, overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", overflow="fold")
    return table


def facts_table() -> Table:
    """Two columns of text without a title."""
    table = Table(box=box.SIMPLE, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    return table


def _reasons(title: str, reasons: Iterable[str]) -> list[RenderableType]:
    """How often each reason was given, the most frequent first."""
    counts = Counter(reasons).most_common()
    if not counts:
        return []
    shown = [(count, reason) for reason, count in counts[:_SEVERAL_REASONS]]
    if len(counts) > _SEVERAL_REASONS:
        rest = counts[_SEVERAL_REASONS:]
        shown.append((sum(count for _, count in rest), f"for {len(rest)} more reasons, see result.json"))
    grid = Table.grid(padding=(0, 2))
    grid.add_column(min_width=12)
    grid.add_column(justify="right")
    grid.add_column(overflow="fold")
    for index, (count, reason) in enumerate(shown):
        grid.add_row("" if index else title, str(count), Text(reason))
    return [grid]


def _rewritten(result: TuningResult) -> list[str]:
    """What else than int8 makes a difference between the two, and how much of it."""
    if result.rewritten_ms is None:
        return list(result.rewritten)
    return [*result.rewritten, f"with that alone, the float model takes {result.rewritten_ms:.1f} ms"]


def _note(title: str, text: str) -> RenderableType:
    grid = Table.grid()
    grid.add_column(min_width=14)
    grid.add_column(overflow="fold")
    grid.add_row(title, Text(text))
    return grid


def _path(title: str, path: Path) -> Text:
    # Whole, however long: a path that is broken into lines cannot be copied.
    return Text(f"{title:14}{path}", no_wrap=True, overflow="ignore")


def _trials(trials: Sequence[Trial]) -> str:
    rejected = sum(isinstance(trial, RejectedTrial) for trial in trials)
    return _count(len(trials), "trial") + (f", {rejected} of them rejected early," if rejected else "")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
