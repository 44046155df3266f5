"""COCO-style scenes of drawn shapes: each scene follows from its split and index alone, pixel for pixel."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

# The ids have holes, as COCO's do: a class index is not a category id.
CATEGORIES: dict[int, str] = {
    1: "disc",
    2: "triangle",
    3: "square",
    5: "bar",
    6: "cross",
    8: "star",
    9: "crescent",
    11: "arrow",
    13: "heart",
    14: "chevron",
}
SPLITS: dict[str, int] = {"training": 0, "calibration": 1, "evaluation": 2}

JPEG_QUALITY = 85
SMALLEST_SIDE_PX, LARGEST_SIDE_PX = 12.0, 160.0
MOST_OBJECTS = 8

_IMAGE_SIDES_PX = (192, 208, 224, 240, 256)
_LEAST_VISIBLE_FRACTION = 0.6
_LEAST_COLOUR_DISTANCE = 75.0
_PLACEMENT_ATTEMPTS = 20

FloatArray = NDArray[np.float64]
Canvas = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Scene:
    """One drawn image and what is in it.

    image: [H, W, 3] uint8, RGB.
    category_ids: [N] int64, keys of CATEGORIES.
    boxes_px: [N, 4] float64, x y width height of the whole outline, also where another object hides a part of it.
    areas_px: [N] float64, square pixels inside the outline.
    polygons_px: N outlines, each [K, 2] float64, x y.
    """

    image: NDArray[np.uint8] = field(repr=False)
    category_ids: NDArray[np.int64]
    boxes_px: FloatArray
    areas_px: FloatArray
    polygons_px: tuple[FloatArray, ...] = field(repr=False)

    @property
    def boxes(self) -> FloatArray:
        """The boxes as [N, 4] float64, ymin xmin ymax xmax, 0..1 of the image's height and width."""
        height, width = self.image.shape[:2]
        x, y, box_width, box_height = self.boxes_px.T
        return np.stack([y / height, x / width, (y + box_height) / height, (x + box_width) / width], axis=1)


def draw_scene(split: str, index: int) -> Scene:
    """Draw scene number `index` of one of SPLITS."""
    rng = np.random.default_rng([SPLITS[split], index])
    height, width = (int(side) for side in rng.choice(_IMAGE_SIDES_PX, 2))
    canvas = _background(rng, height, width)
    _add_clutter(rng, canvas)

    owner = np.full((height, width), -1)
    category_ids: list[int] = []
    polygons: list[FloatArray] = []
    areas: list[int] = []
    wanted = rng.integers(1, MOST_OBJECTS + 1)
    for _ in range(_PLACEMENT_ATTEMPTS):
        if len(polygons) == wanted:
            break
        category_id = int(rng.choice(list(CATEGORIES)))
        polygon = _place(rng, _OUTLINES[CATEGORIES[category_id]](rng), height, width)
        mask = rasterise(polygon, height, width)
        if _hides_too_much(owner, mask, areas):
            continue
        owner[mask] = len(polygons)
        _paint(rng, canvas, mask)
        category_ids.append(category_id)
        polygons.append(polygon)
        areas.append(int(mask.sum()))

    return Scene(
        image=_photograph(rng, canvas),
        category_ids=np.array(category_ids, np.int64),
        boxes_px=np.array([bounding_box(polygon) for polygon in polygons]),
        areas_px=np.array(areas, np.float64),
        polygons_px=tuple(polygons),
    )


def rasterise(polygon_px: FloatArray, height: int, width: int) -> NDArray[np.bool_]:
    """Return the [height, width] mask of a polygon [K, 2], by COCO's own rule for pixels on its edge."""
    encoded = coco_mask.frPyObjects([polygon_px.ravel().tolist()], height, width)
    return np.asarray(coco_mask.decode(encoded))[..., 0].astype(bool)


def bounding_box(polygon_px: FloatArray) -> FloatArray:
    """Return x y width height [4] of a polygon [K, 2]."""
    low, high = polygon_px.min(axis=0), polygon_px.max(axis=0)
    return np.round(np.concatenate([low, high - low]), 2)


def _hides_too_much(owner: NDArray[np.int64], mask: NDArray[np.bool_], areas: list[int]) -> bool:
    remaining = np.bincount(owner[~mask] + 1, minlength=len(areas) + 1)[1:]
    return bool(np.any(remaining < _LEAST_VISIBLE_FRACTION * np.array(areas)))


def _place(rng: np.random.Generator, outline: FloatArray, height: int, width: int) -> FloatArray:
    """Stretch, turn, scale and move an outline so that it lies inside the image; coordinates to 0.1 px."""
    stretch, turn = rng.uniform(0.8, 1.25), rng.uniform(0, 2 * np.pi)
    outline = outline * [stretch, 1 / stretch]
    outline = outline @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    outline = outline - outline.min(axis=0)
    sides = outline.max(axis=0)
    longer_side_px = np.exp(rng.triangular(np.log(SMALLEST_SIDE_PX), np.log(60), np.log(LARGEST_SIDE_PX)))
    # The margin keeps the rounded outline inside the limits.
    scale = max(longer_side_px / sides.max(), (SMALLEST_SIDE_PX + 0.3) / sides.min())
    outline = outline * min(scale, (LARGEST_SIDE_PX - 0.3) / sides.max())
    return np.round(outline + rng.uniform(0, [width, height] - outline.max(axis=0)), 1)


def _smooth_field(rng: np.random.Generator, height: int, width: int, cells: int, channels: int) -> Canvas:
    """Return a random field [height, width, channels] in -1..1, bilinear between (cells + 1)^2 random values."""
    grid = rng.uniform(-1, 1, (cells + 1, cells + 1, channels)).astype(np.float32)
    # Not a matrix product: BLAS would start threads that fight over the cores when many scenes are drawn at once.
    return _stretch(_stretch(grid, height).swapaxes(0, 1), width).swapaxes(0, 1)


def _stretch(values: Canvas, length: int) -> Canvas:
    """Interpolate along the first axis to `length` values, linearly, first and last kept."""
    position = np.linspace(0, len(values) - 1, length, dtype=np.float32)
    below = np.minimum(position.astype(int), len(values) - 2)
    fraction = (position - below.astype(np.float32))[:, None, None]
    return values[below] + (values[below + 1] - values[below]) * fraction


def _stripes(rng: np.random.Generator, height: int, width: int) -> Canvas:
    """Return waves [height, width] in -1..1 of random direction and period."""
    turn, period_px = rng.uniform(0, np.pi), rng.uniform(4, 30)
    step = np.float32(2 * np.pi / period_px)
    y = np.arange(height, dtype=np.float32)[:, None] * (step * np.sin(turn, dtype=np.float32))
    x = np.arange(width, dtype=np.float32)[None, :] * (step * np.cos(turn, dtype=np.float32))
    return np.sin(x + y + np.float32(rng.uniform(0, 2 * np.pi)))


def _background(rng: np.random.Generator, height: int, width: int) -> Canvas:
    canvas = np.full((height, width, 3), rng.uniform(40, 215, 3), np.float32)
    for cells, most in ((2, 50), (9, 35), (40, 25)):
        canvas += rng.uniform(0, most) * _smooth_field(rng, height, width, cells, 3)
    if rng.random() < 0.5:
        canvas += rng.uniform(-25, 25, 3).astype(np.float32) * _stripes(rng, height, width)[..., None]
    return canvas


def _add_clutter(rng: np.random.Generator, canvas: Canvas) -> None:
    """Draw irregular blobs and thin lines, which belong to no category."""
    height, width = canvas.shape[:2]
    for _ in range(rng.integers(3, 12)):
        corners = rng.integers(5, 9)
        angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
        radii = rng.uniform(0.2, 1, corners) * rng.uniform(5, 30)
        blob = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii[:, None] + rng.uniform(0, [width, height])
        canvas[rasterise(blob, height, width)] += rng.uniform(-60, 60, 3)
    for _ in range(rng.integers(0, 8)):
        start, end = rng.uniform(0, [width, height], (2, 2))
        across = rng.uniform(-2, 2, 2)
        line = np.array([start, end, end + across, start + across])
        canvas[rasterise(line, height, width)] += rng.uniform(-80, 80, 3)


def _paint(rng: np.random.Generator, canvas: Canvas, mask: NDArray[np.bool_]) -> None:
    """Fill a mask with a textured colour that differs from what it covers."""
    behind = canvas[mask].mean(axis=0)
    colour = rng.uniform(10, 245, 3)
    while np.linalg.norm(colour - behind) < _LEAST_COLOUR_DISTANCE:
        colour = rng.uniform(10, 245, 3)
    texture = rng.uniform(0, 25) * _smooth_field(rng, *mask.shape, 6, 3)
    if rng.random() < 0.3:
        texture += rng.uniform(-20, 20) * _stripes(rng, *mask.shape)[..., None]
    canvas[mask] = (colour + texture)[mask]


def _photograph(rng: np.random.Generator, canvas: Canvas) -> NDArray[np.uint8]:
    """Blur the edges a little, light the scene unevenly, add sensor noise."""
    height, width = canvas.shape[:2]
    padded = np.pad(canvas, ((1, 1), (1, 1), (0, 0)), mode="edge")
    sides = rng.uniform(0.05, 0.3)
    rows = (1 - 2 * sides) * padded[1:-1] + sides * (padded[:-2] + padded[2:])
    blurred = (1 - 2 * sides) * rows[:, 1:-1] + sides * (rows[:, :-2] + rows[:, 2:])
    light = 1 + rng.uniform(0, 0.25) * _smooth_field(rng, height, width, 1, 1)
    noise = rng.uniform(1, 12) * rng.standard_normal(canvas.shape, np.float32)
    return np.clip(np.rint(blurred * light + noise), 0, 255).astype(np.uint8)


def _arc(start: float, end: float, points: int) -> FloatArray:
    angles = np.linspace(start, end, points)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _disc(_: np.random.Generator) -> FloatArray:
    return _arc(0, 2 * np.pi, 25)[:-1]


def _triangle(rng: np.random.Generator) -> FloatArray:
    return np.array([[-1, -0.8], [1, -0.8], [rng.uniform(-0.5, 0.5), 1]])


def _square(_: np.random.Generator) -> FloatArray:
    return np.array([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])


def _bar(rng: np.random.Generator) -> FloatArray:
    return _square(rng) * [rng.uniform(2.6, 4), 1]


def _cross(rng: np.random.Generator) -> FloatArray:
    arm = rng.uniform(0.2, 0.38)
    quarter = np.array([[arm, 1], [arm, arm], [1, arm]])
    turned = [quarter @ np.linalg.matrix_power(np.array([[0, -1], [1, 0]]), turns) for turns in range(4)]
    return np.concatenate(turned)


def _star(rng: np.random.Generator) -> FloatArray:
    return _arc(0, 2 * np.pi, 11)[:-1] * np.where(np.arange(10) % 2, rng.uniform(0.35, 0.48), 1.0)[:, None]


def _crescent(rng: np.random.Generator) -> FloatArray:
    outer = _arc(0.25 * np.pi, 1.75 * np.pi, 16)
    depth = rng.uniform(0.3, 0.5)
    # The inner arc meets the tips of the outer one; a smaller depth makes a thicker crescent.
    inner = _arc(1.75 * np.pi, 0.25 * np.pi, 11)[1:-1] * [0.5, 0.85] + [depth, 0]
    return np.concatenate([outer, inner])


def _arrow(rng: np.random.Generator) -> FloatArray:
    shaft, neck = rng.uniform(0.15, 0.3), rng.uniform(-0.1, 0.3)
    return np.array(
        [[-1, -shaft], [neck, -shaft], [neck, -0.7], [1, 0], [neck, 0.7], [neck, shaft], [-1, shaft]], np.float64
    )


def _heart(_: np.random.Generator) -> FloatArray:
    angle = np.linspace(0, 2 * np.pi, 23)[:-1]
    x = 16 * np.sin(angle) ** 3
    y = 13 * np.cos(angle) - 5 * np.cos(2 * angle) - 2 * np.cos(3 * angle) - np.cos(4 * angle)
    return np.stack([x, y], axis=1) / 16


def _chevron(rng: np.random.Generator) -> FloatArray:
    depth, thickness = rng.uniform(0.6, 1.0), rng.uniform(0.45, 0.6)
    return np.array([[-1, 0], [0, depth], [1, 0], [1, thickness], [0, depth + thickness], [-1, thickness]], np.float64)


_OUTLINES: dict[str, Callable[[np.random.Generator], FloatArray]] = {
    "disc": _disc,
    "triangle": _triangle,
    "square": _square,
    "bar": _bar,
    "cross": _cross,
    "star": _star,
    "crescent": _crescent,
    "arrow": _arrow,
    "heart": _heart,
    "chevron": _chevron,
}
