"""The images whose detections changed most: float, best graph and truth side by side."""

import base64
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup
from numpy.typing import NDArray

from tuner.report.html.accuracy import category_name
from tuner.report.html.markup import Part, join
from tuner.run_record import RunRecord

TITLE = "Images whose detections changed most"
LEAST_SCORE, MOST_BOXES = 0.3, 25
_COLUMNS = {"float": ("float", "float"), "best": ("best graph", "int8"), "truth": ("truth", "good")}


def changed_images(run: RunRecord) -> Part:
    """Each image once in the file, drawn three times, with boxes over it."""
    arrays = run.changed_images()
    if arrays is None or not len(arrays["ids"]):
        return Part(TITLE, None, "Not kept: the run did not end, has no images of its own, or nothing changed.")
    strips = join(_strip(run, arrays, index) for index in range(len(arrays["ids"])))
    note = (
        f"Boxes with a score of at least {LEAST_SCORE:g}, {MOST_BOXES} at most; below each picture their number. "
        "Point at a box, or tap it, for its category and score."
    )
    return Part(TITLE, strips, note)


def _strip(run: RunRecord, arrays: Mapping[str, NDArray[Any]], index: int) -> Markup:
    jpeg = arrays[f"{index} jpeg"].tobytes()
    width, height = _jpeg_size(jpeg)
    source = Markup('<image id="image{}" width="{}" height="{}" href="data:image/jpeg;base64,{}"/>').format(
        index, width, height, base64.b64encode(jpeg).decode()
    )
    figures = []
    for place, (key, (title, colour)) in enumerate(_COLUMNS.items()):
        image = source if place == 0 else Markup('<use href="#image{}"/>').format(index)
        rows = [row for row in arrays[f"{index} {key}"].tolist() if row[4] >= LEAST_SCORE][:MOST_BOXES]
        boxes = join(_box(run, row, width, height, colour, scored=key != "truth") for row in rows)
        figures.append(
            Markup(
                '<figure><svg viewBox="0 0 {} {}" role="img" aria-label="{} boxes of {}">{}'
                '<g class="boxes">{}</g></svg>'
                "<figcaption>{}: {}</figcaption></figure>"
            ).format(width, height, len(rows), title, image, boxes, title, len(rows))
        )
    return Markup('<div class="strip"><div class="name">{}</div>{}</div>').format(arrays["names"][index], join(figures))


def _box(run: RunRecord, row: list[float], width: int, height: int, colour: str, *, scored: bool) -> Markup:
    top, left, bottom, right, score, number = row
    x, y = max(left, 0) * width, max(top, 0) * height
    end = min(right, 1) * width
    # At the right edge of the picture a label ends where its box does, so as not to be cut off.
    inwards = x > width * 2 / 3
    label = category_name(run, int(number)) + (f" {score:.2f}" if scored else "")
    return Markup(
        '<g data-hint="{}"><rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" style="stroke:var(--{})"/>'
        '<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text></g>'
    ).format(
        label,
        x,
        y,
        max(end - x, 0),
        max(min(bottom, 1) * height - y, 0),
        colour,
        end - 2 if inwards else x + 2,
        max(y + 11, 11),
        "end" if inwards else "start",
        label,
    )


def _jpeg_size(jpeg: bytes) -> tuple[int, int]:
    """Width and height, from the frame header (ITU-T T.81, B.2.2)."""
    position = 2
    while position + 9 < len(jpeg):
        marker = jpeg[position + 1]
        if marker in (0xC0, 0xC1, 0xC2):
            return int.from_bytes(jpeg[position + 7 : position + 9]), int.from_bytes(jpeg[position + 5 : position + 7])
        position += 2 + int.from_bytes(jpeg[position + 2 : position + 4])
    return 1, 1
