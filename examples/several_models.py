"""Two detectors and a heatmap network in one process: boxes of the first are cut out and given to the other two.

    python examples/several_models.py --detector people.pb --second faces.pb --heatmaps pose.pb \
        --dataset_location coco/annotations/instances_val2017.json

Any of the four model formats will do. The heatmap network's first output is [1, h, w, K]: K heatmaps of a crop.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tuner import Pipeline
from tuner.data.dataset import open_dataset
from tuner.errors import TunerError


def main() -> int:
    """Run the models on the first images of a data set; returns the exit code."""
    asked = _arguments()
    try:
        images = open_dataset(asked.dataset_location, limit=asked.images)
        names = {"detector": asked.detector, "second": asked.second, "heatmaps": asked.heatmaps}
        with Pipeline(names) as models:
            for sample in images:
                show(models, sample.name, sample.image, asked)
    except TunerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def show(models: Pipeline, name: str, image: NDArray[np.uint8], asked: argparse.Namespace) -> None:
    """Run the three models on one image, [H, W, 3], and print what they find."""
    found = models.detect("detector", image)
    best = [index for index in np.argsort(-found.scores) if found.scores[index] >= asked.score][: asked.boxes]
    print(f"{name}: {len(best)} of {len(found)} boxes")
    for index in best:
        top, left, bottom, right = pixels(found.boxes[index], image.shape[:2])
        print(f"  category {found.category_ids[index]} at {found.scores[index]:.2f}: {top},{left} to {bottom},{right}")
        crop = image[top:bottom, left:right]
        inside = models.detect("second", crop)
        sure = np.flatnonzero(inside.scores >= asked.score)
        print(f"    second: {len(sure)} boxes, categories {sorted(set(inside.category_ids[sure].tolist()))}")
        for channel, (row, column, value) in enumerate(peaks(heatmaps_of(models, crop))):
            y, x = top + row * (bottom - top), left + column * (right - left)
            print(f"    heatmap {channel}: {value:.2f} at {y:.0f},{x:.0f}")


def pixels(box: NDArray[np.float32], size: tuple[int, ...]) -> tuple[int, int, int, int]:
    """A box of ymin xmin ymax xmax, 0..1, as whole pixels inside an image of `size`, at least one each way."""
    height, width = size
    top, left = min(int(box[0] * height), height - 1), min(int(box[1] * width), width - 1)
    top, left = max(top, 0), max(left, 0)
    bottom, right = int(np.ceil(box[2] * height)), int(np.ceil(box[3] * width))
    return top, left, max(min(bottom, height), top + 1), max(min(right, width), left + 1)


def heatmaps_of(models: Pipeline, crop: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The heatmaps of a crop, [h, w, K]; the crop is resized where the network takes one size only."""
    _, height, width, _ = models["heatmaps"].input_shape or (None,) * 4
    batch = crop[np.newaxis]
    if height is not None and width is not None:
        batch = tf.image.resize(batch, (height, width)).numpy().round().astype(np.uint8)
    first, *_ = models.run("heatmaps", batch).values()
    return np.asarray(first[0], np.float32)


def peaks(heatmaps: NDArray[np.float32]) -> list[tuple[float, float, float]]:
    """Of each heatmap of [h, w, K] the greatest value: its row and column, 0..1 of the crop, and the value."""
    height, width, _ = heatmaps.shape
    found = []
    for heatmap in np.moveaxis(heatmaps, 2, 0):
        row, column = np.unravel_index(heatmap.argmax(), heatmap.shape)
        found.append(((row + 0.5) / height, (column + 0.5) / width, float(heatmap.max())))
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--detector", type=Path, required=True, help="finds the boxes")
    parser.add_argument("--second", type=Path, required=True, help="a detector that is given the crops")
    parser.add_argument("--heatmaps", type=Path, required=True, help="a network that is given the crops")
    parser.add_argument("--dataset_location", type=Path, required=True, help="record file, instances JSON or folder")
    parser.add_argument("--images", type=int, default=3, help="the first so many")
    parser.add_argument("--boxes", type=int, default=2, help="the best so many of each image")
    parser.add_argument("--score", type=float, default=0.3, help="boxes below are left out")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
