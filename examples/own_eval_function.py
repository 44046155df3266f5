"""Tune a detector by your own measure of accuracy: here, how many of the annotated objects it finds.

    python examples/own_eval_function.py --input_model datasets/shapes/detector.pb \
        --dataset_location datasets/shapes/evaluation.record --output_model int8.pb

The measure is any function from a GraphDef to a number of which more is better; a callback watches the trials.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

import tuner
from tuner.data.dataset import DetectionDataset, open_dataset
from tuner.errors import TunerError
from tuner.trial import Trial


def main() -> int:
    """Tune, and print what was found; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--input_model", type=Path, required=True)
    parser.add_argument("--dataset_location", type=Path, required=True, help="record file, instances JSON or folder")
    parser.add_argument("--output_model", type=Path, required=True)
    parser.add_argument("--images", type=int, default=100, help="the first so many")
    asked = parser.parse_args()
    try:
        images = open_dataset(asked.dataset_location, limit=asked.images)
        result = tuner.tune(
            {
                "model": {"name": "own_eval_function"},
                "quantization": {"calibration": {"sampling_size": min(50, asked.images)}},
                "tuning": {"accuracy_criterion": {"relative": 0.02}},
            },
            asked.input_model,
            asked.output_model,
            eval_func=FoundObjects(images),
            q_dataloader=[sample.image[np.newaxis] for sample in images],
            callbacks=[watch],
        )
    except TunerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{result.status.value}: {result.reason}")
    return 0 if result.status.value == "accepted" else 3


class FoundObjects:
    """The share of annotated objects in whose middle a box of their category lies, with a score of at least 0.3."""

    def __init__(self, images: DetectionDataset) -> None:
        self.images = images

    def __call__(self, graph_def: Any) -> float:
        """The share for one graph."""
        found, objects = 0, 0
        with tf.Graph().as_default() as graph:
            tf.import_graph_def(graph_def, name="")
        names = [f"detection_{part}:0" for part in ("boxes", "scores", "classes")]
        with tf.compat.v1.Session(graph=graph) as session:
            for sample, entry in zip(self.images, self.images.entries, strict=True):
                boxes, scores, classes = session.run(names, {"image_tensor:0": sample.image[np.newaxis]})
                sure = scores[0] >= 0.3
                for box, category in zip(entry.ground_truth.boxes, entry.ground_truth.category_ids, strict=True):
                    middle = (box[:2] + box[2:]) / 2
                    around = (boxes[0, :, :2] <= middle).all(1) & (middle <= boxes[0, :, 2:]).all(1)
                    found += bool((sure & around & (classes[0] == category)).any())
                    objects += 1
        return found / max(objects, 1)


def watch(trial: Trial, running: tuner.RunningResult) -> None:
    """Print each trial; end the search with the first plan that passes and is half as slow as the float model."""
    loss = running.loss(trial)
    print(f"trial {trial.number}: {trial.proposal.idea}: {'failed' if loss is None else f'loss {loss:.2%}'}")
    if running.passes and running.best and running.best.measurement.latency_ms < running.baseline.latency_ms / 2:
        raise tuner.StopTuning("fast enough")


if __name__ == "__main__":
    sys.exit(main())
