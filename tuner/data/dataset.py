"""An annotated set of images in a fixed order, whatever its files look like."""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from tuner.address import Address, Place
from tuner.config.transforms import Step
from tuner.data.coco_categories import COCO_LABEL_MAP
from tuner.data.image_folder import find_images, read_images
from tuner.data.images import MOST_THREADS, Entry, ImageStore, map_ahead
from tuner.data.instances import find_image_folder, find_instances_file, load_instances, read_instances
from tuner.data.label_map import side_by_side
from tuner.data.record_files import find_record_files, find_records, read_record_files
from tuner.data.transforms import apply
from tuner.detections import Sample
from tuner.errors import DatasetError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DetectionDataset:
    """Annotated images; iterating gives a `Sample` for each, in the same order every time.

    Images are decoded in parallel a few ahead of the reader, and those that fit the memory budget only once.
    Iterating raises DatasetError for an image that cannot be read or decoded, or has another size than annotated.

    entries: the images and their annotations, not yet decoded, in the order of the records or of the JSON.
    category_ids: the categories of the JSON; of records, those that occur.
    skipped: one message for each bad record that was left out. threads: that decode images, at most.
    steps: what is done to a decoded image before a model is fed it; nothing where there are none.
    names: category id -> name, of a label map, else of the files; see `category_names`.
    """

    entries: tuple[Entry, ...]
    category_ids: frozenset[int]
    skipped: tuple[str, ...] = ()
    threads: int = MOST_THREADS
    steps: tuple[Step, ...] = ()
    names: Mapping[int, str] = field(default_factory=dict)
    _store: ImageStore = field(default_factory=lambda: ImageStore(0), repr=False)

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Sample]:
        return self.samples(range(len(self.entries)))

    def samples(self, order: Iterable[int]) -> Iterator[Sample]:
        """The images at these positions of `entries`, in this order; decoded and kept as in iterating."""
        entries = (self.entries[position] for position in order)
        return map_ahead(self._sample, entries, min(self.threads, MOST_THREADS))

    def first(self, count: int) -> "DetectionDataset":
        """The first `count` images, or all when there are fewer; decoded images are shared with this set."""
        return replace(self, entries=self.entries[:count])

    @property
    def first_image(self) -> NDArray[Any]:
        """The first image, [H, W, 3], or what its transforms make of it."""
        return next(iter(self.first(1))).image

    @property
    def category_names(self) -> Mapping[int, str]:
        """What categories are called, by id; as COCO has it where nobody tells and more than half of its ids occur."""
        coco = {number: name for name, number in COCO_LABEL_MAP.items()}
        return self.names or (coco if len(self.category_ids & coco.keys()) > len(coco) // 2 else {})

    @cached_property
    def sha256(self) -> str:
        """Hex SHA-256 of the content in its order: ids, sizes, annotations, encoded images, and what is done to them.

        File names are no part of it.

        Reads every image once, the first time it is asked for; none of a remote file, read when the set was opened.
        """
        digest = hashlib.sha256()
        for entry in self.entries:
            truth = entry.ground_truth
            lists = (truth.boxes, truth.category_ids, truth.is_crowd, truth.areas_px)
            facts = [entry.image_id, entry.height, entry.width, *(values.tolist() for values in lists)]
            digest.update(json.dumps(facts).encode())
            for code in () if truth.masks is None else truth.masks.codes:
                digest.update(code + b"\n")
            digest.update(bytes.fromhex(entry.sha256) or hashlib.sha256(entry.read()).digest())
        for step in self.steps:
            digest.update(f"{type(step).__name__} {step.model_dump_json()}".encode())
        return digest.hexdigest()

    def _sample(self, entry: Entry) -> Sample:
        image, view = apply(self.steps, self._store.load(entry), entry.where)
        return Sample(entry.image_id, entry.name, image, entry.ground_truth, view)


def open_dataset(
    location: Place,
    *,
    image_dir: Path | None = None,
    annotations: Path | None = None,
    label_map: Mapping[str, int] | None = None,
    limit: int | None = None,
    skip_bad_records: bool = False,
    cache_mb: int = 512,
    threads: int = MOST_THREADS,
    masks: bool = False,
    annotated: bool = True,
    objects: int | None = None,
    steps: tuple[Step, ...] = (),
) -> DetectionDataset:
    """Open TFRecords of the Object Detection API, or images with a COCO instances JSON.

    location: a record file, a folder with the shards of one set, a glob of record files; or an instances JSON, or a
    folder that holds one (there or in `annotations`). At an address only records are read.
    image_dir, annotations: for JSON sets, where they are not found by themselves; relative to the folder.
    label_map: category name -> id: for records as `decode_example` has it; in the place of the ids of a JSON.
    limit: at most so many images, the first good ones.
    skip_bad_records: leave bad records out, log how many, and keep their messages in `skipped`; every image is then
    decoded once now, so that the set does not shrink later.
    cache_mb: the memory in MiB for decoded images. threads: that decode images, at most.
    masks: whether the masks of the annotated objects are read, too; then each must have one.
    annotated: False takes a folder of JPEG and PNG files without annotations, too.
    objects: only images with exactly so many annotated objects. steps: what is done to each image.

    Raises DatasetError for a location that is none of these, an empty set, and, without `skip_bad_records`, the
    first bad record, image entry or annotation, naming index and key.
    """
    if limit is not None and limit < 1:
        raise DatasetError(f"{location}: limit: got {limit}; expected at least 1 image")
    store = ImageStore(cache_mb * 2**20)
    images = [] if annotated or annotations else _images_alone(location)
    if images:
        names, items = None, read_images(images)
    else:
        names, items = _open(location, image_dir, annotations, label_map, masks=masks)
    items = (item for item in _refuse_repeated_ids(items) if objects is None or _has_objects(item, objects))
    if skip_bad_records:
        items = map_ahead(lambda item: _refuse_undecodable(item, store), items)
    entries: list[Entry] = []
    skipped: list[str] = []
    for item in items:
        if isinstance(item, Entry):
            entries.append(item)
            if len(entries) == limit:
                break
        elif skip_bad_records:
            skipped.append(str(item))
        else:
            raise item
    if not entries:
        kind = "" if objects is None else f" with exactly {objects} object(s), as LabelBalance wants it"
        raise DatasetError(f"{location}: holds no usable image{kind}" + (f"; first: {skipped[0]}" if skipped else ""))
    if skipped:
        _log.warning("%s: %d bad records skipped; first: %s", location, len(skipped), skipped[0])
    annotated_ids = (i for entry in entries for i in entry.ground_truth.category_ids.tolist())
    categories = frozenset(annotated_ids if names is None else names)
    _check_label_map(location, categories, label_map)
    if names is None:
        names = _names_in_records(entries) if label_map is None else {i: name for name, i in label_map.items()}
    return DetectionDataset(tuple(entries), categories, tuple(skipped), threads, steps, names, store)


def _names_in_records(entries: Iterable[Entry]) -> dict[int, str]:
    """Of each category the name that the first record with one gives it."""
    names: dict[int, str] = {}
    for entry in entries:
        # Where labels tell the category, nothing depends on the names: a list of another length is of no use.
        if len(entry.category_names) == len(entry.ground_truth):
            for category, name in zip(entry.ground_truth.category_ids.tolist(), entry.category_names, strict=True):
                if name:
                    names.setdefault(category, name)
    return names


def _has_objects(item: Entry | DatasetError, objects: int) -> bool:
    return isinstance(item, DatasetError) or len(item.ground_truth) == objects


def _check_label_map(location: Place, categories: frozenset[int], label_map: Mapping[str, int] | None) -> None:
    """Records without names are not read by the map, and may have other ids."""
    if label_map is not None and categories and categories.isdisjoint(label_map.values()):
        both = side_by_side("the annotated ids", categories, "the label map's", label_map.values())
        raise DatasetError(f"{location}: {both}: see evaluation.accuracy.metric.COCOmAP.anno_path")


_Items = Iterator[Entry | DatasetError]


def _open(
    location: Place,
    image_dir: Path | None,
    annotations: Path | None,
    label_map: Mapping[str, int] | None,
    *,
    masks: bool,
) -> tuple[Mapping[int, str] | None, _Items]:
    """The names by category id where the files list them, and what they hold."""
    if isinstance(location, Address) and (annotations or image_dir or location.name.endswith(".json")):
        raise DatasetError(f"{location}: at an address only TFRecords are read; images with a JSON have to be local")
    if isinstance(location, Address):
        return None, read_record_files(find_records(location), label_map, masks=masks)
    records = None if annotations or image_dir or location.suffix == ".json" else find_records(location)
    if records:
        return None, read_record_files(records, label_map, masks=masks)
    if location.suffix == ".json":
        if annotations:
            raise DatasetError(f"{location}: is an annotations file itself; {annotations} was given as well")
        folder, path = location.parent, location
    else:
        folder = location
        path = folder / annotations if annotations else find_instances_file(folder)
    instances = load_instances(path, label_map)
    images = folder / image_dir if image_dir else find_image_folder(instances)
    return instances.category_names, read_instances(instances, images, masks=masks)


def _images_alone(folder: Place) -> list[Path]:
    """The images of a local folder that holds neither records nor an instances JSON."""
    if isinstance(folder, Address) or not folder.is_dir():
        return []
    described = find_record_files(folder) or [*folder.glob("*.json"), *folder.glob("annotations/*.json")]
    return [] if described else find_images(folder)


def _refuse_repeated_ids(items: Iterable[Entry | DatasetError]) -> _Items:
    seen: dict[int, str] = {}
    for item in items:
        if isinstance(item, Entry) and seen.setdefault(item.image_id, item.where) != item.where:
            yield DatasetError(f"{item.where}: image id {item.image_id} was used before, by {seen[item.image_id]}")
        else:
            yield item


def _refuse_undecodable(item: Entry | DatasetError, store: ImageStore) -> Entry | DatasetError:
    if isinstance(item, Entry):
        try:
            store.load(item)
        except DatasetError as error:
            return error
    return item
