"""The three forms of an export are one detector."""

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.two_stage.conftest import Small, pictures
from tests.two_stage.network import DETECTION_OUTPUTS, DETECTIONS, MASK_SIDE
from tuner.model.detection_model import ModelFormat
from tuner.model.loading import load_model
from tuner.model.runner import ModelRunner

IMAGES = np.concatenate([pictures(1)[0], pictures(1, seed=1)[0]])

Values = dict[str, NDArray[np.float32]]


@pytest.fixture(scope="module")
def expected(small: Small) -> Values:
    """What the frozen graph finds."""
    with ModelRunner(small.model) as runner:
        return runner.run(IMAGES)


@pytest.mark.parametrize(
    ("form", "model_format"),
    [
        ("frozen_inference_graph.pb", ModelFormat.FROZEN_GRAPH),
        ("", ModelFormat.CHECKPOINT),
        ("saved_model", ModelFormat.SAVED_MODEL),
    ],
)
def test_endpoints(small: Small, form: str, model_format: ModelFormat, expected: Values) -> None:
    model = load_model(small.folder / form)
    masks = ["detection_masks:0"] if small.has_masks else []
    assert model.format is model_format
    assert model.inputs == ("image_tensor:0",)
    assert model.outputs == (*(f"{name}:0" for name in DETECTION_OUTPUTS), *masks)
    with ModelRunner(model) as runner:
        found = runner.run(IMAGES)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
    assert found["detection_boxes:0"].shape == (2, DETECTIONS, 4)
    if small.has_masks:
        assert found["detection_masks:0"].shape == (2, DETECTIONS, MASK_SIDE, MASK_SIDE)
