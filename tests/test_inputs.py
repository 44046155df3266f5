import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tuner.config import TuningConfig, parse_config
from tuner.data.dataset import DetectionDataset
from tuner.data.records import AnnotatedJpeg, write_records
from tuner.detections import GroundTruth
from tuner.errors import ConfigError, DatasetError
from tuner.inputs import open_inputs

TRUTH = GroundTruth(np.array([[0.0, 0.0, 0.5, 0.5]]), np.array([3]), np.array([False]), np.array([50.0]))


def jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 24, 3), np.uint8)
    encoded: bytes = tf.io.encode_jpeg(pixels).numpy()
    return encoded


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images 1 to 3 with a JSON in COCO's own layout, and as records the images 4 to 6, named `kind`."""
    (tmp_path / "coco" / "val2017").mkdir(parents=True)
    (tmp_path / "coco" / "annotations").mkdir()
    images = []
    for image_id in (1, 2, 3):
        (tmp_path / "coco" / "val2017" / f"{image_id}.jpg").write_bytes(jpeg(image_id))
        images.append({"id": image_id, "file_name": f"{image_id}.jpg", "height": 16, "width": 24})
    annotation = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [0, 0, 12, 8], "area": 50, "iscrowd": 0}
    table = {"images": images, "annotations": [annotation], "categories": [{"id": 3, "name": "kind"}]}
    (tmp_path / "coco" / "annotations" / "instances_val2017.json").write_text(json.dumps(table))
    write_records(
        tmp_path / "set.record",
        [AnnotatedJpeg(jpeg(i), 16, 24, i, f"{i}.jpg", TRUTH, ("kind",)) for i in (4, 5, 6)],
    )
    return tmp_path


Parse = Callable[..., TuningConfig]


@pytest.fixture
def parse(folder: Path) -> Parse:
    """Settings with relative paths: (evaluation.accuracy, quantization.calibration)."""

    def parsed(accuracy: dict[str, Any], calibration: dict[str, Any] | None = None) -> TuningConfig:
        settings = {
            "model": {"name": "m", "framework": "tensorflow"},
            "quantization": {"calibration": calibration or {}},
            "evaluation": {"accuracy": accuracy},
        }
        return parse_config(settings, "test", folder)

    return parsed


def coco(root: str = "coco") -> dict[str, Any]:
    return {"dataset": {"COCORaw": {"root": root}}}


def records(root: str = "set.record") -> dict[str, Any]:
    return {"dataset": {"COCORecord": {"root": root}}}


def ids(dataset: Any) -> list[int]:
    assert isinstance(dataset, DetectionDataset)
    return [sample.image_id for sample in dataset]


def opened(config: TuningConfig, **changes: Any) -> Any:
    return open_inputs(config, **{"skip_bad_records": False, "cache_mb": 1, **changes})


@pytest.mark.parametrize(
    ("accuracy", "calibration", "evaluation_ids", "calibration_ids"),
    [
        ({"dataloader": coco()}, {}, [1, 2, 3], [1, 2, 3]),
        ({"dataloader": records()}, {}, [4, 5, 6], [4, 5, 6]),
        ({"dataloader": coco()}, {"dataloader": records()}, [1, 2, 3], [4, 5, 6]),
        ({"dataloader": records()}, {"dataloader": coco(), "sampling_size": [1, 2]}, [4, 5, 6], [1, 2]),
    ],
)
def test_data_sets(
    accuracy: dict[str, Any],
    calibration: dict[str, Any],
    evaluation_ids: list[int],
    calibration_ids: list[int],
    parse: Parse,
) -> None:
    inputs = opened(parse(accuracy, calibration))
    assert ids(inputs.evaluation) == evaluation_ids
    assert ids(inputs.calibration) == calibration_ids
    assert inputs.eval_func is None
    assert inputs.evaluation_identity == inputs.evaluation.sha256


def test_relative_paths_from_the_current_folder(folder: Path, parse: Parse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    settings = {"model": {"name": "m", "framework": "tensorflow"}, "evaluation": {"accuracy": {"dataloader": coco()}}}
    assert ids(opened(parse_config(settings, "test")).evaluation) == [1, 2, 3]


def test_a_label_map_is_for_the_records_that_it_was_given_with(folder: Path, parse: Parse) -> None:
    (folder / "labels.yaml").write_text("kind: 7\n")
    metric = {"COCOmAP": {"anno_path": "labels.yaml"}}
    inputs = opened(parse({"metric": metric, "dataloader": records()}, {"dataloader": records()}))
    assert {i for entry in inputs.evaluation.entries for i in entry.ground_truth.category_ids} == {7}
    # Images to calibrate on need no labels.
    inputs = opened(parse({"metric": metric, "dataloader": records()}, {"dataloader": coco()}))
    assert ids(inputs.calibration) == [1, 2, 3]


def test_annotations_apart_from_their_images(folder: Path, parse: Parse) -> None:
    path = folder / "elsewhere.json"
    (folder / "coco/annotations/instances_val2017.json").rename(path)
    metric = {"COCOmAP": {"anno_path": "elsewhere.json"}}
    assert ids(opened(parse({"metric": metric, "dataloader": coco()})).evaluation) == [1, 2, 3]


def accuracy_of(graph_def: Any) -> float:
    return 0.5


class Loader:
    def __iter__(self) -> Any:
        return iter([np.zeros((4, 4, 3), np.uint8)])


class EmptyLoader(Loader):
    def __len__(self) -> int:
        return 0


def test_objects_win_over_settings(parse: Parse) -> None:
    loader = Loader()
    inputs = opened(parse({"dataloader": coco()}, {"dataloader": records()}), q_dataloader=loader)
    assert (ids(inputs.evaluation), inputs.calibration) == ([1, 2, 3], loader)

    inputs = opened(parse({"dataloader": coco()}, {"dataloader": records()}), eval_func=accuracy_of)
    assert (inputs.evaluation, inputs.eval_func) == (None, accuracy_of)
    assert inputs.evaluation_identity == "accuracy_of"
    assert ids(inputs.calibration) == [4, 5, 6]


def test_a_loader_without_a_length_of_its_own_is_still_the_source(parse: Parse) -> None:
    loader = EmptyLoader()
    assert opened(parse({"dataloader": coco()}), q_dataloader=loader).calibration is loader


def test_objects_named_in_the_settings(parse: Parse, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "extension_of_inputs.py").write_text("def accuracy(graph_def):\n    return 0.5\nimages = [1, 2]\n")
    monkeypatch.syspath_prepend(str(folder))
    config = parse({"eval_func": "extension_of_inputs:accuracy"}, {"q_dataloader": "extension_of_inputs:images"})
    inputs = opened(config)
    assert inputs.eval_func({}) == 0.5
    assert inputs.calibration == [1, 2]


@pytest.mark.parametrize(
    ("accuracy", "calibration", "message"),
    [
        ({}, {}, "evaluation.accuracy: no images: give a dataloader, an eval_func or --dataset_location"),
        ({"eval_func": "math:sqrt"}, {}, "quantization.calibration: no images: give a dataloader, a q_dataloader"),
        (
            {"eval_func": "no_such_module:f"},
            {},
            "evaluation.accuracy.eval_func: 'no_such_module:f': module no_such_module cannot be imported",
        ),
        (
            {"dataloader": coco()},
            {"q_dataloader": "math:no_such_name"},
            "quantization.calibration.q_dataloader: 'math:no_such_name': module math has no 'no_such_name'",
        ),
    ],
)
def test_what_is_missing_is_named(
    accuracy: dict[str, Any], calibration: dict[str, Any], message: str, parse: Parse
) -> None:
    with pytest.raises(ConfigError) as raised:
        opened(parse(accuracy, calibration))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_module_that_fails_when_it_is_imported(parse: Parse, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "failing_extension.py").write_text("raise ZeroDivisionError('first\\nsecond')\n")
    monkeypatch.syspath_prepend(str(folder))
    with pytest.raises(ConfigError, match="failing_extension cannot be imported: ZeroDivisionError: first") as raised:
        opened(parse({"eval_func": "failing_extension:f"}))
    assert "\n" not in str(raised.value)


def test_bad_records_are_skipped_only_when_asked(parse: Parse, folder: Path) -> None:
    with tf.io.TFRecordWriter(str(folder / "bad.record")) as writer:
        writer.write(b"no example")
        for record in tf.data.TFRecordDataset(str(folder / "set.record")).as_numpy_iterator():
            writer.write(record)
    config = parse({"dataloader": records("bad.record")})
    with pytest.raises(DatasetError, match=r"bad\.record: record 0: "):
        opened(config)
    inputs = opened(config, skip_bad_records=True)
    assert ids(inputs.evaluation) == [4, 5, 6]
    assert len(inputs.evaluation.skipped) == 1
