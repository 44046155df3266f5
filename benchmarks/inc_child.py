"""One tuning of neural-compressor 2.6 in its own environment; `vs_inc.py` starts it and reads what it leaves behind.

    python benchmarks/inc_child.py tune FOLDER      as FOLDER/request.json asks
    python benchmarks/inc_child.py measure FOLDER   mAP and latency of several graphs, in either environment

Images are read, decoded and scored by this project's own code, which TensorFlow 2.15 runs as well. Every event is
written and flushed at once, as a line of FOLDER/events.jsonl, so that a process that is ended loses nothing.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.data.calibration import calibration_images
from tuner.data.dataset import DetectionDataset, open_dataset
from tuner.errors import ModelError
from tuner.evaluation.coco_map import ImageTruth, coco_metrics
from tuner.evaluation.latency import measure_models
from tuner.files import write_bytes, write_text
from tuner.model.detection_model import DetectionModel
from tuner.model.graph_view import node_name
from tuner.model.loading import load_model
from tuner.model.runner import ModelRunner

# So many that its strategy or the time limit ends the tuning, never this.
MAX_TRIALS = 100_000
EVENTS, REQUEST, MEASURED = "events.jsonl", "request.json", "measured.json"
BEST_GRAPH, FINAL_GRAPH = "best.pb", "final.pb"


class EventLog:
    """Lines of JSON: what happened, and how many seconds after `started` (of `time.time()`)."""

    def __init__(self, path: Path, started: float) -> None:
        self._file = path.open("a", encoding="utf-8")
        self._started = started

    def write(self, event: str, **facts: object) -> None:
        """Add a line."""
        line = {"event": event, "seconds": round(time.time() - self._started, 3), **facts}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


class CalibrationImages:
    """The first `count` calibration images as neural-compressor's data loader takes them: (image [H, W, 3], label)."""

    def __init__(self, dataset: DetectionDataset, count: int) -> None:
        self._dataset = dataset
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[NDArray[Any], int]]:
        for image in calibration_images(self._dataset, self._count):
            yield image[0], 0

    def take(self, count: int) -> "CalibrationImages":
        """The first `count` of them: `mse_v2` ranks operators on a few images."""
        return CalibrationImages(self._dataset, min(count, self._count))


class Accuracy:
    """neural-compressor's eval_func: mAP on every image. The first call is for the float model.

    The most accurate of the graphs that it made is kept in `folder`.
    """

    def __init__(self, model: DetectionModel, dataset: DetectionDataset, folder: Path, log: EventLog) -> None:
        self._model = model
        self._dataset = dataset
        self._folder = folder
        self._log = log
        self._best: float | None = None
        self._is_float = True

    def __call__(self, made: Any) -> float:
        """The mAP of a graph, a GraphDef or an object that holds one."""
        graph_def = getattr(made, "graph_def", made)
        if callable(getattr(graph_def, "as_graph_def", None)):
            graph_def = graph_def.as_graph_def()
        accuracy = accuracy_of(self._model.with_graph(graph_def), self._dataset)
        event, self._is_float = "baseline" if self._is_float else "evaluated", False
        if event == "evaluated" and (self._best is None or accuracy > self._best):
            self._best = accuracy
            write_bytes(self._folder / BEST_GRAPH, graph_def.SerializeToString())
        self._log.write(event, accuracy=accuracy, images=len(self._dataset))
        return accuracy


def tune(folder: Path) -> None:
    """Tune as the request asks; the graph that it accepts becomes FINAL_GRAPH."""
    request = json.loads((folder / REQUEST).read_text())
    log = EventLog(folder / EVENTS, request["started"])
    from neural_compressor import quantization  # noqa: PLC0415
    from neural_compressor.adaptor.tensorflow import TensorFlowAdaptor  # noqa: PLC0415
    from neural_compressor.config import (  # noqa: PLC0415
        AccuracyCriterion,
        PostTrainingQuantConfig,
        TuningCriterion,
    )
    from neural_compressor.data import DataLoader  # noqa: PLC0415

    quantize = TensorFlowAdaptor.quantize

    def quantize_and_log(*arguments: Any, **named: Any) -> Any:
        before = time.time()
        made = quantize(*arguments, **named)
        log.write("converted", took=round(time.time() - before, 3))
        return made

    TensorFlowAdaptor.quantize = quantize_and_log
    model = load_model(Path(request["model"]))
    evaluation = open_dataset(Path(request["evaluation"]))
    calibration = open_dataset(Path(request["calibration"]))
    count = min(request["calibration_images"], len(calibration))
    config = PostTrainingQuantConfig(
        inputs=[node_name(name) for name in model.inputs],
        outputs=[node_name(name) for name in model.outputs],
        calibration_sampling_size=[count],
        # 1: the strategy that is named, from the start; "auto" puts one of its own before it.
        quant_level=1,
        accuracy_criterion=AccuracyCriterion(criterion="relative", tolerable_loss=request["relative_loss"]),
        tuning_criterion=TuningCriterion(strategy=request["strategy"], timeout=0, max_trials=MAX_TRIALS),
    )
    log.write("started", calibration_images=count)
    result = quantization.fit(
        model.graph_def,
        conf=config,
        calib_dataloader=DataLoader("tensorflow", CalibrationImages(calibration, count)),
        eval_func=Accuracy(model, evaluation, folder, log),
    )
    if result is not None:
        write_bytes(folder / FINAL_GRAPH, result.graph_def.SerializeToString())
    log.write("ended", accepted=result is not None)


def measure(folder: Path) -> None:
    """Write mAP and latency of the graphs that run here as MEASURED, by name; of the others why they do not."""
    asked = json.loads((folder / REQUEST).read_text())
    dataset = open_dataset(Path(asked["evaluation"]))
    image = dataset.first_image[np.newaxis]
    models, refused = {}, {}
    for name, path in asked["graphs"].items():
        try:
            model = load_model(Path(path))
            with ModelRunner(model) as runner:
                runner.run(image)
        except ModelError as error:
            refused[name] = str(error)
        else:
            models[name] = model
    figures = measure_models(list(models.values()), image, iterations=asked["rounds"])
    graphs = {
        name: {"median_ms": of_model.median_ms, "accuracy": accuracy_of(model, dataset)}
        for (name, model), of_model in zip(models.items(), figures, strict=True)
    }
    write_text(folder / MEASURED, json.dumps({"graphs": graphs, "refused": refused}))


def accuracy_of(model: DetectionModel, dataset: DetectionDataset) -> float:
    """The mAP of a detector on every image."""
    truths = [ImageTruth(one.image_id, one.height, one.width, one.ground_truth) for one in dataset.entries]
    with ModelRunner(model) as runner:
        detections = [runner.detect(sample.image) for sample in dataset]
    return coco_metrics(truths, detections).figures["mAP"]


if __name__ == "__main__":
    work, target = {"tune": tune, "measure": measure}[sys.argv[1]], Path(sys.argv[2]).absolute()
    os.chdir(target)  # neural-compressor makes its workspace in the current folder.
    work(target)
