"""Cutting images into ranges: all of them once, in order, so that workers end together."""

import heapq
import math

from hypothesis import given
from hypothesis import strategies as st

from tuner.cluster.shards import LONGEST_S, SHORTEST_S, cut, most_ranges

IMAGES, WORKERS, SECONDS = st.integers(0, 20_000), st.integers(1, 600), st.floats(1e-4, 10.0)


@given(IMAGES, WORKERS, SECONDS)
def test_ranges_cover_all_images_once_and_in_order(images: int, workers: int, image_s: float) -> None:
    ranges = cut(images, workers, image_s)
    assert [n for one in ranges for n in range(one.start, one.stop)] == list(range(images))
    assert all(len(one) > 0 for one in ranges)
    assert cut(images, workers, image_s) == ranges


@given(IMAGES, WORKERS, SECONDS)
def test_ranges_are_neither_too_long_nor_too_short_and_never_grow(images: int, workers: int, image_s: float) -> None:
    sizes = [len(one) for one in cut(images, workers, image_s)]
    longest = max(1, int(LONGEST_S / image_s))
    assert all(size <= longest for size in sizes)
    assert all(size >= min(longest, SHORTEST_S / image_s) for size in sizes[:-1])
    assert sizes == sorted(sizes, reverse=True)


@given(st.integers(200, 20_000), st.integers(1, 64), st.floats(0.01, 1.0))
def test_workers_of_one_speed_end_together(images: int, workers: int, image_s: float) -> None:
    """Simulated: whoever is free takes the next range. Nobody ends later than the longest of the last ranges."""
    ends = [0.0] * workers
    ranges = cut(images, workers, image_s)
    for one in ranges:
        heapq.heappush(ends, heapq.heappop(ends) + len(one) * image_s)
    last = max((len(one) for one in ranges[-workers:]), default=0) * image_s
    assert max(ends) - min(ends) <= last + 1e-6
    assert max(ends) <= images * image_s / workers + last + 1e-6


@given(st.integers(1, 20_000), SECONDS)
def test_as_many_workers_as_there_are_ranges_are_kept_busy(images: int, image_s: float) -> None:
    most = most_ranges(images, image_s)
    assert 1 <= most <= images
    assert most == math.ceil(images / math.ceil(SHORTEST_S / image_s))
