"""The images that value ranges are collected from."""

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tuner.data.dataset import DetectionDataset
from tuner.errors import DatasetError


class QDataloader(Protocol):
    """A user's own source of calibration images.

    Iterating gives images [H, W, 3] or batches [N, H, W, 3], RGB, in the type and scale that the model takes
    (uint8, or float as preprocessed); or pairs (images, labels), of which the labels are not looked at.
    """

    def __iter__(self) -> Iterator[Any]: ...


def calibration_images(source: DetectionDataset | QDataloader, count: int) -> Iterator[NDArray[Any]]:
    """The first `count` images of `source`, each as [1, H, W, 3]; all of them when there are fewer.

    Raises DatasetError naming the item that is no image or batch of images, and for a source that has none.
    """
    given = 0
    for images in _batches(source.first(count) if isinstance(source, DetectionDataset) else source):
        for image in images[: count - given]:
            yield image[np.newaxis]
            given += 1
        if given == count:
            return
    if not given:
        raise DatasetError("the calibration source gives no images")


def _batches(source: DetectionDataset | QDataloader) -> Iterator[NDArray[Any]]:
    """Batches [N, H, W, 3]."""
    if isinstance(source, DetectionDataset):
        for sample in source:
            yield sample.image[np.newaxis]
        return
    if not isinstance(source, Iterable):
        raise DatasetError(f"q_dataloader: expected an iterable of images, got {type(source).__name__}")
    for index, item in enumerate(source):
        images = np.asarray(item[0] if isinstance(item, tuple | list) and len(item) == 2 else item)
        if images.ndim not in (3, 4) or images.shape[-1] != 3 or images.dtype.kind not in "uif":
            raise DatasetError(
                f"q_dataloader: item {index}: got shape {list(images.shape)} of {images.dtype}; "
                "expected numbers [H, W, 3] or [N, H, W, 3]"
            )
        yield images if images.ndim == 4 else images[np.newaxis]
