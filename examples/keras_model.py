"""Tune a Keras network that is no detector: it is judged by how often its int8 graph agrees with it.

    python examples/keras_model.py --dataset_location datasets/shapes/calibration.record --output_model int8.pb

With `--input_model=net.keras` your own; else a small network with random weights is made and saved beside the output.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

import tuner
from tuner.data.dataset import open_dataset
from tuner.errors import TunerError

SIDE = 64


def main() -> int:
    """Tune, and print what was found; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--input_model", type=Path, help="a .keras or .h5 file of images to classes")
    parser.add_argument("--dataset_location", type=Path, required=True, help="record file, or folder of images")
    parser.add_argument("--output_model", type=Path, required=True)
    parser.add_argument("--images", type=int, default=60, help="the first so many")
    asked = parser.parse_args()
    try:
        samples = open_dataset(asked.dataset_location, limit=asked.images)
        images = np.concatenate([tf.image.resize(sample.image[np.newaxis], (SIDE, SIDE)) for sample in samples])
        path = asked.input_model or save_network(asked.output_model.with_suffix(".keras"))
        classes = keras.models.load_model(path).predict(images, verbose=0).argmax(1)
        result = tuner.tune(
            {
                "model": {"name": "keras_model"},
                "quantization": {"calibration": {"sampling_size": min(20, asked.images)}},
                "tuning": {"accuracy_criterion": {"absolute": 0.1}},
            },
            path,
            asked.output_model,
            eval_func=lambda graph_def: float((run(graph_def, images).argmax(1) == classes).mean()),
            q_dataloader=[images[index : index + 1] for index in range(len(images))],
        )
    except TunerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if result.best is not None:
        print(f"{result.status.value}: agrees on {result.best.measurement.accuracy:.0%} of {len(images)} images")
    return 0 if result.status.value == "accepted" else 3


def save_network(path: Path) -> Path:
    """Save a network from images of 0..255, [N, 64, 64, 3], to five classes."""
    keras.utils.set_random_seed(1)
    image = keras.Input((SIDE, SIDE, 3))
    data = keras.layers.Rescaling(1 / 127.5, -1)(image)
    for width in (16, 32, 32):
        data = keras.layers.Conv2D(width, 3, strides=2, activation="relu")(data)
    classes = keras.layers.Dense(5)(keras.layers.Flatten()(data))
    path.parent.mkdir(parents=True, exist_ok=True)
    keras.Model(image, classes).save(path)
    return path


def run(graph_def: Any, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """What a graph with one input gives for images, [N, classes]: the result that nothing else in it reads."""
    read = {name.partition(":")[0].lstrip("^") for node in graph_def.node for name in node.input}
    (output,) = [node.name for node in graph_def.node if node.name not in read and node.op != "NoOp"]
    (image,) = [node.name for node in graph_def.node if node.op == "Placeholder"]
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
    with tf.compat.v1.Session(graph=graph) as session:
        return np.asarray(session.run(f"{output}:0", {f"{image}:0": images}))


if __name__ == "__main__":
    sys.exit(main())
