"""One model, or several, measured as they are: no search."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.address import Place
from tuner.config import TuningConfig
from tuner.data.calibration import calibration_images
from tuner.data.dataset import open_dataset
from tuner.errors import ConfigError
from tuner.evaluation.evaluator import measure_fully
from tuner.evaluation.latency import measure_models
from tuner.inputs import first_image, open_inputs, open_model
from tuner.meter import make_evaluator
from tuner.model.detection_model import DetectionModel
from tuner.model.loading import load_model
from tuner.model.runner import allow_xla_on_cpu, grey_image
from tuner.progress import Clock, Progress, Silent
from tuner.report.speed import TimedRun
from tuner.timing import apply_compute
from tuner.trial import Measurement
from tuner.workforce import hired


def evaluate(
    config: TuningConfig,
    model: Path,
    progress: Progress | None = None,
    *,
    cluster: str | None = None,
    skip_bad_records: bool = False,
    cache_mb: int = 512,
    allow_code: bool = False,
    allow_ops: bool = False,
) -> Measurement:
    """Measure one model of any format on the whole evaluation set. Raises TunerError for what the user can mend.

    cluster: as `TuningJob`. allow_code: import what the settings name as module:name. allow_ops: as `load_model`.
    """
    if config.evaluation.accuracy.labels == "model":
        raise ConfigError("evaluation.accuracy.labels: got model; a model alone cannot be compared with itself")
    clock = Clock(progress or Silent())
    with hired(cluster, config.evaluation.accuracy.configs, clock.progress, cache_mb=cache_mb) as workers:
        with clock.stage("load"):
            loaded = open_model(config, model, allow_ops=allow_ops)
            inputs = open_inputs(
                config, skip_bad_records=skip_bad_records, cache_mb=cache_mb, fed_to=loaded, allow_code=allow_code
            )
        with clock.stage("evaluate"):
            image = next(calibration_images(inputs.calibration, 1))
            return measure_fully(make_evaluator(config, inputs, image, clock.progress, workers=workers), loaded)


def benchmark(
    config: TuningConfig | None,
    models: Sequence[Path],
    *,
    names: Sequence[str],
    dataset_location: Place | None,
    batch_sizes: Sequence[int],
    warmup: int,
    iterations: int,
    threads: int,
    instances: int,
    xla: bool,
    allow_ops: bool = False,
) -> list[TimedRun]:
    """Time models of any format in turns, on batches of each size: the first image of a data set, repeated.

    The data set is the one at dataset_location, else the settings', else a grey picture. names: what each model is
    called in the result. xla: also each run once more, compiled. threads: of each instance, 0 for all of its cores.
    allow_ops: as `load_model`.
    Raises TunerError for what the user can mend.
    """
    if xla:
        allow_xla_on_cpu()
    endpoints = (config.model.inputs, config.model.outputs) if config else ()
    loaded = [load_model(path, *endpoints, allow_ops=allow_ops) for path in models]
    image = None
    if config is not None:
        image = first_image(config, dataset_location, loaded[0])
    elif dataset_location is not None:
        image = open_dataset(dataset_location, limit=1, cache_mb=0).first_image
    if image is None:
        image = grey_image(loaded[0])
    kinds = [(name, compiled) for name in names for compiled in ((False, True) if xla else (False,))]
    found = []
    for batch_size in batch_sizes:
        figures = measure_models(
            loaded,
            np.repeat(image[np.newaxis], batch_size, axis=0),
            threads=threads,
            inter_threads=0 if config is None else apply_compute(config.evaluation.performance.configs)[1],
            instances=instances,
            warmup=warmup,
            iterations=iterations,
            xla=xla,
        )
        found += [TimedRun(*kind, batch_size, **asdict(one)) for kind, one in zip(kinds, figures, strict=True)]
    return found


def median_latencies_ms(
    models: Sequence[DetectionModel], image: NDArray[Any] | None = None, *, iterations: int
) -> list[float]:
    """How long one run of each model takes, in turns, on an image of [1, H, W, 3], else on a grey picture.

    Raises ModelError for a model that does not run on it.
    """
    batch = grey_image(models[0])[np.newaxis] if image is None else image
    return [figures.median_ms for figures in measure_models(models, batch, iterations=iterations)]
