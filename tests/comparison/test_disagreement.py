import numpy as np
import pytest

from tuner.comparison.disagreement import Disagreement, Sided, disagreement, most_disagreeing
from tuner.detections import Detections, GroundTruth
from tuner.evaluation.coco_map import ImageTruth, match_image

LEFT, RIGHT, FAR = [0.1, 0.1, 0.4, 0.4], [0.5, 0.5, 0.9, 0.9], [0.0, 0.6, 0.2, 0.8]
SHIFTED = [0.11, 0.1, 0.41, 0.4]


def found(*objects: tuple[list[float], float, int]) -> Detections:
    boxes, scores, categories = zip(*objects, strict=True) if objects else ((), (), ())
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), np.array(categories, np.int64)
    )


def compared(a: Detections, b: Detections) -> Disagreement:
    boxes = np.array([LEFT, RIGHT])
    truth = ImageTruth(7, 100, 200, GroundTruth(boxes, np.array([1, 2]), np.zeros(2, bool), np.full(2, 900.0)))
    matches = (match_image(truth, a, {1, 2}), match_image(truth, b, {1, 2}))
    return disagreement(truth, "x.jpg", (a, b), matches, 0.3)


def test_the_same_objects_a_little_elsewhere() -> None:
    seen = compared(found((LEFT, 0.9, 1), (RIGHT, 0.8, 2)), found((SHIFTED, 0.5, 1), (RIGHT, 0.7, 2)))
    assert seen == Disagreement(7, "x.jpg", 2, Sided(2, 2), Sided(2, 2), 0)
    assert seen.agreement == 1


def test_missed_invented_and_called_something_else() -> None:
    a = found((LEFT, 0.9, 1), (RIGHT, 0.8, 2))
    assert compared(a, found((LEFT, 0.9, 1))).alone == 1
    assert compared(a, found((LEFT, 0.9, 1), (RIGHT, 0.8, 1))).alone == 2
    third = compared(a, found((LEFT, 0.9, 1), (RIGHT, 0.8, 2), (FAR, 0.6, 3)))
    assert (third.alone, third.b) == (1, Sided(3, 2))
    assert third.agreement == pytest.approx(4 / 5)


def test_what_is_not_sure_does_not_count() -> None:
    seen = compared(found((LEFT, 0.9, 1), (RIGHT, 0.29, 2)), found((LEFT, 0.9, 1), (FAR, 0.1, 1)))
    assert (seen.a, seen.b, seen.alone) == (Sided(1, 1), Sided(1, 1), 0)


@pytest.mark.parametrize("b", [found(), found((FAR, 0.9, 9))])
def test_nothing_found(b: Detections) -> None:
    seen = compared(found(), b)
    assert (seen.alone, seen.agreement) == (len(b), 1 - len(b))
    assert compared(b, found()).alone == len(b)


def test_images_are_told_by_how_many_detections_are_alone() -> None:
    def one(image_id: int, detections: int, alone: int) -> Disagreement:
        return Disagreement(image_id, "", 1, Sided(detections, 0), Sided(detections, 0), alone)

    images = [one(1, 5, 2), one(2, 5, 0), one(3, 2, 2), one(4, 9, 3), one(5, 5, 2)]
    assert [image.image_id for image in most_disagreeing(images, 3)] == [4, 3, 1]
    assert [image.image_id for image in most_disagreeing(images, 9)] == [4, 3, 1, 5]
