"""Which ops are pinned to a device, and what is said when there are none."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tuner.errors import ConfigError, ModelError
from tuner.graph.place import place_ops
from tuner.model.detection_model import DetectionModel, ModelFormat
from tuner.model.loading import load_model
from tuner.model.runner import ModelRunner

tf1 = tf.compat.v1


@pytest.fixture(scope="module")
def model() -> DetectionModel:
    with tf.Graph().as_default() as graph:
        boxes = tf1.placeholder(tf.float32, [4, 4], name="boxes")
        with tf1.name_scope("Postprocessor"):
            scores = tf.reduce_sum(boxes, 1, name="scores")
            kept = tf.image.non_max_suppression(boxes, scores, 2, name="suppress")
        tf.identity(kept, name="kept")
    return DetectionModel(graph.as_graph_def(), ("boxes:0",), ("kept:0",), Path("m.pb"), ModelFormat.FROZEN_GRAPH)


def pinned(model: DetectionModel, **how: list[str]) -> set[str]:
    placed = place_ops(model, "/device:CPU:0", **how)
    names = {node.name for node in placed.model.graph_def.node if node.device}
    assert sum(placed.pinned.values()) == len(names)
    assert {node.device for node in placed.model.graph_def.node} <= {"", "/device:CPU:0"}
    assert not any(node.device for node in model.graph_def.node)
    with ModelRunner(placed.model) as runner:
        assert runner.run(np.eye(4, dtype=np.float32))["kept:0"].shape == (2,)
    return names


def test_what_is_meant(model: DetectionModel) -> None:
    (suppression,) = pinned(model, types=["NonMaxSuppressionV3"])
    # By its type, and with it the constants in its scope.
    assert pinned(model, parts=["NonMaxSuppression"]) > {suppression}
    assert pinned(model, regexes=[r"^kept$"]) == {"kept"}
    assert pinned(model, parts=["kept"], types=["NonMaxSuppressionV3"]) == {"kept", suppression}
    scope = {node.name for node in model.graph_def.node if node.name.startswith("Postprocessor/")}
    assert pinned(model, parts=["Postprocessor"]) == pinned(model, regexes=["^Post"]) == scope
    # One text in two ways means both.
    assert pinned(model, parts=["Sum"], types=["Sum"]) >= {"Postprocessor/scores"}


def test_how_many_of_which_types(model: DetectionModel) -> None:
    placed = place_ops(model, "/device:GPU:1", parts=["kept", "boxes"])
    assert placed.pinned == {"Placeholder": 1, "Identity": 1}


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"parts": ["NonMaxSupression"]}, "no op is meant by 'NonMaxSupression' (did you mean the type NonMaxSuppres"),
        ({"types": ["NonMaxSuppression"]}, "no op is meant by 'NonMaxSuppression' (did you mean the type NonMaxSup"),
        ({"types": ["identity"]}, "(did you mean the type Identity?)"),
        ({"parts": ["kept"], "regexes": ["^ept"]}, "no op is meant by '^ept'; the graph has ops of the types Const, "),
    ],
)
def test_none_matched(model: DetectionModel, how: dict[str, list[str]], said: str) -> None:
    with pytest.raises(ModelError) as error:
        place_ops(model, "/device:CPU:0", **how)
    assert str(error.value).startswith("m.pb: ") and said in str(error.value)


@pytest.mark.parametrize("device", ["", "CPU", "CPU:0", "/foo", "/device:CPU:zero", "/device:CPU", "/device:CPU:0 "])
def test_a_bad_device(model: DetectionModel, device: str) -> None:
    with pytest.raises(ConfigError, match="expected /device:TYPE:NUMBER"):
        place_ops(model, device, parts=["kept"])


@pytest.mark.parametrize("device", ["/cpu:0", "/job:worker/replica:0/task:3/device:GPU:1", "/device:XPU:0"])
def test_devices(model: DetectionModel, device: str) -> None:
    assert place_ops(model, device, parts=["kept"]).pinned == {"Identity": 1}
    tf.DeviceSpec.from_string(device)


@pytest.mark.parametrize(
    ("how", "said"),
    [({}, "no op to place"), ({"parts": [""]}, "no op to place"), ({"regexes": ["("]}, "regular expression '('")],
)
def test_no_op_asked_for(model: DetectionModel, how: dict[str, list[str]], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        place_ops(model, "/device:CPU:0", **how)
    assert said in str(error.value)


def test_a_real_detector(assets: Path) -> None:
    placed = place_ops(
        load_model(assets / "detectors/fastestdet.pb"), "/device:CPU:0", regexes=["^Postprocessor/"], types=["Conv2D"]
    )
    assert placed.pinned["Conv2D"] > 10
