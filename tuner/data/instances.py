"""A folder of images with a COCO instances JSON, as entries."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tuner.config.refusal import describe
from tuner.data.annotations import check_ground_truth
from tuner.data.image_size import check_pixels
from tuner.data.images import Entry
from tuner.data.label_map import side_by_side
from tuner.detections import GroundTruth
from tuner.errors import DatasetError, did_you_mean
from tuner.masks import Masks, encode_segmentation

_NO_INTEGER = 2**63  # what the evaluators' int64 does not hold


@dataclass(frozen=True, slots=True)
class Instances:
    """The three tables of an instances JSON, as they stand in the file.

    categories: id in the file -> name. label_map: name -> id in its place; None where the file's own ids count.
    """

    path: Path
    images: Sequence[Any]
    annotations: Sequence[Any]
    categories: Mapping[int, str]
    label_map: Mapping[str, int] | None = None

    @property
    def category_names(self) -> dict[int, str]:
        """The names by the ids that count."""
        return {self.category_id(in_file): name for in_file, name in self.categories.items()}

    def category_id(self, in_file: int) -> int:
        """The id that counts for one of the file's."""
        return in_file if self.label_map is None else self.label_map[self.categories[in_file]]


def load_instances(path: Path, label_map: Mapping[str, int] | None = None) -> Instances:
    """Read an instances JSON. label_map: category name -> id, in the place of the ids in the file.

    Raises DatasetError when it cannot be read, lacks one of the three lists, or has a name that is not in the map.
    """
    try:
        table = json.loads(path.read_bytes())
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: is no JSON file: {error}") from None
    lists = []
    for key in ("images", "annotations", "categories"):
        value = table.get(key) if isinstance(table, dict) else None
        if not isinstance(value, list):
            raise DatasetError(
                f"{path}: {key}: expected a list, got {type(value).__name__}; "
                "a COCO instances file has the lists images, annotations, categories"
            )
        lists.append(value)
    categories = {}
    for index, category in enumerate(lists[2]):
        where = f"{path}: categories[{index}]"
        categories[_integer(category, "id", where)] = _text(category, "name", where)
    if label_map is not None:
        _check_names(path, categories, label_map)
    return Instances(path, lists[0], lists[1], categories, label_map)


def _check_names(path: Path, categories: Mapping[int, str], label_map: Mapping[str, int]) -> None:
    if label_map.keys().isdisjoint(categories.values()):
        both = side_by_side("its categories", categories.values(), "the label map's", label_map)
        raise DatasetError(f"{path}: categories: {both}: see evaluation.accuracy.metric.COCOmAP.anno_path")
    for name in categories.values():
        if name not in label_map:
            raise DatasetError(
                f"{path}: categories: {name!r} is not in the label map of {len(label_map)} names"
                f"{did_you_mean(name, label_map)}"
            )


def find_instances_file(folder: Path) -> Path:
    """The one instances JSON in a folder or its `annotations` folder.

    Files called instances*.json go before others. Raises DatasetError when there is none, or more than one.
    """
    for pattern in ("instances*.json", "*.json"):
        found = sorted([*folder.glob(pattern), *folder.glob(f"annotations/{pattern}")])
        if len(found) > 1:
            names = ", ".join(str(path.relative_to(folder)) for path in found)
            raise DatasetError(f"{folder}: holds several annotation files; name one of {names}")
        if found:
            return found[0]
    raise DatasetError(f"{folder}: holds neither TFRecords nor an instances JSON")


def find_image_folder(instances: Instances) -> Path:
    """Where the images of an instances JSON lie: `images`, the folder of its split's name, or beside it.

    `annotations/instances_val2017.json` is looked at from the folder above: `images`, `val2017`.
    """
    path = instances.path
    folder = path.parent.parent if path.parent.name == "annotations" else path.parent
    candidates = [folder / "images", folder / path.stem.removeprefix("instances_"), folder]
    names = [image["file_name"] for image in instances.images if isinstance(image, dict) and "file_name" in image]
    for candidate in candidates:
        if any(_is_file(candidate / str(name)) for name in names[:1]):
            return candidate
    return next(candidate for candidate in candidates if candidate.is_dir())


def read_instances(instances: Instances, image_folder: Path, *, masks: bool = False) -> Iterator[Entry | DatasetError]:
    """The images in the order of the file; in the place of a bad one the DatasetError that tells what is wrong.

    Annotations that belong to no image come first, each as an error. masks: whether `segmentation` is read, too.
    """
    path = instances.path
    objects: dict[Any, list[int]] = {
        image["id"]: [] for image in instances.images if isinstance(image, dict) and isinstance(image.get("id"), int)
    }
    for index, annotation in enumerate(instances.annotations):
        image_id = annotation.get("image_id") if isinstance(annotation, dict) else None
        if isinstance(image_id, int) and image_id in objects:
            objects[image_id].append(index)
        else:
            yield DatasetError(
                f"{path}: annotations[{index}]: image_id: {image_id!r} is none of the {len(objects)} images"
            )
    for index, image in enumerate(instances.images):
        try:
            yield _entry(image, objects, instances, image_folder, f"{path}: images[{index}]", masks=masks)
        except DatasetError as error:
            yield error


def _entry(
    image: Any,
    objects: Mapping[int, Sequence[int]],
    instances: Instances,
    image_folder: Path,
    where: str,
    *,
    masks: bool,
) -> Entry:
    image_id, name = _integer(image, "id", where), _text(image, "file_name", where)
    where = f"{where} ({name})"
    height, width = _size(image, "height", where), _size(image, "width", where)
    check_pixels(height, width, where)
    if not _is_file(image_folder / name):
        raise DatasetError(f"{where}: file_name: no file {image_folder / name}")
    keys = [f"annotations[{index}]" for index in objects[image_id]]
    annotations = [instances.annotations[index] for index in objects[image_id]]
    for key, annotation in zip(keys, annotations, strict=True):
        category = _integer(annotation, "category_id", f"{where}: {key}")
        if category not in instances.categories:
            raise DatasetError(
                f"{where}: {key}: category_id: {category} is none of the {len(instances.categories)} categories"
            )
    boxes = np.array([_box(a, f"{where}: {k}") for k, a in zip(keys, annotations, strict=True)], np.float64)
    x, y, w, h = boxes.reshape(-1, 4).T
    areas = [_number(a.get("area", w[i] * h[i]), f"{where}: {keys[i]}: area") for i, a in enumerate(annotations)]
    truth = GroundTruth(
        boxes=np.stack([y, x, y + h, x + w], axis=1) / [height, width, height, width],
        category_ids=np.array([instances.category_id(a["category_id"]) for a in annotations], np.int64),
        is_crowd=np.array([bool(a.get("iscrowd", 0)) for a in annotations], bool),
        areas_px=np.array(areas, np.float64),
        masks=None if not masks else _masks(annotations, keys, height, width, where),
    )
    check_ground_truth(truth, height, width, where, keys.__getitem__)
    return Entry(image_id, name, where, height, width, truth, image_folder / name)


def _masks(annotations: Sequence[Any], keys: Sequence[str], height: int, width: int, where: str) -> Masks:
    codes = []
    for key, annotation in zip(keys, annotations, strict=True):
        try:
            codes.append(encode_segmentation(annotation.get("segmentation"), height, width))
        except ValueError as error:
            raise DatasetError(f"{where}: {key}: segmentation: {error}") from None
    return Masks(height, width, tuple(codes))


def _box(annotation: Any, where: str) -> list[float]:
    box = annotation.get("bbox")
    if not isinstance(box, list) or len(box) != 4:
        raise DatasetError(f"{where}: bbox: got {describe(box)}; expected four numbers x y width height")
    return [_number(value, f"{where}: bbox") for value in box]


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DatasetError(f"{where}: got {describe(value)}; expected a number")
    try:
        return float(value)
    except OverflowError:
        raise DatasetError(f"{where}: got a number too large to count with") from None


def _size(table: Any, key: str, where: str) -> int:
    value = _integer(table, key, where)
    if value <= 0:
        raise DatasetError(f"{where}: {key}: got {value}; expected a positive number of pixels")
    return value


def _integer(table: Any, key: str, where: str) -> int:
    value = _value(table, key, where)
    if isinstance(value, bool) or not isinstance(value, int):
        raise DatasetError(f"{where}: {key}: got {describe(value)}; expected an integer")
    if not -_NO_INTEGER <= value < _NO_INTEGER:
        raise DatasetError(f"{where}: {key}: got a number that 64 bits do not hold; expected an integer")
    return value


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # such as of a name that is too long
        return False


def _text(table: Any, key: str, where: str) -> str:
    value = _value(table, key, where)
    if not isinstance(value, str):
        raise DatasetError(f"{where}: {key}: got {describe(value)}; expected a string")
    return value


def _value(table: Any, key: str, where: str) -> Any:
    if not isinstance(table, dict) or key not in table:
        raise DatasetError(f"{where}: {key}: is missing")
    return table[key]
