"""COCO's evaluation in parts of about equal work, each to be evaluated by itself."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from tuner.evaluation.coco_tables import CocoTables

# What pycocotools takes for an annotated object, and for looking for a category in an image, in detections: measured.
OBJECT_WORK, IMAGE_WORK = 5.0, 0.5


def category_parts(tables: CocoTables, parts: int) -> list[CocoTables]:
    """At most `parts` parts of `tables`, at least 1: every category's every size class is in exactly one of them.

    A category that would keep all others waiting is parted by its size classes, which take about equally long. It
    cannot be parted further, so that no number of parts is faster than a quarter of the largest category.
    """
    work = _work(tables)
    by_work = sorted(work, key=lambda category: -work[category])
    classes = len(tables.sizes)
    # With the first none, one, two .. categories parted by size class: the way whose largest part is least.
    ways = []
    for split in range(min(len(work), (parts - 1) // classes) + 1):
        groups = _groups({category: work[category] for category in by_work[split:]}, parts - split * classes)
        loads = [sum(work[category] for category in group) for group in groups]
        ways.append((max([work[by_work[0]] / classes if split else 0.0, *loads]), split, groups))
    _, split, groups = min(ways)
    alone = [tables.of_categories([category]) for category in by_work[:split]]
    by_size = [replace(one, sizes=(size,)) for one in alone for size in one.sizes]
    return by_size + [tables.of_categories(group) for group in groups]


def _work(tables: CocoTables) -> dict[int, float]:
    """What each category takes, in detections."""
    detected, annotated = (
        np.bincount(np.searchsorted(tables.category_ids, rows["category_id"]), minlength=len(tables.category_ids))
        for rows in (tables.detected, tables.annotated)
    )
    work = detected + OBJECT_WORK * annotated + IMAGE_WORK * len(tables.images)
    return dict(zip(tables.category_ids, work.tolist(), strict=True))


def _groups(work: Mapping[int, float], groups: int) -> list[list[int]]:
    """At most so many groups: each, from the most work down, goes to the group that has least. `work`: most first."""
    members: list[list[int]] = [[] for _ in range(min(groups, len(work)))]
    loads = [0.0] * len(members)
    for category, load in work.items():
        least = loads.index(min(loads))
        members[least].append(category)
        loads[least] += load
    return members
