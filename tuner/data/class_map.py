"""What the class numbers of a detector mean, from the settings."""

from collections.abc import Mapping
from pathlib import Path

from tuner.config import ModelConfig
from tuner.data.coco_categories import COCO80, COCO80_FROM_0
from tuner.data.label_map import read_class_map
from tuner.detections import Reading

_TABLES: Mapping[str, Mapping[int, int] | None] = {
    "dataset": None,
    "coco80": COCO80,
    "coco80_from_0": COCO80_FROM_0,
}


def read_classes(model: ModelConfig) -> Reading:
    """What the numbers mean that a detector gives. Raises DatasetError for a file of classes that cannot be read."""
    in_pixels = model.box_units == "pixels"
    if isinstance(model.classes, Path):
        return Reading(read_class_map(model.classes), str(model.classes), in_pixels)
    return Reading(_TABLES[model.classes], model.classes, in_pixels)
