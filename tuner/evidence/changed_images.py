"""The images whose detections changed most between the float model and the best graph, small enough to be shown."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tuner.data.dataset import DetectionDataset
from tuner.data.images import decode_image
from tuner.detections import Detections
from tuner.evaluation.match_records import MatchRecords
from tuner.model.runner import ModelRunner

SHOWN = 6
# Pixels of a shown image's longer side, and what JPEG makes of them: some 15 kB.
LONGER_SIDE_PX, QUALITY = 320, 70


def most_changed(before: MatchRecords, after: MatchRecords, count: int = SHOWN) -> list[int]:
    """The ids of the images whose finds and false alarms changed most, the most changed first.

    The change of an image is, summed over categories, how far sum(score * sign) lies apart, where the sign is the share
    of the ten IoU thresholds at which a detection found an object less the share at which it was a false alarm.
    """
    change = np.abs(_balance(before) - _balance(after)).sum(1)
    order = np.argsort(-change, kind="stable")[:count]
    return [int(before.image_ids[index]) for index in order if change[index] > 0]


def detect_changes(
    runners: Mapping[str, ModelRunner], dataset: DetectionDataset, image_ids: Sequence[int]
) -> dict[str, NDArray[Any]]:
    """The detections of the models `float` and `best` in some images, as arrays by name, with the images themselves.

    ids: [I] int64, names: [I] text. Of image i: "i jpeg", [bytes] uint8, of at most 320 pixels a side; "i float" and
    "i best", [N, 6] float32, ymin xmin ymax xmax 0..1, score, category id; "i truth", [N, 6], its scores 1.

    Raises DatasetError and ModelError.
    """
    positions = {entry.image_id: position for position, entry in enumerate(dataset.entries)}
    shown = [positions[image_id] for image_id in image_ids if image_id in positions]
    samples = list(dataset.samples(shown))
    arrays: dict[str, NDArray[Any]] = {
        "ids": np.array([sample.image_id for sample in samples], np.int64),
        "names": np.array([sample.name for sample in samples], np.str_),
    }
    for index, position in enumerate(shown):
        entry = dataset.entries[position]
        truth = entry.ground_truth
        arrays[f"{index} jpeg"] = _jpeg(decode_image(entry.read(), entry.where))
        arrays[f"{index} truth"] = _rows(truth.boxes, np.ones(len(truth)), truth.category_ids)[~truth.is_crowd]
    for name, runner in runners.items():
        for index, sample in enumerate(samples):
            arrays[f"{index} {name}"] = _found(runner.detect(sample.image, view=sample.view))
    return arrays


def _balance(records: MatchRecords) -> NDArray[np.float64]:
    """[I, C], of each image and category the sum of score * sign."""
    signs = (records.outcomes == 1).mean(1) - (records.outcomes == 0).mean(1)
    balance = np.zeros((len(records), len(records.category_ids)))
    np.add.at(balance, (records.image_of, records.category_of), records.scores * signs)
    return balance


def _found(found: Detections) -> NDArray[np.float32]:
    return _rows(found.boxes, found.scores, found.category_ids)


def _rows(boxes: NDArray[Any], scores: NDArray[Any], category_ids: NDArray[Any]) -> NDArray[np.float32]:
    return np.column_stack([boxes, scores, category_ids]).astype(np.float32)


def _jpeg(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    picture = Image.fromarray(image)
    picture.thumbnail((LONGER_SIDE_PX, LONGER_SIDE_PX))
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=QUALITY, optimize=True)
    return np.frombuffer(encoded.getvalue(), np.uint8)
