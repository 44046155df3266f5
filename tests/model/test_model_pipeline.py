"""Several models in one process: each under its name, all closed together."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

import tuner
from tuner.errors import ModelError
from tuner.model.detection_model import DetectionModel, ModelFormat
from tuner.model.loading import load_model
from tuner.model.model_pipeline import Pipeline
from tuner.model.runner import ModelRunner

tf1 = tf.compat.v1


@pytest.fixture
def heatmaps() -> DetectionModel:
    """A network of one output that is no detection: [N, h, w, 2] from crops of any size."""
    with tf.Graph().as_default() as graph:
        image = tf1.placeholder(tf.float32, [None, None, None, 3], name="crops")
        weights = np.random.default_rng(0).normal(0, 1, (3, 3, 3, 2)).astype(np.float32)
        tf.nn.conv2d(image, weights, 2, "SAME", name="heatmaps")
    outputs = ("heatmaps:0",)
    return DetectionModel(graph.as_graph_def(), ("crops:0",), outputs, Path("h.pb"), ModelFormat.FROZEN_GRAPH)


def test_detectors_and_networks_run_by_name(
    frozen: tuple[Path, Any],
    write_keras: Callable[..., Any],
    heatmaps: DetectionModel,
    images: NDArray[np.uint8],
) -> None:
    keras, batch, said = write_keras("net.keras")
    path, expected = frozen
    with tuner.Pipeline({"first": path, "second": str(path), "maps": heatmaps, "net": keras}) as models:
        assert models.names == ("first", "second", "maps", "net")
        boxes = models.detect("first", images[0]).boxes
        np.testing.assert_allclose(boxes, expected["detection_boxes"][0][:7], rtol=1e-5)
        np.testing.assert_array_equal(models.detect("second", images[0]).boxes, boxes)
        # An image of one after the other, of another size, and another number of them.
        assert models.run("maps", np.repeat(images[:, :8, :10], 3, axis=0))["heatmaps:0"].shape == (3, 4, 5, 2)
        for found, value in zip(models.run("net", batch).values(), said.values(), strict=True):
            np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-6)
        assert models["maps"].input_shape == (None, None, None, 3)
        with pytest.raises(ModelError, match=r"no detection outputs: found heatmaps:0"):
            models.detect("maps", images[0])


def test_another_name(frozen: tuple[Path, Any], images: NDArray[np.uint8]) -> None:
    with Pipeline({"people": frozen[0], "faces": frozen[0]}) as models, pytest.raises(ModelError) as caught:
        models.run("peolpe", images)
    message = "no model 'peolpe' in the pipeline; expected one of people, faces (did you mean 'people'?)"
    assert str(caught.value) == message


def test_a_closed_pipeline_says_so(frozen: tuple[Path, Any], images: NDArray[np.uint8]) -> None:
    with Pipeline({"people": frozen[0], "faces": frozen[0]}) as models:
        runner = models["people"]
    models.close()
    with pytest.raises(ModelError, match=r"the pipeline of people, faces is closed; 'faces' cannot be run any more"):
        models.detect("faces", images[0])
    with pytest.raises(RuntimeError, match="closed"):
        runner.run(images)


def test_no_models() -> None:
    with pytest.raises(ModelError, match="a pipeline of no models"):
        Pipeline({})


def test_what_was_opened_is_closed_when_the_next_cannot_be(
    frozen: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []
    close = ModelRunner.close

    def noted(runner: ModelRunner) -> None:
        closed.append(runner)
        close(runner)

    monkeypatch.setattr(ModelRunner, "close", noted)
    with pytest.raises(ModelError, match=r"absent.pb: no such file or folder"):
        Pipeline({"here": load_model(frozen[0]), "absent": tmp_path / "absent.pb"})
    assert len(closed) == 1
