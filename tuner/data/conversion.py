"""COCO images and their instances JSON as TFRecords of the Object Detection API, shard by shard.

Unlike `create_coco_tf_record`, which drops boxes of zero size or beyond the border, no object is left out: the records
and the JSON give the same mAP.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tuner.data.dataset import DetectionDataset, open_dataset
from tuner.data.image_size import JPEG_MAGIC
from tuner.data.images import Entry, ImageStore, map_ahead
from tuner.data.instances import load_instances
from tuner.data.records import AnnotatedJpeg, write_records
from tuner.errors import DatasetError
from tuner.files import file_sha256, write_text
from tuner.progress import Progress

# What a run that is stopped has to make again, at most. COCO's val2017 becomes 10 files of some 80 MB.
IMAGES_PER_SHARD = 500

_SCHEMA = 1
# What is known of each file: None until it is finished.
_Manifest = dict[str, dict[str, Any] | None]


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was converted.

    files: all shards in order. kept: how many of them were there already. images, objects: in all of them.
    has_masks: whether the objects have theirs. skipped: one message for each bad image that was left out.
    """

    files: tuple[Path, ...]
    kept: int
    images: int
    objects: int
    has_masks: bool
    skipped: tuple[str, ...]


def convert_coco(
    images: Path,
    annotations: Path,
    output: Path,
    progress: Progress,
    *,
    shards: int | None = None,
    limit: int | None = None,
    masks: bool = True,
    skip_bad_records: bool = False,
    fresh: bool = False,
) -> Conversion:
    """Write `output`/NAME.record, or NAME.record-00000-of-00010 and so on, for `annotations` [instances_]NAME.json.

    The order is that of the JSON. Shards that an earlier call finished, from the same images, annotations and category
    names, are kept unless `fresh`; all that is out of date is removed first, so that a set in the making never passes
    for a whole one.
    shards: number of files; unless given, one for each 500 images begun. limit: only the first so many images.
    masks: False leaves them out; where no annotation has a `segmentation`, there are none anyway.

    Raises DatasetError for a JSON, image or annotation that cannot be used, images that are no JPEG files, fewer images
    than shards, a file in the place of one of these that no call wrote (unless `fresh`), and a full disk.
    """
    with progress.stage("read") as stage:
        names, has_masks = _facts(annotations, masks=masks, skip_bad_records=skip_bad_records)
        dataset = open_dataset(
            annotations,
            image_dir=images.resolve(),
            limit=limit,
            skip_bad_records=skip_bad_records,
            cache_mb=0,
            masks=has_masks,
        )
        dataset = _jpegs(dataset, skip_bad_records=skip_bad_records)
        stage.note(f"{len(dataset)} images")
    parts = _parts(dataset, annotations, output, shards)
    manifest_file = output / f".{_stem(annotations)}.conversion.json"
    manifest = _read_manifest(manifest_file)
    for path in parts:
        if not fresh and path.name not in manifest and os.path.lexists(path):
            raise DatasetError(f"{path}: is there, but was not written by this command; give --fresh to replace it")
    with progress.stage("check") as stage:
        finished = {
            path.name: facts
            for path, part in parts.items()
            if not fresh and (facts := manifest.get(path.name)) and _is_finished(path, facts, part, names)
        }
        stage.note(f"{len(finished)} of {len(parts)} files are there")
    for name in {*manifest, *(path.name for path in parts)} - finished.keys():
        _remove(output / name)
    manifest = {path.name: finished.get(path.name) for path in parts}
    _write_manifest(manifest_file, manifest)
    with progress.stage("convert") as stage:
        for path, part in parts.items():
            if path.name not in finished:
                source = _source(part, names)
                write_records(path, progress.track(_annotated(part, names), len(part), path.name))
                manifest[path.name] = {"source_sha256": source, "sha256": file_sha256(path), "records": len(part)}
                _write_manifest(manifest_file, manifest)
        stage.note(f"{len(parts) - len(finished)} files")
    return Conversion(
        files=tuple(parts),
        kept=len(finished),
        images=len(dataset),
        objects=sum(len(entry.ground_truth) for entry in dataset.entries),
        has_masks=has_masks,
        skipped=dataset.skipped,
    )


def _facts(annotations: Path, *, masks: bool, skip_bad_records: bool) -> tuple[Mapping[int, str], bool]:
    """The categories' names, and whether masks are to be written."""
    instances = load_instances(annotations)
    total = len(instances.annotations)
    found = sum(isinstance(one, dict) and bool(one.get("segmentation")) for one in instances.annotations)
    if masks and 0 < found < total and not skip_bad_records:
        raise DatasetError(
            f"{annotations}: {total - found} of {total} annotations have no segmentation; "
            "give --no-masks, or --skip-bad-records to leave out the images that they are of"
        )
    return instances.categories, masks and found > 0


def _jpegs(dataset: DetectionDataset, *, skip_bad_records: bool) -> DetectionDataset:
    """The set without images that are no JPEG files, which these records cannot hold; the first one raises."""
    kept, skipped = [], list(dataset.skipped)
    for entry in dataset.entries:
        if replace(entry, size=len(JPEG_MAGIC)).read() == JPEG_MAGIC:
            kept.append(entry)
        else:
            skipped.append(f"{entry.where}: is no JPEG file, as records hold them; convert it first")
            if not skip_bad_records:
                raise DatasetError(skipped[-1])
    if not kept:
        raise DatasetError(skipped[0])
    return replace(dataset, entries=tuple(kept), skipped=tuple(skipped))


def _stem(annotations: Path) -> str:
    return annotations.stem.removeprefix("instances_")


def _parts(
    dataset: DetectionDataset, annotations: Path, output: Path, shards: int | None
) -> dict[Path, DetectionDataset]:
    """The images of each file, in order and as many in each as in the others, or one more."""
    total = len(dataset)
    count = -(-total // IMAGES_PER_SHARD) if shards is None else shards
    if not 1 <= count <= total:
        raise DatasetError(f"{output}: {total} images cannot fill {count} record files")
    name = f"{_stem(annotations)}.record"
    bounds = [total * index // count for index in range(count + 1)]
    return {
        output / (name if count == 1 else f"{name}-{index:05d}-of-{count:05d}"): replace(
            dataset, entries=dataset.entries[bounds[index] : bounds[index + 1]]
        )
        for index in range(count)
    }


def _annotated(part: DetectionDataset, names: Mapping[int, str]) -> Iterator[AnnotatedJpeg]:
    store = ImageStore(0)

    def annotate(entry: Entry) -> AnnotatedJpeg:
        # Decoded, so that what is written is known to be sound and of the size that is annotated.
        store.load(entry)
        truth = entry.ground_truth
        masks = () if truth.masks is None else (truth.masks.decode(index) for index in range(len(truth)))
        return AnnotatedJpeg(
            encoded=entry.read(),
            height=entry.height,
            width=entry.width,
            image_id=entry.image_id,
            filename=entry.name,
            ground_truth=truth,
            category_names=tuple(names[category] for category in truth.category_ids.tolist()),
            masks=tuple(map(_png, masks)),
        )

    return map_ahead(annotate, part.entries)


def _png(mask: NDArray[np.bool_]) -> bytes:
    encoded: bytes = tf.io.encode_png(mask[:, :, np.newaxis].astype(np.uint8)).numpy()
    return encoded


def _source(part: DetectionDataset, names: Mapping[int, str]) -> str:
    """Hex SHA-256 of all that the records of a file are made from."""
    masks = [entry.ground_truth.masks is not None for entry in part.entries]
    facts = [_SCHEMA, part.sha256, [entry.name for entry in part.entries], sorted(names.items()), masks]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _is_finished(path: Path, facts: Mapping[str, Any], part: DetectionDataset, names: Mapping[int, str]) -> bool:
    return (
        path.is_file()
        and facts.get("sha256") == file_sha256(path)
        and facts.get("source_sha256") == _source(part, names)
    )


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise DatasetError(f"{path}: cannot be replaced: {error.strerror or error}") from error


def _read_manifest(path: Path) -> _Manifest:
    """What an earlier call wrote; nothing where there is none, or none that can be read."""
    try:
        content = json.loads(path.read_bytes())
        shards: _Manifest = content["shards"] if content["schema"] == _SCHEMA else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    # Names of files beside it only: what it lists may be removed.
    sound = isinstance(shards, dict) and all(
        Path(name).name == name and isinstance(facts, dict | None) for name, facts in shards.items()
    )
    return shards if sound else {}


def _write_manifest(path: Path, shards: _Manifest) -> None:
    write_text(path, json.dumps({"schema": _SCHEMA, "shards": shards}, indent=1) + "\n")
