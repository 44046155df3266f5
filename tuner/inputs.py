"""What a configuration names becomes objects: data sets, a calibration source, a user's functions."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tuner.config import CocoRaw, CocoRecord, DatasetConfig, TuningConfig
from tuner.data.calibration import QDataloader
from tuner.data.dataset import DetectionDataset, open_dataset
from tuner.data.label_map import read_label_map
from tuner.entry_point import load_entry_point
from tuner.errors import ConfigError
from tuner.evaluation.evaluator import EvalFunction
from tuner.evaluation.labels import label_by_model
from tuner.model.detection_model import DetectionModel
from tuner.progress import Progress


@dataclass(frozen=True)
class Inputs:
    """The data of a run.

    evaluation: the annotated images; None where an eval_func keeps its own. eval_func: None where COCO mAP judges.
    calibration: where calibration images come from; the evaluation set where nothing else is named.
    labelled_images: where the float model's detections are the truth, what they and the images hash to.
    """

    evaluation: DetectionDataset | None
    eval_func: EvalFunction | None
    calibration: DetectionDataset | QDataloader
    labelled_images: str = ""

    @property
    def evaluation_identity(self) -> str:
        """What tells this measure of accuracy from another: the hash of the set's content, or a function's name."""
        if self.evaluation is not None:
            return self.labelled_images or self.evaluation.sha256
        return getattr(self.eval_func, "__qualname__", type(self.eval_func).__qualname__)


def open_inputs(
    config: TuningConfig,
    *,
    skip_bad_records: bool,
    cache_mb: int,
    eval_func: EvalFunction | None = None,
    q_dataloader: QDataloader | None = None,
) -> Inputs:
    """Open everything that a run reads. Objects given by the caller win over what the configuration names.

    Raises ConfigError when accuracy or calibration has no source, DatasetError for data that cannot be used.
    """
    accuracy, calibration = config.evaluation.accuracy, config.quantization.calibration
    if eval_func is None and accuracy.eval_func is not None:
        eval_func = load_entry_point(accuracy.eval_func, "evaluation.accuracy.eval_func")
    if q_dataloader is None and calibration.q_dataloader is not None:
        q_dataloader = load_entry_point(calibration.q_dataloader, "quantization.calibration.q_dataloader")
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
        )
    source: DetectionDataset | QDataloader | None = q_dataloader
    if source is None and calibration.dataset is not None:
        source = _open(
            calibration.dataset,
            accuracy.anno_path if _are_records(calibration.dataset, accuracy.dataset) else None,
            limit=max(calibration.sampling_sizes),
            skip_bad_records=skip_bad_records,
            cache_mb=0,
            annotated=accuracy.labels == "annotations",
        )
    if source is None:
        source = evaluation
    if source is None:
        raise ConfigError(
            "quantization.calibration: no images: give a dataloader, a q_dataloader or --calibration_location"
        )
    return Inputs(evaluation, eval_func, source)


def with_labels(config: TuningConfig, inputs: Inputs, model: DetectionModel, progress: Progress) -> Inputs:
    """The inputs with what the float model finds as the truth, where the settings want that. See `label_by_model`."""
    accuracy, images = config.evaluation.accuracy, inputs.evaluation
    if accuracy.labels == "annotations" or images is None:
        return inputs
    labelled = label_by_model(model, images, accuracy.label_score, progress, masks=accuracy.iou_type != "bbox")
    # Not of the detections: their last bits may differ the next time.
    identity = f"{images.sha256}, as {model.sha256} labels it from {accuracy.label_score:g} on"
    return replace(inputs, evaluation=labelled, labelled_images=identity)


def first_image(dataset: DatasetConfig | None, otherwise: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The first image of a data set, [H, W, 3], or `otherwise` where none is named."""
    if dataset is None:
        return otherwise
    return _open(dataset, None, limit=1, skip_bad_records=False, cache_mb=0).first_image


def _are_records(*datasets: DatasetConfig | None) -> bool:
    return all(dataset is not None and isinstance(dataset.source, CocoRecord) for dataset in datasets)


def _open(
    dataset: DatasetConfig,
    anno_path: Path | None,
    *,
    limit: int | None,
    skip_bad_records: bool,
    cache_mb: int,
    masks: bool = False,
    annotated: bool = True,
) -> DetectionDataset:
    """anno_path: the instances JSON of a folder of images, or the label map of records, where given apart."""
    source = dataset.source
    if isinstance(source, CocoRaw) and not annotated and not (anno_path or source.annotations or source.root).is_file():
        folder = source.images
        return open_dataset(
            source.root if folder is None or not folder.is_dir() else folder,
            limit=limit,
            skip_bad_records=skip_bad_records,
            cache_mb=cache_mb,
            threads=source.num_cores,
            annotated=False,
        )
    if isinstance(source, CocoRaw):
        annotations = anno_path or source.annotations
        return open_dataset(
            source.root,
            # Absolute, since relative ones are looked for below the root, where these begin already.
            image_dir=source.images and source.images.absolute(),
            annotations=annotations and annotations.absolute(),
            limit=limit,
            skip_bad_records=skip_bad_records,
            cache_mb=cache_mb,
            threads=source.num_cores,
            masks=masks,
        )
    return open_dataset(
        source.root,
        label_map=None if anno_path is None else read_label_map(anno_path),
        limit=limit,
        skip_bad_records=skip_bad_records,
        cache_mb=cache_mb,
        threads=source.num_cores,
        masks=masks,
        annotated=annotated,
    )
