"""A comparison for a person to read."""

from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tuner.comparison.compare import Compared, Comparison
from tuner.comparison.differences import CategoryDifference, Interval
from tuner.evaluation.early_rejection import FEWEST_IMAGES
from tuner.report.table import plain_table, times_text


def comparison_table(found: Comparison) -> Group:
    """Figures, categories and images side by side; A is the first column."""
    differences = found.differences
    agreement = " (agreement with the float model)" if found.labels == "model" else ""
    sure = [category for category in differences.categories if category.certain]
    return Group(
        *(
            Text(f"{name}  {one.path}", no_wrap=True, overflow="ignore")
            for name, one in (("A", found.a), ("B", found.b))
        ),
        _figures(found.a, found.b),
        Text(
            f"mAP of {'masks' if found.iou_type == 'segm' else 'boxes'}{agreement}, B less A: "
            f"{differences.difference:+.4f}; on other images like these {_between(differences.interval)} (95 of 100)"
        ),
        _categories(differences.categories, found.category_names),
        Text(
            f"intervals: of 95 of 100 sets of images like these, each category by itself; of "
            f"{len(differences.categories)} such intervals some miss 0 by chance\n"
            f"*: differs with all categories looked at together ({len(sure)} of {len(differences.categories)}); "
            f"-: in fewer than {FEWEST_IMAGES} images"
        ),
        *_images(found),
    )


def _figures(a: Compared, b: Compared) -> Table:
    table = plain_table("", "A", "B", "B less A")
    for name, value in a.figures.items():
        table.add_row(name, f"{value:.4f}", f"{b.figures[name]:.4f}", f"{b.figures[name] - value:+.4f}")
    rows = (
        ("latency, median", a.latency.median_ms, b.latency.median_ms, "{:.1f} ms"),
        ("latency, p90", a.latency.p90_ms, b.latency.p90_ms, "{:.1f} ms"),
    )
    for name, before, after, form in rows:
        table.add_row(name, form.format(before), form.format(after), times_text(before, after, "faster", "slower"))
    sizes = (a.size_bytes, b.size_bytes)
    table.add_row("file size", *(f"{size / 1e6:.2f} MB" for size in sizes), times_text(*sizes, "smaller", "larger"))
    return table


def _categories(categories: Sequence[CategoryDifference], names: Mapping[int, str]) -> Table:
    table = plain_table("category", "objects", "AP, A", "AP, B", "B less A", "on other images", "")
    for one in categories:
        interval = "-" if one.interval is None else _between(one.interval)
        table.add_row(
            Text(f"{one.category_id} {names.get(one.category_id, '')}".rstrip()),
            str(one.objects),
            f"{one.ap_a:.4f}",
            f"{one.ap_b:.4f}",
            f"{one.difference:+.4f}",
            interval,
            "*" if one.certain else "",
        )
    return table


def _images(found: Comparison) -> list[RenderableType]:
    said = (
        f"of detections with a score of at least {found.score:g}, {found.differing} of {found.images} images have some "
        "that only one of the two finds (none of the other's, of its category, overlaps by IoU 0.5)"
    )
    if not found.disagreements:
        return [Text(said)]
    table = plain_table("image", "alone", "agreement", "objects", "A right / all", "B right / all")
    for one in found.disagreements:
        table.add_row(
            Text(one.name or str(one.image_id)),
            str(one.alone),
            f"{one.agreement:.2f}",
            str(one.objects),
            *(f"{side.right} / {side.detections}" for side in (one.a, one.b)),
        )
    note = "alone: such detections of both; agreement: the share of all that are not alone, 2 P / (A + B) for P pairs"
    return [Text(f"\n{said}"), table, Text(note)]


def _between(interval: Interval) -> str:
    return f"{interval[0]:+.4f} to {interval[1]:+.4f}"
