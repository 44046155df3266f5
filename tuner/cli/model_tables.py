"""What the commands about one model print: its summary, and how another graph differs from it."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from tuner.cli.app import megabytes
from tuner.graph.summary import Endpoint, Flops
from tuner.precision import Dtype
from tuner.report.table import facts_table, plain_table
from tuner.summary import Summary

_MOST_OPS = 12
_MOST_REASONS = 5


def change_table(
    before: tuple[Mapping[str, int], int],
    after: tuple[Mapping[str, int], int],
    latency_ms: Sequence[float],
    notes: Iterable[str],
) -> Group:
    """Ops by type where their number changed, sizes and, unless empty, median latencies.

    before, after: number of nodes by op type, and bytes of the graph.
    """
    table = plain_table("", "before", "after")
    (old, old_bytes), (new, new_bytes) = before, after
    for op in sorted(old.keys() | new.keys()):
        if old.get(op, 0) != new.get(op, 0):
            table.add_row(op, str(old.get(op, 0)), str(new.get(op, 0)))
    table.add_section()
    table.add_row("all ops", str(sum(old.values())), str(sum(new.values())))
    table.add_row("graph size", megabytes(old_bytes), megabytes(new_bytes))
    if latency_ms:
        table.add_row("latency, median", *(f"{ms:.2f} ms" for ms in latency_ms))
    return Group(table, *(Text(note) for note in notes))


def precision_table(
    ops: Mapping[Dtype, int], sizes: tuple[int, int], notes: Iterable[str], left_in_float: Mapping[str, str]
) -> Group:
    """What `quantize` made. ops: how many compute in each precision. sizes: bytes before and after."""
    table = facts_table()
    table.add_row("graph size", " to ".join(map(megabytes, sizes)))
    for precision in Dtype:
        if precision in ops:
            table.add_row(f"ops in {precision}", str(ops[precision]))
    return Group(table, *(Text(note) for note in notes), *_reasons("left in float", left_in_float))


def summary_table(summary: Summary) -> Group:
    """A summary for people; the names of all ops are in its JSON only."""
    facts, precisions = summary.facts, summary.precisions
    table = facts_table()
    for title, endpoints in (("input", facts.inputs), ("output", facts.outputs)):
        for endpoint in endpoints:
            table.add_row(title, _described(endpoint))
    table.add_row("parameters", f"{facts.parameters:,} in {megabytes(facts.parameters_bytes)}")
    if facts.stored_in_8_bits:
        table.add_row("8-bit weights", f"{facts.stored_in_8_bits:,}, multiplied out to float32")
    table.add_row("graph size", megabytes(facts.size_bytes))
    table.add_row("control flow", f"{facts.while_loops} while loops, {facts.conditions} conditions")
    for row in _flops_rows(summary.flops):
        table.add_row(*row)
    table.add_row("int8 now", str(precisions.int8))
    table.add_row("bf16 now", str(precisions.bf16))
    table.add_row("float32 now", f"{precisions.fp32} convolutions and matrix products")
    table.add_row("can be int8", f"{len(precisions.int8_possible)}, cannot: {len(precisions.int8_refused)}")
    table.add_row("can be bf16", f"{len(precisions.bf16_possible)}, cannot: {len(precisions.bf16_refused)}")
    shown = list(facts.ops.items())[:_MOST_OPS]
    rest = sum(facts.ops.values()) - sum(count for _, count in shown)
    histogram = ", ".join(f"{op} {count}" for op, count in shown)
    table.add_row(f"{sum(facts.ops.values())} ops", histogram + (f", others {rest}" if rest else ""))
    return Group(table, *_reasons("not int8", precisions.int8_refused), *_reasons("not bf16", precisions.bf16_refused))


def _flops_rows(flops: Flops | str) -> list[tuple[str, str]]:
    if isinstance(flops, str):
        return [("GFLOPs", f"unknown: {flops}")]
    shape = " x ".join(map(str, flops.shapes[0]))
    by_op = ", ".join(f"{op} {count / 1e9:.3f}" for op, count in flops.by_op.items())
    rows = [("GFLOPs", f"{flops.total / 1e9:.3f} at {shape}, a multiply-accumulate counted as 2"), ("", by_op)]
    if flops.uncounted:
        rows.append(("", f"not counted: {len(flops.uncounted)} ops inside while loops"))
    return rows


def _described(endpoint: Endpoint) -> str:
    shape = "any shape" if endpoint.shape is None else " x ".join("?" if n is None else str(n) for n in endpoint.shape)
    return f"{endpoint.name}  {endpoint.dtype}  {shape or 'scalar'}"


def _reasons(title: str, reasons: Mapping[str, str]) -> list[RenderableType]:
    """How often each reason was given, the most frequent first."""
    counts = Counter(reasons.values()).most_common()
    lines = [f"{title}: {count} ops: {reason}" for reason, count in counts[:_MOST_REASONS]]
    if len(counts) > _MOST_REASONS:
        lines.append(f"{title}: {len(counts) - _MOST_REASONS} more reasons, see --json of summarize")
    return [Text(line) for line in lines]
