"""What int8 costs in each part of a detector of the Object Detection API, and what it saves there; print a table.

    python benchmarks/heads.py MODEL... --dataset LOCATION --calibration LOCATION --score 0.3

"alone": the loss where only that part is int8. "part kept in float": the loss where everything else is. Loss is that of
agreement with the float model's own detections of at least `--score` (random weights have no other truth), of boxes and
masks the worse one. "saves": the share of the all-int8 graph's time that float costs in that part, both graphs timed in
turns.
"""

import argparse
import re
from collections.abc import Collection, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

from tuner.data.calibration import calibration_images
from tuner.data.dataset import DetectionDataset, open_dataset
from tuner.evaluation.coco_map import CocoBackend, ImageTruth, IouType, coco_metrics
from tuner.evaluation.inference import detect_images
from tuner.evaluation.labels import label_by_model
from tuner.evaluation.latency import measure_latency
from tuner.graph.postprocess import OPTIMIZATION_IMAGES, optimize_postprocess
from tuner.model.detection_model import DetectionModel
from tuner.model.endpoints import MASK_OUTPUT
from tuner.model.loading import load_model
from tuner.model.runner import ModelRunner
from tuner.precision import FP32, INT8, PrecisionPlan
from tuner.progress import Silent
from tuner.quantization.quantize import find_quantizable_ops, prepare, quantize
from tuner.quantization.ranges import Ranges, collect_ranges

ROUNDS = 15
# The first that matches: each operator is in one part.
PARTS = {
    "mask head": r"^SecondStageBoxPredictor_1/|^SecondStageFeatureExtractor_1/",
    "box head": r"^SecondStageBoxPredictor/BoxEncodingPredictor|^(WeightShared\w*)?BoxPredictor\w*/Box\w*Predictor/",
    "class head": r"^SecondStageBoxPredictor/ClassPredictor|^(WeightShared\w*)?BoxPredictor\w*/ClassPredictor/",
    "towers of the heads": r"PredictionTower/",
    "proposals": r"^FirstStageBoxPredictor/|^Conv/",
    "second stage": r"^SecondStageFeatureExtractor/",
    "backbone": r"FeatureExtractor/",
}


def main() -> None:
    """Print the rows of each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--score", type=float, default=0.3, help="the least score of a label (0.3)")
    asked = parser.parse_args()
    dataset, calibration = open_dataset(asked.dataset), open_dataset(asked.calibration)
    print("| model | part | ops | loss alone | loss of all int8 | part kept in float | saves |")
    print("|---|---|---|---|---|---|---|")
    for path in asked.models:
        for row in rows(path, dataset, calibration, asked.score):
            print(f"| {path.parent.name} | {' | '.join(row)} |", flush=True)


def rows(path: Path, dataset: DetectionDataset, calibration: DetectionDataset, score: float) -> list[list[str]]:
    """The cells of each part that the model has."""
    model = load_model(path)
    images = list(islice(calibration_images(calibration, len(calibration)), len(calibration)))
    prepared = prepare(optimize_postprocess(model, images[:OPTIMIZATION_IMAGES]).model)
    ops = find_quantizable_ops(prepared)
    ranges = collect_ranges(prepared, ops.tensors, images)
    masks = f"{MASK_OUTPUT}:0" in model.outputs
    labelled = label_by_model(model, dataset, score, Silent(), masks=masks)

    def loss(graph: DetectionModel) -> float:
        truths = [ImageTruth(e.image_id, e.height, e.width, e.ground_truth) for e in labelled.entries]
        found = list(detect_images(graph, dataset, masks=masks))
        compared = (IouType.BBOX, IouType.SEGM) if masks else (IouType.BBOX,)
        return max(1 - coco_metrics(truths, found, CocoBackend.FASTER, one).figures["mAP"] for one in compared)

    all_int8 = graph_of(prepared, ops.names, ops.names, ranges)
    loss_of_all, found = loss(all_int8), []
    for part, members in parts(ops.names).items():
        without = graph_of(prepared, ops.names, set(ops.names) - set(members), ranges)
        alone = loss(graph_of(prepared, ops.names, members, ranges))
        with ModelRunner(all_int8) as one, ModelRunner(without) as other:
            runs = [partial(runner.run, images[0]) for runner in (one, other)]
            before, after = (figures.median_ms for figures in measure_latency(runs, iterations=ROUNDS))
        losses = [f"{value:.1%}" for value in (alone, loss_of_all, loss(without))]
        found.append([part, str(len(members)), *losses, f"{after / before - 1:.1%}"])
    return found


def parts(ops: Sequence[str]) -> dict[str, list[str]]:
    """The operators of each part that has any."""
    found: dict[str, list[str]] = {}
    for op in ops:
        part = next(part for part, pattern in PARTS.items() if re.search(pattern, op))
        found.setdefault(part, []).append(op)
    return found


def graph_of(prepared: DetectionModel, ops: Sequence[str], int8: Collection[str], ranges: Ranges) -> DetectionModel:
    """The model with these operators in int8 and the rest in float."""
    return quantize(prepared, PrecisionPlan({op: INT8 if op in int8 else FP32 for op in ops}), ranges)


if __name__ == "__main__":
    main()
