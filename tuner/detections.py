"""What a detector says about one image, and what is true of it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

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


WHOLE = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True, slots=True)
class View:
    """Where in an image the picture lies that a model is fed.

    height, width: of the image, in pixels. fed_height, fed_width: of the picture.
    window: ymin, xmin, ymax, xmax of the picture, 0..1 of the image's height and width; what reaches beyond is padding.
    """

    height: int
    width: int
    fed_height: int
    fed_width: int
    window: tuple[float, float, float, float] = WHOLE

    def locate(self, boxes: NDArray[np.float32], *, in_pixels: bool = False) -> NDArray[np.float32]:
        """Boxes [N, 4] in the picture as boxes in the image, 0..1 of its height and width, or beyond.

        boxes: 0..1 of the picture's height and width, or in its pixels.
        """
        if in_pixels:
            boxes = (boxes / np.array([self.fed_height, self.fed_width] * 2)).astype(np.float32)
        if self.window == WHOLE:
            return boxes
        low, high = np.array(self.window[:2] * 2), np.array(self.window[2:] * 2)
        located: NDArray[np.float32] = (low + boxes * (high - low)).astype(np.float32)
        return located

    def clip(self, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Boxes in the image without what lies outside of it; as they are where the picture is the whole image."""
        inside: NDArray[np.float32] = boxes if self.window == WHOLE else np.clip(boxes, 0, 1)
        return inside


@dataclass(frozen=True, slots=True)
class Reading:
    """What the numbers mean that a detector gives.

    category_ids: class number -> category id; None where they are the same. named: the table, in messages.
    boxes_in_pixels: whether boxes are in pixels of the model's input, rather than 0..1 of its sides.
    """

    category_ids: Mapping[int, int] | None = None
    named: str = "dataset"
    boxes_in_pixels: bool = False

    @property
    def identity(self) -> str:
        """A hash of what is read otherwise than as it is given; empty where nothing is."""
        if self.category_ids is None and not self.boxes_in_pixels:
            return ""
        table = None if self.category_ids is None else sorted(self.category_ids.items())
        return f", read as {hashlib.sha256(repr((table, self.boxes_in_pixels)).encode()).hexdigest()}"

    def categories(self, classes: NDArray[np.int64]) -> NDArray[np.int64]:
        """The category ids of class numbers [N]. Raises EvaluationError for one that the table does not know."""
        if self.category_ids is None:
            return classes
        for number in classes.tolist():
            if number not in self.category_ids:
                raise EvaluationError(
                    f"model.classes: the detector gives the class {number}, and {self.named} knows "
                    f"{min(self.category_ids)} to {max(self.category_ids)}"
                    + (" with gaps" if min(self.category_ids) < number < max(self.category_ids) else "")
                )
        return np.array([self.category_ids[number] for number in classes.tolist()], np.int64)


AS_GIVEN = Reading()


@dataclass(frozen=True, slots=True)
class Sample:
    """One annotated image of a data set, as a model is fed it.

    image_id: the data set's own number for it. name: its file name or key.
    image: [H, W, 3] uint8, RGB, as decoded; or what the data set's transforms make of it.
    view: where in the image `image` lies.
    """

    image_id: int
    name: str
    image: NDArray[Any] = field(repr=False)
    ground_truth: GroundTruth
    view: View
