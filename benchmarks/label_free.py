"""How well agreement with the float model tells the loss of mAP that annotations would show; print a table.

    python benchmarks/label_free.py MODEL... --dataset LOCATION --calibration LOCATION

Plans of all kinds are made into graphs, and each graph's detections are compared with the annotations and with what the
float model finds (`evaluation.accuracy.labels: model`).
"""

import argparse
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from sensitivity import spearman

from tuner.data.calibration import calibration_images
from tuner.data.dataset import DetectionDataset, open_dataset
from tuner.detections import Detections
from tuner.evaluation.coco_map import ImageTruth, coco_metrics
from tuner.evaluation.inference import detect_images
from tuner.evaluation.labels import label_by_model
from tuner.model.loading import load_model
from tuner.precision import FP32, Granularity, OpPrecision, PrecisionPlan, RangeAlgorithm
from tuner.progress import Silent
from tuner.quantization.quantize import find_quantizable_ops, prepare, quantize
from tuner.quantization.ranges import collect_ranges

CALIBRATION_IMAGES = 20
LIMITS = (0.01, 0.02, 0.05)


def main() -> None:
    """Print a row for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--plans", type=int, default=24)
    parser.add_argument("--score", type=float, default=0.3, help="the least score of a label (0.3)")
    asked = parser.parse_args()
    dataset = open_dataset(asked.dataset)
    calibration = open_dataset(asked.calibration, limit=CALIBRATION_IMAGES)
    within = [f"within {limit:.0%}: truly so" for limit in LIMITS]
    print(f"| model | plans | rho | correlation | disagreement / loss, median | {' | '.join(within)} |")
    print("|---|---|---|---|---|" + "---|" * len(LIMITS))
    for path in asked.models:
        told, true = losses(path, dataset, calibration, asked.plans, asked.score)
        kept = [f"{np.sum(true[told <= limit] <= limit)} of {np.sum(told <= limit)}" for limit in LIMITS]
        medians = f"{np.median(told):.2%} / {np.median(true):.2%}"
        rho, correlation = spearman(told, true), np.corrcoef(told, true)[0, 1]
        cells = [path.stem, str(asked.plans), f"{rho:.2f}", f"{correlation:.2f}", medians, *kept]
        print(f"| {' | '.join(cells)} |", flush=True)


def losses(
    path: Path, dataset: DetectionDataset, calibration: DetectionDataset, count: int, score: float
) -> tuple[np.ndarray, np.ndarray]:
    """Of each plan, the relative loss of mAP against the float model's detections, and against the annotations."""
    model = prepare(load_model(path))
    ops = find_quantizable_ops(model)
    images = islice(calibration_images(calibration, CALIBRATION_IMAGES), CALIBRATION_IMAGES)
    ranges = collect_ranges(model, ops.tensors, images)
    truths = [truths_of(one) for one in (label_by_model(model, dataset, score, Silent()), dataset)]
    baseline = maps(list(detect_images(model, dataset)), truths)
    found = [
        1 - maps(list(detect_images(quantize(model, plan, ranges), dataset)), truths) / baseline
        for plan in plans(ops.names, count)
    ]
    told, true = np.transpose(found)
    return told, true


def plans(ops: Sequence[str], count: int) -> list[PrecisionPlan]:
    """All operators int8, then random shares of them, in random forms."""
    random, algorithms, granularities = np.random.default_rng(0), list(RangeAlgorithm), list(Granularity)
    made = [PrecisionPlan(dict.fromkeys(ops, OpPrecision()))]
    while len(made) < count:
        form = OpPrecision(
            activation_algorithm=algorithms[random.integers(len(algorithms))],
            weight_granularity=granularities[random.integers(len(granularities))],
        )
        share = random.random()
        made.append(PrecisionPlan({op: form if random.random() < share else FP32 for op in ops}))
    return made


def truths_of(dataset: DetectionDataset) -> list[ImageTruth]:
    """What is true of each image."""
    return [ImageTruth(one.image_id, one.height, one.width, one.ground_truth) for one in dataset.entries]


def maps(detections: Sequence[Detections], truths: Sequence[Sequence[ImageTruth]]) -> np.ndarray:
    """The mAP of the same detections by each truth."""
    return np.array([coco_metrics(one, detections).figures["mAP"] for one in truths])


if __name__ == "__main__":
    main()
