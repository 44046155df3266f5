"""What a configuration names becomes objects: data sets, a calibration source, a user's functions."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.address import Place
from tuner.config import CocoRaw, CocoRecord, DatasetConfig, TuningConfig
from tuner.config.transforms import (
    Cast,
    Normalize,
    Rescale,
    Resize,
    ResizeWithAspectRatio,
    ResizeWithRatio,
    Step,
)
from tuner.data.calibration import QDataloader
from tuner.data.class_map import read_classes
from tuner.data.dataset import DetectionDataset, open_dataset
from tuner.data.label_map import read_label_map
from tuner.entry_point import load_entry_point
from tuner.errors import ConfigError
from tuner.evaluation.evaluator import EvalFunction
from tuner.evaluation.labels import label_by_model
from tuner.evaluation.workers import Workers
from tuner.model.detection_model import DetectionModel
from tuner.model.loading import load_model
from tuner.model.runner import check_fed, input_type
from tuner.progress import Progress

_YAML = (".yaml", ".yml")
_MAKE_FRACTIONS = (Resize, ResizeWithRatio, ResizeWithAspectRatio)


@dataclass(frozen=True)
class Inputs:
    """The data of a run.

    evaluation: the annotated images; None where an eval_func keeps its own. eval_func: None where COCO mAP judges.
    calibration: where calibration images come from; the evaluation set where nothing else is named.
    read_as: what the numbers of the detector mean, where they are not what they seem, as a hash.
    labelled_images: where the float model's detections are the truth, what they and the images hash to.
    """

    evaluation: DetectionDataset | None
    eval_func: EvalFunction | None
    calibration: DetectionDataset | QDataloader
    read_as: str = ""
    labelled_images: str = ""

    @property
    def evaluation_identity(self) -> str:
        """What tells this measure of accuracy from another: the hash of the set's content, or a function's name."""
        if self.evaluation is not None:
            return (self.labelled_images or self.evaluation.sha256) + self.read_as
        return getattr(self.eval_func, "__qualname__", type(self.eval_func).__qualname__)


def open_model(config: TuningConfig, path: Path, *, allow_ops: bool = False) -> DetectionModel:
    """The detector that the settings speak of. allow_ops: as `load_model`.

    Raises ModelError, and DatasetError for its file of classes.
    """
    model = load_model(path, config.model.inputs, config.model.outputs, allow_ops=allow_ops)
    return replace(model, reading=read_classes(config.model))


def open_inputs(
    config: TuningConfig,
    *,
    skip_bad_records: bool,
    cache_mb: int,
    eval_func: EvalFunction | None = None,
    q_dataloader: QDataloader | None = None,
    fed_to: DetectionModel | None = None,
    allow_code: bool = False,
) -> Inputs:
    """Open everything that a run reads. Objects given by the caller win over what the configuration names.

    fed_to: the model that must take the images. allow_code: import what the configuration names as module:name.
    Raises ConfigError when accuracy or calibration has no source,
    DatasetError for data that cannot be used, ModelError where the model does not take what the transforms make.
    """
    accuracy, calibration = config.evaluation.accuracy, config.quantization.calibration
    if eval_func is None and accuracy.eval_func is not None:
        eval_func = load_entry_point(accuracy.eval_func, "evaluation.accuracy.eval_func", allow_code=allow_code)
    if q_dataloader is None and calibration.q_dataloader is not None:
        q_dataloader = load_entry_point(
            calibration.q_dataloader, "quantization.calibration.q_dataloader", allow_code=allow_code
        )
    evaluation = None
    if eval_func is None:
        if accuracy.dataset is None:
            raise ConfigError("evaluation.accuracy: no images: give a dataloader, an eval_func or --dataset_location")
        evaluation = _open(
            accuracy.dataset,
            accuracy.anno_path,
            limit=None,
            skip_bad_records=skip_bad_records,
            cache_mb=cache_mb,
            masks=accuracy.iou_type != "bbox" and accuracy.labels == "annotations",
            annotated=accuracy.labels == "annotations",
            steps=steps_of(accuracy.dataloader, calibration.dataloader, fed_to=fed_to),
        )
    source: DetectionDataset | QDataloader | None = q_dataloader
    loader = calibration.dataset
    if loader is None and calibration.dataloader is not None and accuracy.dataset is not None:
        # It says what to do with images, and those are the evaluation set's.
        loader = calibration.dataloader.model_copy(update={"dataset": accuracy.dataset.dataset})
    if source is None and loader is not None:
        source = _open(
            loader,
            accuracy.anno_path if _same_kind(loader, accuracy.dataset) else None,
            limit=max(calibration.sampling_sizes),
            skip_bad_records=skip_bad_records,
            cache_mb=0,
            annotated=accuracy.labels == "annotations",
            steps=steps_of(calibration.dataloader, accuracy.dataloader, fed_to=fed_to),
        )
    if source is None:
        source = evaluation
    if source is None:
        raise ConfigError(
            "quantization.calibration: no images: give a dataloader, a q_dataloader or --calibration_location"
        )
    if fed_to is not None:
        _check_fit(fed_to, {"evaluation.accuracy": evaluation, "quantization.calibration": source})
    return Inputs(evaluation, eval_func, source, read_classes(config.model).identity)


def _check_fit(model: DetectionModel, sections: Mapping[str, DetectionDataset | QDataloader | None]) -> None:
    for section, images in sections.items():
        if isinstance(images, DetectionDataset):
            steps = ", ".join(type(step).__name__ for step in images.steps) or "nothing"
            check_fed(model, images.first_image[np.newaxis], f"{section}.dataloader.transform does {steps}")


def steps_of(*loaders: DatasetConfig | None, fed_to: DetectionModel | None) -> tuple[Step, ...]:
    """What is done to images, as the first of the loaders says that has a `transform` section, if only an empty one.

    So what one section leaves out is as in the other: a detector sees the same in calibration, evaluation and timing.
    fed_to: where its input takes whole numbers, grey levels that resizing has made fractions of are cast to them.
    """
    said = [one for one in loaders if one is not None and "transform" in one.model_fields_set]
    steps = said[0].transform.steps if said else ()
    resized = any(isinstance(step, _MAKE_FRACTIONS) for step in steps)
    if fed_to is None or not resized or any(isinstance(step, Rescale | Normalize | Cast) for step in steps):
        return steps
    # As the sessions of LPOT's time did without a word.
    wanted = input_type(fed_to)
    return (*steps, Cast(dtype=wanted)) if wanted in ("uint8", "int32") else steps


def with_labels(
    config: TuningConfig, inputs: Inputs, model: DetectionModel, progress: Progress, workers: Workers | None = None
) -> Inputs:
    """The inputs with what the float model finds as the truth, where the settings want that. See `label_by_model`."""
    accuracy, images = config.evaluation.accuracy, inputs.evaluation
    if accuracy.labels == "annotations" or images is None:
        return inputs
    masks = accuracy.iou_type != "bbox"
    labelled = label_by_model(model, images, accuracy.label_score, progress, masks=masks, workers=workers)
    # Not of the detections: their last bits may differ the next time.
    identity = f"{images.sha256}, as {model.sha256} labels it from {accuracy.label_score:g} on"
    return replace(inputs, evaluation=labelled, labelled_images=identity)


def first_image(config: TuningConfig, location: Place | None, model: DetectionModel) -> NDArray[Any] | None:
    """The image that speed is measured on, as the model is fed it: [H, W, 3], or what transforms make of it.

    The first one at `location`, else of the settings' performance or accuracy data set; None where there is neither.
    Speed needs no annotations.
    """
    performance, accuracy = config.evaluation.performance, config.evaluation.accuracy
    calibration = config.quantization.calibration
    steps = steps_of(performance.dataloader, accuracy.dataloader, calibration.dataloader, fed_to=model)
    if location is not None:
        return open_dataset(location, limit=1, cache_mb=0, annotated=False, steps=steps).first_image
    dataset = performance.dataset or accuracy.dataset
    if dataset is None:
        return None
    anno_path = accuracy.anno_path if performance.dataset is None else None
    opened = _open(dataset, anno_path, limit=1, skip_bad_records=False, cache_mb=0, annotated=False, steps=steps)
    return opened.first_image


def _same_kind(dataset: DatasetConfig, other: DatasetConfig | None) -> bool:
    return other is not None and isinstance(dataset.source, CocoRecord) and isinstance(other.source, CocoRecord)


def _open(
    dataset: DatasetConfig,
    anno_path: Path | None,
    *,
    limit: int | None,
    skip_bad_records: bool,
    cache_mb: int,
    masks: bool = False,
    annotated: bool = True,
    steps: tuple[Step, ...] = (),
) -> DetectionDataset:
    """anno_path: the instances JSON of a folder of images, or a label map, where given apart."""
    source = dataset.source
    label_map = None
    if anno_path is not None and (isinstance(source, CocoRecord) or anno_path.suffix in _YAML):
        label_map, anno_path = read_label_map(anno_path), None
    open_with = partial(
        open_dataset,
        label_map=label_map,
        limit=limit,
        skip_bad_records=skip_bad_records,
        cache_mb=cache_mb,
        threads=source.num_cores,
        objects=dataset.filter.objects,
        steps=steps,
    )
    if isinstance(source, CocoRaw) and not annotated and not (anno_path or source.annotations or source.root).is_file():
        folder = source.images
        return open_with(source.root if folder is None or not folder.is_dir() else folder, annotated=False)
    if isinstance(source, CocoRaw):
        annotations = anno_path or source.annotations
        return open_with(
            source.root,
            # Absolute, since relative ones are looked for below the root, where these begin already.
            image_dir=source.images and source.images.absolute(),
            annotations=annotations and annotations.absolute(),
            masks=masks,
        )
    return open_with(source.root, masks=masks, annotated=annotated)
