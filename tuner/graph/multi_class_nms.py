"""Multi-class non-max suppression as the Object Detection API does it, as a value."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Suppression:
    """What is suppressed, class by class, and how.

    boxes: tensor [batch, anchors, 1 or classes, 4], ymin xmin ymax xmax. scores: tensor [batch, anchors, classes].
    valid: tensor [batch], int32, how many anchors count in each image. boxes_per_anchor: 1, or one for each class.
    A box is kept where its score is over score_threshold and its overlap with none kept before, of its class and with
    at least its score, is over iou_threshold; at most max_per_class of a class.
    """

    boxes: str
    scores: str
    valid: str
    classes: int
    boxes_per_anchor: int
    score_threshold: float
    iou_threshold: float
    max_per_class: int


@dataclass(frozen=True)
class MultiClassNms:
    """One suppression over all classes of each image of a batch, and what becomes of the boxes that it keeps.

    scope: name scope of its nodes. window: tensor [batch, 4], or [4] where window_is_shared by the images. Boxes are
    clipped to it, and those outside dropped, after the suppression, or before it where clipped_first.
    max_total: boxes of an image, at most. relative_to_window: whether clipped boxes are in the window's coordinates.
    boxes_out, scores_out, classes_out, count_out: nodes with the results, None where nothing reads them.
    attributes: nodes with the rows of other tensors [batch, anchors, n] for the boxes that are kept -> those tensors.
    """

    scope: str
    suppression: Suppression
    window: str
    window_is_shared: bool
    clipped_first: bool
    max_total: int
    relative_to_window: bool
    boxes_out: str | None
    scores_out: str | None
    classes_out: str | None
    count_out: str | None
    attributes: dict[str, str]
