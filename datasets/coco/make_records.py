"""Turn COCO images and their instances JSON into TFRecords as the TF Object Detection API lays them out.

Every image is decoded on the way, so that what is written is known to be sound. Unlike `create_coco_tf_record`, which
drops boxes of zero size or beyond the border, no object is left out: the records and the JSON give the same mAP.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from tuner.data.dataset import open_dataset
from tuner.data.instances import load_instances
from tuner.data.records import AnnotatedJpeg, write_records
from tuner.errors import TunerError


def main(arguments: list[str] | None = None) -> int:
    """Write the records; returns the exit code: 0, or 2 for input that cannot be used."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=Path, required=True, help="folder of the JPEG images")
    parser.add_argument("--instances", type=Path, required=True, help="COCO instances JSON")
    parser.add_argument("--output", type=Path, required=True, help="record file, or the shards' name before -00000-of-")
    parser.add_argument("--shards", type=int, default=1, help="number of record files (default: 1)")
    parser.add_argument("--limit", type=int, help="only the first so many images")
    options = parser.parse_args(arguments)
    if options.shards < 1:
        parser.error(f"--shards: got {options.shards}; expected at least 1")
    try:
        images = _images(options.instances, options.images.resolve(), options.limit)
        count = write_records(options.output, images, options.shards)
    except TunerError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{count} records written to {options.output}" + (f" in {options.shards} shards" * (options.shards > 1)))
    return 0


def _images(instances: Path, folder: Path, limit: int | None) -> Iterator[AnnotatedJpeg]:
    names = load_instances(instances).categories
    dataset = open_dataset(instances, image_dir=folder, limit=limit, cache_mb=0)
    for entry, sample in zip(dataset.entries, dataset, strict=True):
        truth = sample.ground_truth
        yield AnnotatedJpeg(
            encoded=entry.read(),
            height=entry.height,
            width=entry.width,
            image_id=entry.image_id,
            filename=entry.name,
            ground_truth=truth,
            category_names=tuple(names[category] for category in truth.category_ids.tolist()),
        )


if __name__ == "__main__":
    sys.exit(main())
