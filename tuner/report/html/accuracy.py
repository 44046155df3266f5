"""Accuracy taken apart: by category and by the size of the objects, the float model against the best graph."""

import numpy as np

from tuner.evaluation.match_records import MatchRecords, average_precisions
from tuner.report.html.figure import colour, inline_svg, new_figure
from tuner.report.html.markup import EMPTY, Part, picture, table
from tuner.run_record import RunRecord

CATEGORIES, SIZES = "Average precision by category", "Average precision by object size"
MOST_CATEGORIES = 20


def by_category(run: RunRecord) -> Part:
    """Both models' average precision of each category, the one that lost most first."""
    before = run.matches(run.facts.model_sha256)
    after = None if run.best is None else run.matches(run.best.graph_sha256)
    if before is None or after is None:
        return Part(
            CATEGORIES,
            None,
            "Not known: detections are kept of graphs that meet the criterion, and an eval_func tells of none.",
        )
    old_precisions, new_precisions = (
        average_precisions(records, np.ones((1, len(records))))[0].tolist() for records in (before, after)
    )
    rows = sorted(
        zip(_names(run, before), old_precisions, new_precisions, strict=True),
        key=lambda row: row[2] - row[1],
    )
    shown = rows[:MOST_CATEGORIES]
    figure, axes = new_figure(1.1 + 0.26 * len(shown))
    hints = {}
    for index, (name, old, new) in enumerate(reversed(shown)):
        axes.plot([old, new], [index, index], color=colour("line"), lw=2, zorder=1)
        axes.plot(old, index, "D", color=colour("float"), ms=6, label="float model" if index == 0 else None)
        axes.plot(
            new, index, "o", color=colour("int8"), ms=6, gid=f"category{index}",
            label="best graph" if index == 0 else None,
        )  # fmt: skip
        hints[f"category{index}"] = f"{name}: {old:.4f} to {new:.4f}, {new - old:+.4f}"
    axes.set_yticks(range(len(shown)), [name[:24] for name, *_ in reversed(shown)], fontsize=9)
    axes.set_ylim(-0.7, len(shown) - 0.3)
    axes.set_xlabel("average precision, IoU 0.50 to 0.95")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.55 / (0.1 + 0.26 * len(shown))), ncols=2, fontsize=9)
    svg = inline_svg(figure, "categories", CATEGORIES, hints)
    of_all = f"The {len(shown)} of {len(rows)} categories that lost most." if len(rows) > len(shown) else ""
    caption = f"{of_all} Worst first, with the number of objects; few objects move far by chance.".strip()
    return Part(CATEGORIES, picture(svg, caption), wide=False)


def by_size(run: RunRecord) -> Part:
    """COCO's figures for small, medium and large objects, and the others."""
    best, baseline = run.best, run.baseline
    if best is None or baseline is None or not baseline.metrics:
        return Part(SIZES, None, "Not known: no plan was measured in full, or an eval_func gives one number.")
    after = best.measurement.metrics
    rows = [
        (name, f"{value:.4f}", f"{after[name]:.4f}", f"{after[name] - value:+.4f}")
        for name, value in baseline.metrics.items()
        if name in after
    ]
    sized = [row for row in rows if row[0].endswith(("_small", "_medium", "_large"))]
    sized.sort(key=lambda row: after[row[0]] - baseline.metrics[row[0]])
    rows = [*sized, *(row for row in rows if row not in sized)]
    return Part(
        SIZES, table(["figure", "float", "best graph", "change"], rows, texts=["figure"]) if rows else EMPTY, wide=False
    )


def _names(run: RunRecord, records: MatchRecords) -> list[str]:
    return [
        f"{category_name(run, int(number))} ({count})"
        for number, count in zip(records.category_ids, records.objects.sum(0), strict=True)
    ]


def category_name(run: RunRecord, number: int) -> str:
    """What a category is called; its number where that is not known."""
    return run.facts.category_names.get(str(number), f"category {number}")
