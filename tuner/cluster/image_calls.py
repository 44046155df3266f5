"""The images of an evaluation as workers get them: in chunks that stay there, and ranges of these for each call."""

import math
from collections.abc import Iterator, Sequence

from tuner.cluster.jobs import Call
from tuner.cluster.recipe import ImageChunk, Recipe, Stored
from tuner.cluster.shards import ImageRange, cut
from tuner.evaluation.workers import EvaluationImages

# Entries of so many images travel together, and stay with the workers that had some of them.
CHUNK = 256
# Where one image of so many is kept, the others are taken to be.
KEPT_TOGETHER = 32


def chunks_of(images: EvaluationImages) -> Iterator[ImageChunk]:
    """All images, in their order."""
    dataset = images.dataset
    for start in range(0, len(dataset), CHUNK):
        entries = dataset.entries[start : start + CHUNK]
        yield ImageChunk(entries, dataset.steps, images.category_ids, images.iou_types, images.masks)


def find_calls(recipe: Recipe, chunks: Sequence[Stored], images: int, slots: int, image_s: float) -> list[Call]:
    """Calls that run a graph on all images. image_s: about how long one takes."""
    # Rounded, so that candidates are cut alike, and workers get again what they had.
    ranges = cut(images, slots, 2.0 ** round(math.log2(image_s)))
    calls = []
    for part in (piece for one in ranges for piece in _within_chunks(one)):
        chunk = part.start // CHUNK
        inside = ImageRange(part.start - chunk * CHUNK, part.stop - chunk * CHUNK)
        keeps = chunks[chunk].key, inside.start // KEPT_TOGETHER
        told = f"images {part.start + 1} to {part.stop}"
        calls.append(Call("find", (recipe, chunks[chunk], inside), told, keeps))
    return calls


def _within_chunks(part: ImageRange) -> Iterator[ImageRange]:
    """A range, cut where chunks end."""
    start = part.start
    while start < part.stop:
        stop = min(part.stop, (start // CHUNK + 1) * CHUNK)
        yield ImageRange(start, stop)
        start = stop
