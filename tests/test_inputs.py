import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tuner.config import TuningConfig, parse_config
from tuner.data.calibration import calibration_images
from tuner.data.dataset import DetectionDataset
from tuner.data.records import AnnotatedJpeg, write_records
from tuner.detections import GroundTruth
from tuner.errors import ConfigError, DatasetError, ModelError
from tuner.inputs import first_image, open_inputs
from tuner.model.detection_model import DetectionModel, ModelFormat

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
    for named in ("evaluation.accuracy.eval_func: 'extension_of_inputs:accuracy'", "q_dataloader"):
        loaded = {"eval_func": accuracy_of} if named == "q_dataloader" else {}
        with pytest.raises(ConfigError, match=rf"{named}.* is code, .*; give --allow-code \(allow_code=True\)"):
            opened(config, **loaded)
    assert "extension_of_inputs" not in sys.modules
    # Objects that the caller hands over are the caller's own code.
    assert opened(config, eval_func=accuracy_of, q_dataloader=[3]).calibration == [3]
    inputs = opened(config, allow_code=True)
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
        opened(parse(accuracy, calibration), allow_code=True)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_module_that_fails_when_it_is_imported(parse: Parse, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "failing_extension.py").write_text("raise ZeroDivisionError('first\\nsecond')\n")
    monkeypatch.syspath_prepend(str(folder))
    with pytest.raises(ConfigError, match="failing_extension cannot be imported: ZeroDivisionError: first") as raised:
        opened(parse({"eval_func": "failing_extension:f"}), allow_code=True)
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


RESIZE = {"Resize": {"size": 8}}
CHANNELS_FIRST = {"Rescale": None, "Transpose": {"perm": [2, 0, 1]}}


@pytest.mark.parametrize(
    ("accuracy", "calibration", "shapes"),
    [
        ({"transform": RESIZE}, None, ((8, 8, 3), (8, 8, 3))),
        ({"transform": RESIZE}, records(), ((8, 8, 3), (8, 8, 3))),
        ({}, {**records(), "transform": RESIZE}, ((8, 8, 3), (8, 8, 3))),
        ({"transform": RESIZE}, {**records(), "transform": CHANNELS_FIRST}, ((8, 8, 3), (3, 16, 24))),
        ({"transform": RESIZE}, {"transform": CHANNELS_FIRST}, ((8, 8, 3), (3, 16, 24))),
        ({"transform": RESIZE}, {**records(), "transform": {}}, ((8, 8, 3), (16, 24, 3))),
        ({"transform": RESIZE}, {**records(), "transform": {"ParseDecodeCoco": None}}, ((8, 8, 3), (16, 24, 3))),
        ({}, None, ((16, 24, 3), (16, 24, 3))),
    ],
)
def test_a_section_without_transforms_takes_those_of_the_other(
    accuracy: dict[str, Any],
    calibration: dict[str, Any] | None,
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
    parse: Parse,
    folder: Path,
) -> None:
    evaluated, calibrated = shapes
    named = {} if calibration is None else {"dataloader": calibration}
    config = parse({"dataloader": {**coco(), **accuracy}}, named)
    inputs = opened(config)
    assert inputs.evaluation.first_image.shape == evaluated
    assert [image.shape for image in calibration_images(inputs.calibration, 9)] == [(1, *calibrated)] * 3
    model = model_with([1, None, None, None], tf.float32)
    timed = first_image(config, None, model)
    assert timed is not None and timed.shape == evaluated
    elsewhere = first_image(config, folder / "set.record", model)
    assert elsewhere is not None and elsewhere.shape == evaluated


def test_speed_is_measured_on_images_without_annotations(parse: Parse, folder: Path) -> None:
    model, annotations = model_with([1, None, None, None], tf.float32), folder / "coco/annotations"
    (annotations / "instances_val2017.json").rename(annotations / "elsewhere.json")
    named = {"metric": {"COCOmAP": {"anno_path": "coco/annotations/elsewhere.json"}}}
    for accuracy in ({**named, "dataloader": coco()}, {"dataloader": coco(), "labels": "model"}):
        timed = first_image(parse(accuracy), None, model)
        assert timed is not None and timed.shape == (16, 24, 3)
    alone = first_image(parse({}), folder / "coco/val2017", model)
    assert alone is not None and alone.shape == (16, 24, 3)


def test_a_filter_chooses_images(parse: Parse) -> None:
    balanced = {"filter": {"LabelBalance": {"size": 1}}}
    inputs = opened(parse({"dataloader": coco()}, {"dataloader": {**coco(), **balanced}}))
    assert (ids(inputs.evaluation), ids(inputs.calibration)) == ([1, 2, 3], [1])
    inputs = opened(parse({"dataloader": coco()}, {"dataloader": balanced}))
    assert (ids(inputs.evaluation), ids(inputs.calibration)) == ([1, 2, 3], [1])


def test_a_label_map_for_a_json(folder: Path, parse: Parse) -> None:
    (folder / "labels.yaml").write_text("kind: 7\n")
    metric = {"COCOmAP": {"anno_path": "labels.yaml"}}
    assert opened(parse({"metric": metric, "dataloader": coco()})).evaluation.category_ids == {7}
    (folder / "labels.yaml").write_text("other: 7\n")
    with pytest.raises(
        DatasetError, match=r"its categories \(kind\) and the label map's \(other\) have none in common"
    ):
        opened(parse({"metric": metric, "dataloader": coco()}))


def test_what_numbers_mean_is_part_of_the_identity(folder: Path, parse: Parse) -> None:
    plain = parse({"dataloader": coco()})
    (folder / "classes.yaml").write_text("1: 3\n")
    changes: list[dict[str, Any]] = [
        {},
        {"classes": "coco80"},
        {"classes": "coco80_from_0"},
        {"classes": folder / "classes.yaml"},
        {"box_units": "pixels"},
    ]
    found = [
        opened(plain.model_copy(update={"model": plain.model.model_copy(update=change)})).evaluation_identity
        for change in changes
    ]
    assert len(set(found)) == len(changes)
    assert found[0] == opened(plain).evaluation.sha256


def model_with(shape: list[int | None], dtype: tf.DType) -> DetectionModel:
    with tf.Graph().as_default() as graph:
        tf.identity(tf.compat.v1.placeholder(dtype, shape, name="image"), "out")
    return DetectionModel(graph.as_graph_def(), ("image:0",), ("out:0",), Path("m.pb"), ModelFormat.FROZEN_GRAPH)


def test_a_model_that_takes_what_the_transforms_make(parse: Parse) -> None:
    config = parse({"dataloader": {**coco(), "transform": {**RESIZE, **CHANNELS_FIRST}}})
    opened(config, fed_to=model_with([1, 3, 8, 8], tf.float32))
    opened(config, fed_to=model_with([None, 3, None, None], tf.float16))
    opened(parse({"dataloader": coco()}), fed_to=model_with([1, None, None, 3], tf.float32))


@pytest.mark.parametrize(
    ("shape", "dtype", "transform", "message"),
    [
        (
            [1, 300, 300, 3],
            tf.float32,
            {**RESIZE, "Rescale": None},
            "m.pb: input image:0 takes the shape (1, 300, 300, 3); an image batch of (1, 8, 8, 3) cannot be fed; "
            "evaluation.accuracy.dataloader.transform does Resize, Rescale",
        ),
        (
            [1, 300, 300, 3],
            tf.uint8,
            {},
            "m.pb: input image:0 takes the shape (1, 300, 300, 3); an image batch of (1, 16, 24, 3) cannot be fed; "
            "evaluation.accuracy.dataloader.transform does nothing",
        ),
        (
            [1, None, None, 3],
            tf.uint8,
            {**RESIZE, "Rescale": None},
            "m.pb: input image:0 takes uint8; images of float32 would lose their fractions: use Cast; "
            "evaluation.accuracy.dataloader.transform does Resize, Rescale",
        ),
    ],
)
def test_a_model_that_does_not(
    shape: list[int | None], dtype: tf.DType, transform: Any, message: str, parse: Parse
) -> None:
    with pytest.raises(ModelError) as raised:
        opened(parse({"dataloader": {**coco(), "transform": transform}}), fed_to=model_with(shape, dtype))
    assert str(raised.value) == message


def test_an_input_of_whole_numbers_takes_a_resized_image(parse: Parse) -> None:
    config = parse({"dataloader": {**coco(), "transform": RESIZE}})
    resized = opened(config, fed_to=model_with([1, None, None, 3], tf.float32)).evaluation.first_image
    fed = opened(config, fed_to=model_with([1, None, None, 3], tf.uint8)).evaluation.first_image
    assert (resized.dtype, fed.dtype) == (np.float32, np.uint8)
    np.testing.assert_array_equal(fed, np.floor(resized))


def test_only_calibration_does_not_fit(parse: Parse) -> None:
    model = model_with([1, 16, 24, 3], tf.float32)
    with pytest.raises(ModelError, match=r"cannot be fed; quantization.calibration.dataloader.transform does Resize$"):
        opened(parse({"dataloader": {**coco(), "transform": {}}}, {"dataloader": {"transform": RESIZE}}), fed_to=model)
