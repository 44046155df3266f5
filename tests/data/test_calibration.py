from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tuner.data.calibration import calibration_images
from tuner.data.dataset import open_dataset
from tuner.errors import DatasetError


def image(value: int) -> np.ndarray:
    return np.full((4, 6, 3), value, np.uint8)


def batch(*values: int) -> np.ndarray:
    return np.stack([image(value) for value in values])


@pytest.mark.parametrize(
    "source, count, values",
    [
        ([image(1), image(2), image(3)], 2, [1, 2]),
        ([image(1), image(2)], 5, [1, 2]),
        ([batch(1, 2), batch(3, 4)], 3, [1, 2, 3]),
        ([(image(1), "label"), [image(2), 0]], 2, [1, 2]),
        ([(batch(1, 2), np.zeros(2))], 2, [1, 2]),
        ([batch(1, 2), image(3)], 4, [1, 2, 3]),
        ([tf.constant(image(7))], 1, [7]),
        ([image(1).astype(np.float32) / 255], 1, [1 / 255]),
    ],
)
def test_images_and_batches_come_one_by_one(source: list[Any], count: int, values: list[float]) -> None:
    found = list(calibration_images(source, count))
    assert {item.shape for item in found} == {(1, 4, 6, 3)}
    assert [item.ravel()[0] for item in found] == pytest.approx(values)


def test_a_dataset_is_a_source(record_file: Path) -> None:
    dataset = open_dataset(record_file)
    found = list(calibration_images(dataset, 2))
    for item, sample in zip(found, dataset.first(2), strict=True):
        np.testing.assert_array_equal(item[0], sample.image)


def test_a_source_is_read_no_further_than_needed() -> None:
    def endless():
        yield image(1)
        yield image(2)
        raise AssertionError("read too far")

    assert len(list(calibration_images(endless(), 2))) == 2


@pytest.mark.parametrize(
    "source, message",
    [
        ([], "the calibration source gives no images"),
        (5, "q_dataloader: expected an iterable of images, got int"),
        ([image(1), np.zeros((4, 6))], r"q_dataloader: item 1: got shape \[4, 6\] of float64; expected numbers"),
        ([np.zeros((3, 4, 6))], r"item 0: got shape \[3, 4, 6\]"),
        ([np.array("photo.jpg")], r"item 0: got shape \[\] of <U9"),
    ],
)
def test_what_gives_no_images_is_named(source: Any, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        list(calibration_images(source, 5))
