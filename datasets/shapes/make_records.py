"""Draw the calibration and evaluation sets: python datasets/shapes/make_records.py

For each set it writes SET.record, as the TF Object Detection API's create_coco_tf_record lays it out, and
SET_instances.json, COCO's own annotation file of the same objects.
"""

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from scenes import CATEGORIES, JPEG_QUALITY, Scene, draw_scene

from tuner.data.records import AnnotatedJpeg, write_records
from tuner.detections import GroundTruth
from tuner.files import write_text

IMAGE_COUNTS = {"calibration": 100, "evaluation": 400}


def main() -> None:
    """Write both sets to a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="the folder to write to")
    folder: Path = parser.parse_args().output
    for split, count in IMAGE_COUNTS.items():
        scenes = [draw_scene(split, index) for index in range(count)]
        record = folder / f"{split}.record"
        write_records(record, annotated_jpegs(split, scenes))
        write_text(folder / f"{split}_instances.json", json.dumps(instances(split, scenes), separators=(",", ":")))
        print(f"{record}: {count} images, {record.stat().st_size} bytes")


def annotated_jpegs(split: str, scenes: Iterable[Scene]) -> Iterator[AnnotatedJpeg]:
    """Encode scenes as JPEG; image ids count from 1."""
    for image_id, scene in enumerate(scenes, start=1):
        height, width = scene.image.shape[:2]
        yield AnnotatedJpeg(
            encoded=tf.io.encode_jpeg(scene.image, quality=JPEG_QUALITY).numpy(),
            height=height,
            width=width,
            image_id=image_id,
            filename=file_name(split, image_id),
            ground_truth=GroundTruth(
                boxes=scene.boxes,
                category_ids=scene.category_ids,
                is_crowd=np.zeros(len(scene.category_ids), bool),
                areas_px=scene.areas_px,
            ),
            category_names=tuple(CATEGORIES[category_id] for category_id in scene.category_ids.tolist()),
        )


def instances(split: str, scenes: Iterable[Scene]) -> dict[str, Any]:
    """Return the content of COCO's instances JSON for these scenes."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, scene in enumerate(scenes, start=1):
        height, width = scene.image.shape[:2]
        images.append({"id": image_id, "file_name": file_name(split, image_id), "height": height, "width": width})
        for category_id, box, area, polygon in zip(
            scene.category_ids.tolist(), scene.boxes_px, scene.areas_px, scene.polygons_px, strict=True
        ):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category_id,
                    "bbox": box.tolist(),
                    "area": area,
                    "iscrowd": 0,
                    "segmentation": [polygon.ravel().tolist()],
                }
            )
    categories = [{"id": category_id, "name": name} for category_id, name in CATEGORIES.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def file_name(split: str, image_id: int) -> str:
    """Return the name that record and JSON give to an image."""
    return f"shapes_{split}_{image_id:06d}.jpg"


if __name__ == "__main__":
    main()
