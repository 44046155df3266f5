"""Accuracy taken apart: by category and by the size of the objects, the float model against the best graph."""

import re
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from tuner.evaluation.match_records import MatchRecords, average_precisions
from tuner.report.html.figure import colour, inline_svg, new_figure
from tuner.report.html.markup import EMPTY, Part, join, picture, table
from tuner.run_record import RunRecord

CATEGORIES, SIZES = "Average precision by category", "Average precision by object size"
MOST_CATEGORIES = 20
_OF_SIZE = re.compile("AP_(small|medium|large)$")


def by_category(run: RunRecord) -> Part:
    """Both models' average precision of each category, the one that lost most first."""
    before = run.matches(run.facts.model_sha256)
    after = None if run.best is None else run.matches(run.best.graph_sha256)
    if before is None or after is None:
        return Part(
            CATEGORIES,
            None,
            "Not known: no plan was measured on all images, or an eval_func gives one number.",
        )
    old_precisions, new_precisions = (
        average_precisions(records, np.ones((1, len(records))))[0].tolist() for records in (before, after)
    )
    rows = sorted(
        zip(_names(run, before), old_precisions, new_precisions, strict=True),
        key=lambda row: row[2] - row[1],
    )
    shown = rows[:MOST_CATEGORIES]
    of_all = f"The {len(shown)} of {len(rows)} categories that lost most." if len(rows) > len(shown) else ""
    caption = f"{of_all} Worst first, with the number of objects; few objects move far by chance.".strip()
    return Part(CATEGORIES, picture(_side_by_side(shown, "categories", CATEGORIES), caption), wide=False)


def by_size(run: RunRecord) -> Part:
    """Both models' average precision of small, medium and large objects, and a table of COCO's other figures."""
    best, baseline = run.best, run.baseline
    if best is None or baseline is None or not baseline.metrics:
        return Part(SIZES, None, "Not known: no plan was measured in full, or an eval_func gives one number.")
    after = best.measurement.metrics
    rows = [(name, value, after[name]) for name, value in baseline.metrics.items() if name in after]
    sized = [(_size_name(name), old, new) for name, old, new in rows if _OF_SIZE.search(name)]
    drawn = picture(
        _side_by_side(sorted(sized, key=lambda row: row[2] - row[1]), "sizes", SIZES),
        "Worst first. Small: less than 32 x 32 pixels; large: more than 96 x 96.",
    )
    others = [
        (name, f"{old:.4f}", f"{new:.4f}", f"{new - old:+.4f}") for name, old, new in rows if not _OF_SIZE.search(name)
    ]
    told = table(["figure", "float", "best graph", "change"], others, texts=["figure"])
    return Part(SIZES, join([drawn if sized else EMPTY, told if others else EMPTY]), wide=False)


def _side_by_side(rows: Sequence[tuple[str, float, float]], name: str, title: str) -> Markup:
    """A line for each name from the float model's average precision to the best graph's, the first at the top."""
    figure, axes = new_figure(1.1 + 0.26 * len(rows))
    hints = {}
    for index, (label, old, new) in enumerate(reversed(rows)):
        gid = f"{name}{index}"
        axes.plot([old, new], [index, index], color=colour("line"), lw=2, zorder=1)
        axes.plot(old, index, "D", color=colour("float"), ms=6, label="float model" if index == 0 else None)
        axes.plot(new, index, "o", color=colour("int8"), ms=6, gid=gid, label="best graph" if index == 0 else None)
        hints[gid] = f"{label}: {old:.4f} to {new:.4f}, {new - old:+.4f}"
    axes.set_yticks(range(len(rows)), [label[:24] for label, *_ in reversed(rows)], fontsize=10)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.set_xlabel("average precision, IoU 0.50 to 0.95")
    figure.legend(loc="outside lower center", ncols=2, fontsize=10)
    return inline_svg(figure, name, title, hints)


def _size_name(figure: str) -> str:
    """What `AP_small` is of: small; `segm_AP_small`: small, segm."""
    of_what, _, size = figure.rpartition("AP_")
    return f"{size}, {of_what.rstrip('_')}" if of_what else size


def _names(run: RunRecord, records: MatchRecords) -> list[str]:
    return [
        f"{category_name(run, int(number))} ({count})"
        for number, count in zip(records.category_ids, records.objects.sum(0), strict=True)
    ]


def category_name(run: RunRecord, number: int) -> str:
    """What a category is called; its number where that is not known."""
    return run.facts.category_names.get(str(number), f"category {number}")
