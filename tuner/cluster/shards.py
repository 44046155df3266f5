"""How the images of an evaluation are cut into ranges, one for each call of a worker."""

import math
from dataclasses import dataclass

# A range takes at most about so long, so that one worker does not keep the others waiting at the end, nor an early
# look; and at least so long where it can, so that handing it out does not count.
LONGEST_S, SHORTEST_S = 2.0, 0.2
# Each worker has so many ranges before it, on average: the rest is cut ever finer.
RANGES_AHEAD = 4
# What an image takes, before anything is known.
UNKNOWN_S = 0.05


@dataclass(frozen=True, slots=True)
class ImageRange:
    """The images from `start` up to `stop`, in the order of the evaluation."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


def most_ranges(images: int, image_s: float) -> int:
    """How many workers so many images keep busy: each range as short as it may be."""
    return math.ceil(images / math.ceil(SHORTEST_S / image_s))


def cut(images: int, workers: int, image_s: float = UNKNOWN_S) -> list[ImageRange]:
    """Ranges that cover all images in order, large ones first.

    A range is a share of what remains, so that the last ones are short and all workers end together: guided
    self-scheduling, Polychronopoulos and Kuck 1987, IEEE Transactions on Computers C-36(12). image_s: seconds that an
    image takes a worker.
    """
    most = max(1, int(LONGEST_S / image_s))
    least = min(most, math.ceil(SHORTEST_S / image_s))
    ranges, start = [], 0
    while start < images:
        size = min(max(math.ceil((images - start) / (RANGES_AHEAD * workers)), least), most, images - start)
        ranges.append(ImageRange(start, start + size))
        start += size
    return ranges
