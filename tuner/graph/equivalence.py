"""Whether a rewritten graph says the same as the one it was made of: both are run on the same images."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tuner.errors import ModelError
from tuner.graph.compare import relative_differences
from tuner.graph.input_shapes import shape_to_feed
from tuner.model.detection_model import DetectionModel
from tuner.model.frozen_graph import import_graph
from tuner.model.runner import ModelRunner

TOLERANCE = 1e-5

# Of random images, where the input leaves height and width open. Two, so that nothing is right for one size alone.
_OPEN_SIZES = ((320, 320), (240, 416))


def check_same_results(
    before: DetectionModel, after: DetectionModel, images: Iterable[NDArray[Any]], tolerance: float = TOLERANCE
) -> dict[str, float]:
    """The largest relative difference of each output between two graphs of one detector, over all of `images`.

    images: batches as the model takes them. What "relative" means, and which order of detections is the same:
    `relative_differences`. Both graphs run as written, since TensorFlow's own rewriting changes the last bits.
    Raises ModelError for a difference above `tolerance`, naming the output, and for a graph that does not run.
    """
    largest = dict.fromkeys(before.outputs, 0.0)
    with ModelRunner(before, as_written=True) as first, ModelRunner(after, as_written=True) as second:
        for number, batch in enumerate(images, 1):
            found = relative_differences(first.run(batch), second.run(batch), tolerance)
            for output, difference in found.items():
                if not difference <= tolerance:
                    raise ModelError(
                        f"{before.source}: {output} differs by {difference:.2g} of its largest value on image "
                        f"{number}; allowed are {tolerance:g}"
                    )
                largest[output] = max(largest[output], difference)
    return largest


def random_images(model: DetectionModel, count: int = 4) -> list[NDArray[Any]]:
    """Batches of one image of noise, in the shapes and the type that the model's first input takes; always the same.

    Whole numbers are 0 to 255, floats 0 to 1. Sizes that the input leaves open are 320 x 320 and 240 x 416 in turns.
    Raises ModelError for an input that takes no numbers.
    """
    random = np.random.default_rng(0)
    with tf.Graph().as_default() as graph:
        import_graph(model.graph_def)
        fed = graph.get_tensor_by_name(model.inputs[0])
    dtype = fed.dtype
    if not (dtype.is_integer or dtype.is_floating):
        raise ModelError(f"{model.source}: input {model.inputs[0]} takes {dtype.name}: no images can be made for it")
    found = []
    for number in range(count):
        shape = shape_to_feed(fed.shape, *_OPEN_SIZES[number % len(_OPEN_SIZES)])
        if dtype.is_integer:
            found.append(random.integers(0, 256, shape).astype(dtype.as_numpy_dtype))
        else:
            found.append(random.random(shape, np.float32).astype(dtype.as_numpy_dtype))
    return found
