"""What class numbers mean: the tables, a file, and what is said about numbers that neither knows."""

from pathlib import Path

import numpy as np
import pytest

from tuner.config import ModelConfig
from tuner.data.class_map import read_classes
from tuner.data.coco_categories import COCO80, COCO80_FROM_0, COCO_LABEL_MAP
from tuner.detections import AS_GIVEN
from tuner.errors import DatasetError, EvaluationError


def settings(classes: str, box_units: str = "normalized") -> ModelConfig:
    return ModelConfig.model_validate({"name": "m", "classes": classes, "box_units": box_units})


@pytest.mark.parametrize(
    ("classes", "given", "meant"),
    [
        ("dataset", [1, 90, 1000], [1, 90, 1000]),
        # Stop sign, potted plant and toothbrush, behind the gaps at 12, 26, 29, 30, 45, 66, 68, 69, 71 and 83.
        ("coco80", [1, 11, 12, 59, 80], [1, 11, 13, 64, 90]),
        ("coco80_from_0", [0, 10, 11, 58, 79], [1, 11, 13, 64, 90]),
    ],
)
def test_tables(classes: str, given: list[int], meant: list[int]) -> None:
    reading = read_classes(settings(classes))
    assert reading.categories(np.array(given)).tolist() == meant
    assert (reading.identity == "") == (classes == "dataset") == (reading == AS_GIVEN)


def test_the_tables_hold_all_categories() -> None:
    assert list(COCO80) == list(range(1, 81))
    assert list(COCO80_FROM_0) == list(range(80))
    assert list(COCO80.values()) == list(COCO80_FROM_0.values()) == sorted(COCO_LABEL_MAP.values())


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "classes.yaml"
    path.write_text("0: 3\n7: 17\n")
    reading = read_classes(settings(str(path), "pixels"))
    assert reading.categories(np.array([7, 0, 7])).tolist() == [17, 3, 17]
    assert reading.categories(np.zeros(0, np.int64)).dtype == np.int64
    assert reading.boxes_in_pixels
    with pytest.raises(EvaluationError, match=rf"^model.classes: .* the class 2, and {path} knows 0 to 7 with gaps$"):
        reading.categories(np.array([0, 2]))
    first = reading.identity
    path.write_text("0: 3\n7: 18\n")
    assert read_classes(settings(str(path), "pixels")).identity != first


def test_a_class_that_is_off_by_one_is_told() -> None:
    reading = read_classes(settings("coco80"))
    with pytest.raises(EvaluationError, match=r"gives the class 0, and coco80 knows 1 to 80$"):
        reading.categories(np.array([0]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("person: 1", "person: got '1'; expected `class number: category id`, whole numbers of at least 0"),
        ("0: person", "0: got 'person'; expected `class number: category id`"),
        ("0: -1", "0: got '-1'; expected"),
        ("1: true", "1: got 'True'; expected"),
        ("- 1", "expected a mapping of class numbers to category ids, got list"),
        ("{", "not a readable class map: "),
    ],
)
def test_a_file_that_is_no_class_map(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "classes.yaml"
    path.write_text(content)
    with pytest.raises(DatasetError, match=rf"^{path}: ") as caught:
        read_classes(settings(str(path)))
    assert message in str(caught.value)
    with pytest.raises(DatasetError, match="not a readable class map: "):
        read_classes(settings(str(tmp_path / "missing.yaml")))
