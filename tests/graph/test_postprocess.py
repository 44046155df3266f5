"""The whole of it: rewritten where the detections stay, and otherwise the original with the reason."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.graph.conftest import Nms
from tuner.graph import batched_nms, postprocess
from tuner.graph.compare import differences
from tuner.graph.postprocess import optimize_postprocess
from tuner.model.detection_model import DetectionModel
from tuner.model.loading import load_model
from tuner.model.runner import ModelRunner

Make = Callable[..., DetectionModel]


def pictures(count: int) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(8)
    return [rng.integers(0, 256, (1, 40 + 10 * n, 60, 3), np.uint8) for n in range(count)]


@pytest.mark.parametrize("resize", ["fixed", "keep_ratio", "padded"])
def test_a_detector(detector: Make, resize: str) -> None:
    model = detector(Nms(), resize)
    found = optimize_postprocess(model, pictures(3))
    assert found.done
    assert found.notes == (
        f"preprocessing and non-max suppression batched, {len(model.graph_def.node)} to "
        f"{len(found.model.graph_def.node)} nodes, same detections on 3 images",
    )
    assert (found.model.inputs, found.model.outputs) == (model.inputs, model.outputs)
    assert "CombinedNonMaxSuppression" in {node.op for node in found.model.graph_def.node}
    image = pictures(5)[-1]
    with ModelRunner(model, as_written=True) as before, ModelRunner(found.model, as_written=True) as after:
        batch = np.concatenate([image, image[:, ::-1], image[:, :, ::-1]])
        assert set(differences(before.run(batch), after.run(batch)).values()) == {0.0}
        assert len(before.detect(image[0])) > 0


def test_the_same_graph_each_time(detector: Make) -> None:
    model = detector(Nms())
    first, second = (optimize_postprocess(model, pictures(1)).model for _ in range(2))
    assert first.sha256 == second.sha256


def test_a_graph_that_is_rewritten_already_is_left_alone_in_silence(detector: Make) -> None:
    once = optimize_postprocess(detector(Nms()), pictures(1)).model
    again = optimize_postprocess(once, pictures(1))
    assert (again.model is once, again.notes, again.done) == (True, (), False)


def test_anchors_of_a_fixed_size_are_constant(detector: Make) -> None:
    found = optimize_postprocess(detector(Nms(), "fixed"), pictures(1)).model
    assert not any("meshgrid" in node.name.lower() for node in found.graph_def.node)
    found = optimize_postprocess(detector(Nms(), "keep_ratio"), pictures(1)).model
    assert any("meshgrid" in node.name.lower() for node in found.graph_def.node)


def test_what_is_not_recognised_stays_and_is_told(detector: Make) -> None:
    model = detector(replace(Nms(), sigma=0.5))
    found = optimize_postprocess(model, pictures(1))
    assert found.done
    assert [note.partition(":")[0] for note in found.notes] == [
        f"preprocessing batched, {len(model.graph_def.node)} to {len(found.model.graph_def.node)} nodes, "
        "same detections on 1 images",
        "non-max suppression left as it is",
    ]
    assert found.notes[1].endswith("soft suppression")


def test_nothing_is_recognised(detector: Make) -> None:
    model = detector(replace(Nms(), sigma=0.5), "brightened")
    found = optimize_postprocess(model, pictures(1))
    assert found.model is model
    assert not found.done
    assert [note.partition(":")[0] for note in found.notes] == [
        "preprocessing left as it is",
        "non-max suppression left as it is",
    ]


def test_other_detections_bring_the_original_back(detector: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batched_nms, "_clip", lambda boxes, window: boxes)
    model = detector(Nms())
    found = optimize_postprocess(model, pictures(2))
    assert found.model is model
    (note,) = found.notes
    assert note.startswith("preprocessing and non-max suppression left as they are: ")
    assert "differs by" in note


def test_a_graph_that_fails_brings_the_original_back(detector: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    model = detector(Nms())
    image = model.inputs[0].removesuffix(":0")

    class Failing(ModelRunner):
        def run(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
            if any(node.op == "CombinedNonMaxSuppression" for node in self._model.graph_def.node):
                return super().run(images.astype(np.float32) / 2)
            return super().run(images)

    monkeypatch.setattr(postprocess, "ModelRunner", Failing)
    (note,) = optimize_postprocess(model, pictures(1)).notes
    assert f"input {image}:0 takes uint8" in note


@pytest.mark.parametrize("name", ["nanodet_plus_m_320", "yolo_fastestv2_bn"])
def test_a_detector_without_loops_is_left_alone_in_silence(assets: Path, name: str) -> None:
    model = load_model(assets / f"detectors/{name}.pb")
    found = optimize_postprocess(model, pictures(1))
    assert (found.model is model, found.notes, found.done) == (True, (), False)


def test_a_real_detector(assets: Path) -> None:
    model = load_model(assets / "od_api/ssd_mobilenet_v1_depth05/frozen_inference_graph.pb")
    images = pictures(2)
    found = optimize_postprocess(model, images)
    assert found.done
    assert len(found.notes) == 1
    assert len(found.model.graph_def.node) < 0.25 * len(model.graph_def.node)
