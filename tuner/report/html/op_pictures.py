"""The operators as pictures: what int8 of each would damage, which types take the time, which values they see."""

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import FuncFormatter, MaxNLocator

from tuner.precision import Dtype, PrecisionPlan
from tuner.report.html.figure import colour, inline_svg, new_figure
from tuner.report.html.histogram import histogram_svg
from tuner.report.html.markup import EMPTY, Part, join, picture
from tuner.run_record import RunRecord

SENSITIVITY, TIMES, VALUES = "Sensitivity of each operator", "Time by operator type", "Values and chosen ranges"
MOST_OPS, MOST_TYPES, MOST_HISTOGRAMS = 40, 14, 6
COLOUR_OF = {Dtype.INT8: "int8", Dtype.BF16: "bf16", Dtype.FP32: "float"}
_LONGEST_NAME = 30


def sensitivity(run: RunRecord) -> Part:
    """Bars of the damage that int8 of each operator does, coloured by what it is in the best graph."""
    if not run.damage or run.best is None:
        return Part(SENSITIVITY, None, "Not measured: the search did not need it, or did not come so far.")
    applied = run.best.applied
    ranked = sorted(run.damage.items(), key=lambda item: -item[1])
    shown = ranked[:MOST_OPS][::-1]
    figure, axes = new_figure(0.9 + 0.2 * len(shown))
    hints = {}
    for row, (op, damage) in enumerate(shown):
        gid, dtype = f"op{row}", _dtype(applied, op)
        axes.barh(row, damage, color=colour(COLOUR_OF[dtype]), gid=gid)
        # The patch's own group carries the id.
        axes.patches[-1].set_gid(gid)
        hints[gid] = f"{op}: {dtype.value}, damage {damage:.3g}{_saved_text(run, op)}"
    for dtype, name in COLOUR_OF.items():
        if any(_dtype(applied, op) is dtype for op, _ in shown):
            axes.barh(0, 0, color=colour(name), label=f"{dtype.value} in the best graph")
    axes.set_yticks(range(len(shown)), [_shortened(op) for op, _ in shown], fontsize=9.5)
    axes.set_ylim(-0.7, len(shown) - 0.3)
    axes.grid(axis="y", visible=False)
    # An exponent of the whole axis would lie on its label.
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.set_xlabel("squared error over squared result")
    axes.legend(loc="lower right", fontsize=10)
    of_all = f"The {len(shown)} most sensitive of {len(ranked)}. " if len(ranked) > len(shown) else ""
    caption = f"{of_all}How much more wrong the results get with it in int8, foreseen on a few images."
    return Part(SENSITIVITY, picture(inline_svg(figure, "sensitivity", SENSITIVITY, hints), caption), wide=False)


def op_times(run: RunRecord) -> Part:
    """Bars of the time by type in the float model and in the best graph."""
    if run.op_times is None:
        return Part(
            TIMES,
            None,
            "Not measured: the run did not end, or its graphs take too long to be traced on the way; "
            "`tuner profile MODEL` traces one.",
        )
    before, after = (_by_kind(run.op_times[name]) for name in ("float", "best"))
    types = sorted(before.keys() | after.keys(), key=lambda op: -max(before.get(op, 0), after.get(op, 0)))
    shown, rest = types[:MOST_TYPES], types[MOST_TYPES:]
    rows = [(op, before.get(op, 0.0), after.get(op, 0.0)) for op in shown]
    if rest:
        rows.append((f"{len(rest)} more", sum(before.get(op, 0) for op in rest), sum(after.get(op, 0) for op in rest)))
    figure, axes = new_figure(1.0 + 0.34 * len(rows))
    hints = {}
    for index, (op, float_us, best_us) in enumerate(reversed(rows)):
        for offset, us, name, title in (
            (0.19, float_us, "float", "float model"),
            (-0.19, best_us, "int8", "best graph"),
        ):
            gid = f"type{index}{name}"
            axes.barh(index + offset, us / 1000, 0.36, color=colour(name), label=title if index == 0 else None)
            axes.patches[-1].set_gid(gid)
            hints[gid] = f"{op}, {title}: {us / 1000:.3f} ms"
    axes.set_yticks(range(len(rows)), [_shortened(op) for op, *_ in reversed(rows)], fontsize=10)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("ms in a traced run")
    axes.legend(loc="lower right", fontsize=10)
    of_all = f"all nodes: {sum(before.values()) / 1000:.1f} ms and {sum(after.values()) / 1000:.1f} ms"
    caption = f"A few traced runs of each; tracing adds time, and nodes may run side by side ({of_all})."
    return Part(TIMES, picture(inline_svg(figure, "types", TIMES, hints), caption), wide=False)


def histograms(run: RunRecord) -> Part:
    """Weights and inputs of the most sensitive operators, with what their codes span."""
    if not run.op_values:
        return Part(VALUES, None, "Not kept: the run did not end.")
    damage, held = run.damage or {}, run.op_values
    known = [op for op, values in held.items() if "input" in values]
    if damage:
        chosen = sorted(known, key=lambda op: -damage.get(op, 0.0))[:MOST_HISTOGRAMS]
        note = "Of the most sensitive operators."
    else:
        chosen = sorted(known, key=lambda op: -_tail(held[op]["input"]))[:MOST_HISTOGRAMS]
        note = "Sensitivities were not measured: of the operators whose inputs have the longest tails."
    pieces = []
    for op in chosen:
        both = Markup('<div class="pair">{}{}</div>').format(
            histogram_svg(held[op]["weights"], "weights", "muted"), histogram_svg(held[op]["input"], "input", "int8")
        )
        pieces.append(picture(both, op))
    legend = " Counts are on a logarithmic axis; what lies between the dashed lines has a code of its own."
    return Part(VALUES, Markup('<div class="grid">{}</div>').format(join(pieces)) if pieces else EMPTY, note + legend)


def _tail(held: Mapping[str, Any]) -> float:
    """How far the extreme lies from where 99.9 of 100 magnitudes are: 1 for no tail."""
    counts = np.array(held["counts"], np.float64)
    middles = np.abs(np.linspace(held["low"], held["high"], len(counts)))
    order = np.argsort(middles)
    below = np.cumsum(counts[order])
    usual = middles[order][min(int(np.searchsorted(below, 0.999 * below[-1])), len(counts) - 1)]
    return float(middles.max() / max(usual, 1e-12)) if math.isfinite(below[-1]) and below[-1] else 0.0


def _dtype(applied: PrecisionPlan, op: str) -> Dtype:
    return applied[op].dtype if op in applied else Dtype.FP32


def _saved_text(run: RunRecord, op: str) -> str:
    costs = (run.costs or {}).get(op)
    return "" if costs is None else f"; int8 saves {costs['fp32_us'] - costs['int8_us']:.0f} us there"


def _by_kind(times_us: Mapping[str, float]) -> dict[str, float]:
    """Times by type, oneDNN's own forms of an operator (`_MklConv2D`, `_FusedConv2D`) as they are, but for the `_`."""
    sums: dict[str, float] = defaultdict(float)
    for op, us in times_us.items():
        sums[op.lstrip("_")] += us
    return sums


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else "…" + name[-_LONGEST_NAME + 1 :]
