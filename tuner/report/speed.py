"""How fast models are and where their time goes, for a person to read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from tuner.report.table import plain_table, times_text

_FIGURES = {
    "latency, median": ("median_ms", "{:.2f} ms"),
    "latency, p90": ("p90_ms", "{:.2f} ms"),
    "latency, p99": ("p99_ms", "{:.2f} ms"),
    "latency, least": ("min_ms", "{:.2f} ms"),
    "latency, mean": ("mean_ms", "{:.2f} ms"),
    "images per second": ("images_per_s", "{:.1f}"),
}


@dataclass(frozen=True, slots=True)
class TimedRun:
    """A model's times on batches of one size, in ms for one batch.

    xla: whether XLA was to compile what it can. xla_clusters: how many parts of the graph it did compile.
    """

    model: str
    xla: bool
    batch_size: int
    median_ms: float
    p90_ms: float
    p99_ms: float
    min_ms: float
    mean_ms: float
    images_per_s: float
    xla_clusters: int = 0

    @property
    def title(self) -> str:
        """The model's name, and how it ran."""
        return f"{self.model}, XLA" if self.xla else self.model


def latency_table(runs: Sequence[TimedRun]) -> Group:
    """Runs side by side, a table for each batch size; the others are compared with the first."""
    parts: list[RenderableType] = []
    for batch_size, of_size in _by_batch_size(runs).items():
        first, *others = of_size
        table = plain_table(f"batch of {batch_size}", *(run.title for run in of_size))
        for row, (field, form) in _FIGURES.items():
            table.add_row(row, *(form.format(getattr(run, field)) for run in of_size))
        if any(run.xla for run in of_size):
            table.add_row("XLA clusters", *(str(run.xla_clusters) for run in of_size))
        if others:
            table.add_row("median", "", *(_change(first, run) for run in others))
        parts.append(table)
    return Group(*parts, *map(Text, _not_compiled(runs)))


def latency_markdown(runs: Sequence[TimedRun]) -> str:
    """Runs as a Markdown table, a row for each; the others of a batch size are compared with its first."""
    titles = ["batch", "model", *_FIGURES, *(["XLA clusters"] if any(run.xla for run in runs) else []), "median"]
    lines = [titles, ["---:", ":---", *["---:"] * (len(titles) - 2)]]
    for batch_size, of_size in _by_batch_size(runs).items():
        for run in of_size:
            figures = [form.format(getattr(run, field)) for field, form in _FIGURES.values()]
            clusters = [str(run.xla_clusters)] if "XLA clusters" in titles else []
            change = "" if run is of_size[0] else _change(of_size[0], run)
            lines.append([str(batch_size), run.title.replace("|", "\\|"), *figures, *clusters, change])
    notes = [f"\n{note}" for note in _not_compiled(runs)]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), *notes])


def profile_tables(figures: Mapping[str, Any], top: int) -> Group:
    """What a profile's JSON object says: parts of the detector, then the `top` slowest op types and nodes."""
    whole = f"{figures['total_us'] / 1000:.2f} ms"
    parts = plain_table("part of the detector", "time", "share")
    for name, stage in figures["stages"].items():
        parts.add_row(name, *_time_and_share(stage))
    parts.add_row("all nodes", whole, "")
    ops = plain_table("op type", "calls", "time", "share")
    for row in figures["ops"][:top]:
        ops.add_row(row["op"], str(row["calls"]), *_time_and_share(row))
    nodes = plain_table("node", "op type", "time", "share")
    for row in figures["nodes"][:top]:
        nodes.add_row(row["name"], row["op"], *_time_and_share(row))
    copies = plain_table("copies between CPU and GPU", "number", "size", "time")
    for row in figures["copies"]:
        size, time = f"{row['bytes'] / 1e6:.3f} MB", f"{row['time_us'] / 1000:.3f} ms"
        copies.add_row(row["direction"], str(row["copies"]), size, time)
    return Group(
        Text(f"\na run takes {figures['latency_ms']:.2f} ms without tracing (median of {figures['runs']})"),
        *(parts, ops, nodes),
        *([copies] if figures["copies"] else []),
    )


def _by_batch_size(runs: Sequence[TimedRun]) -> dict[int, list[TimedRun]]:
    return {run.batch_size: [one for one in runs if one.batch_size == run.batch_size] for run in runs}


def _change(first: TimedRun, run: TimedRun) -> str:
    return times_text(first.median_ms, run.median_ms, "faster", "slower")


def _not_compiled(runs: Sequence[TimedRun]) -> list[str]:
    return [
        f"{run.title}, batch of {run.batch_size}: XLA compiled nothing of it"
        for run in runs
        if run.xla and not run.xla_clusters
    ]


def _time_and_share(row: Mapping[str, float]) -> tuple[str, str]:
    return f"{row['time_us'] / 1000:.3f} ms", f"{row['share']:.1%}"
