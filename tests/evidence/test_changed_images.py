from dataclasses import replace

import numpy as np

from tuner.evaluation.match_records import MatchRecords
from tuner.evidence.changed_images import most_changed

# Three images, one category; two detections in the first and one in each of the others.
BEFORE = MatchRecords(
    image_ids=np.array([10, 20, 30]),
    category_ids=np.array([1]),
    objects=np.ones((3, 1), np.int32),
    image_of=np.array([0, 0, 1, 2], np.int32),
    category_of=np.zeros(4, np.int32),
    scores=np.array([0.9, 0.2, 0.8, 0.7], np.float32),
    outcomes=np.repeat(np.array([[1], [0], [1], [1]], np.int8), 10, axis=1),
)


def test_images_are_ordered_by_how_much_finds_and_false_alarms_changed() -> None:
    outcomes = BEFORE.outcomes.copy()
    outcomes[2] = 0  # the second image's find became a false alarm
    outcomes[3, 5:] = 0  # the third image's box moved a little
    assert most_changed(BEFORE, replace(BEFORE, outcomes=outcomes)) == [20, 30]
    assert most_changed(BEFORE, replace(BEFORE, outcomes=outcomes), 1) == [20]


def test_a_crowd_s_detections_and_equal_images_do_not_count() -> None:
    outcomes = BEFORE.outcomes.copy()
    assert most_changed(BEFORE, BEFORE) == []
    outcomes[1] = -1  # neither a find nor a false alarm any more: 0.2 less of those
    assert most_changed(BEFORE, replace(BEFORE, outcomes=outcomes)) == [10]
