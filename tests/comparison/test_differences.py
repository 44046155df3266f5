from dataclasses import replace

import numpy as np
import pytest

from tuner.comparison.differences import find_differences
from tuner.errors import EvaluationError
from tuner.evaluation.early_rejection import FEWEST_IMAGES, loss_interval
from tuner.evaluation.match_records import MatchRecords, mean_average_precision

IMAGES = 150


def detector(seed: int, missing: dict[int, float] | None = None, *, categories: int = 4) -> MatchRecords:
    """An object of every category in each image, found at some IoU thresholds, the same for detectors of one seed.

    missing: of some categories the share of objects that are not found.
    """
    random = np.random.default_rng(seed)
    total = IMAGES * categories
    image_of = np.repeat(np.arange(IMAGES, dtype=np.int32), categories)
    category_of = np.tile(np.arange(categories, dtype=np.int32), IMAGES)
    outcomes = (np.arange(10) < random.integers(0, 11, total)[:, np.newaxis]).astype(np.int8)
    scores = random.random(total).astype(np.float32)
    luck = random.random(total)
    for category, share in (missing or {}).items():
        outcomes[(category_of == category) & (luck < share)] = 0
    objects = np.ones((IMAGES, categories), np.int32)
    return MatchRecords(np.arange(IMAGES), np.arange(categories) * 10, objects, image_of, category_of, scores, outcomes)


def test_a_detector_differs_from_itself_in_nothing() -> None:
    found = find_differences(detector(1), detector(1))
    assert (found.difference, found.interval) == (0, (0, 0))
    assert [one.category_id for one in found.categories] == [0, 10, 20, 30]
    assert {(one.difference, one.interval, one.certain) for one in found.categories} == {(0, (0, 0), False)}


def test_the_interval_is_the_one_of_the_loss() -> None:
    a, b = detector(1), detector(2)
    found, lost = find_differences(a, b), loss_interval(a, b, "absolute")
    assert found.difference == pytest.approx(-lost.loss)
    assert found.interval == pytest.approx((-lost.high, -lost.low))


def test_what_is_lost_in_one_category_is_found_there_alone() -> None:
    found = find_differences(detector(1), detector(1, {2: 0.3}))
    first, *others = found.categories
    assert (first.category_id, first.objects, first.images) == (20, IMAGES, IMAGES)
    assert first.certain and first.interval is not None and first.interval[1] < 0
    assert not any(one.certain for one in others)
    assert found.difference == pytest.approx(first.difference / 4)
    assert find_differences(detector(1, {2: 0.3}), detector(1)).difference == pytest.approx(-found.difference)


def without_objects(records: MatchRecords, category: int, after: int = 0) -> MatchRecords:
    """The same without objects of a category in the images from `after` on: what is detected there is wrong."""
    objects, outcomes = records.objects.copy(), records.outcomes.copy()
    objects[after:, category] = 0
    outcomes[(records.category_of == category) & (records.image_of >= after)] = 0
    return replace(records, objects=objects, outcomes=outcomes)


def test_a_category_of_few_images_has_no_interval() -> None:
    few = FEWEST_IMAGES - 1
    a, b = (without_objects(one, 3, few) for one in (detector(1), detector(1, {3: 0.9})))
    found = find_differences(a, b)
    (of_few,) = [one for one in found.categories if one.category_id == 30]
    assert (of_few.images, of_few.interval, of_few.certain) == (few, None, False)
    whole = [mean_average_precision(one, np.ones((1, IMAGES)))[0] for one in (a, b)]
    assert found.difference == pytest.approx(whole[1] - whole[0])


def test_a_category_without_objects_is_not_told() -> None:
    bare = without_objects(detector(1), 0)
    assert [one.category_id for one in find_differences(bare, bare).categories] == [10, 20, 30]


def test_records_of_other_images_are_refused() -> None:
    a = detector(1)
    with pytest.raises(EvaluationError, match="same images and categories"):
        find_differences(a, a.take([1, 0, *range(2, IMAGES)]))
