"""What a detector says about one image, and what is true of it."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tuner.errors import EvaluationError
from tuner.masks import Masks


@dataclass(frozen=True, slots=True)
class Detections:
    """The objects that a detector found in one image.

    boxes: [N, 4] float32, ymin xmin ymax xmax, 0..1 of the image's height and width.
    scores: [N] float32, 0..1.
    category_ids: [N] int64, the dataset's own ids.
    masks: of the N objects, where they are asked for.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    category_ids: NDArray[np.int64]
    masks: Masks | None = None

    def __post_init__(self) -> None:
        count = len(self.scores)
        shapes = (self.boxes.shape, self.scores.shape, self.category_ids.shape)
        if shapes != ((count, 4), (count,), (count,)):
            raise EvaluationError(
                f"detections need boxes [N, 4], scores [N] and classes [N]; got shapes {list(map(list, shapes))}"
            )
        if self.masks is not None and len(self.masks) != count:
            raise EvaluationError(f"detections need a mask each; got {len(self.masks)} masks of {count} objects")

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True, slots=True)
class GroundTruth:
    """The annotated objects of one image.

    boxes: [N, 4] float64, ymin xmin ymax xmax, 0..1 of the image's height and width.
    category_ids: [N] int64, the dataset's own ids.
    is_crowd: [N] bool; a crowd region neither rewards nor punishes a detection.
    areas_px: [N] float64, the object's area in square pixels (of its mask where there is one).
    masks: of the N objects, where they are asked for.
    """

    boxes: NDArray[np.float64]
    category_ids: NDArray[np.int64]
    is_crowd: NDArray[np.bool_]
    areas_px: NDArray[np.float64]
    masks: Masks | None = None

    def __len__(self) -> int:
        return len(self.category_ids)


@dataclass(frozen=True, slots=True)
class Sample:
    """One annotated image of a data set.

    image_id: the data set's own number for it. name: its file name or key.
    image: [H, W, 3] uint8, RGB.
    """

    image_id: int
    name: str
    image: NDArray[np.uint8] = field(repr=False)
    ground_truth: GroundTruth
