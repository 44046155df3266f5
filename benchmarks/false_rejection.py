"""How often early rejection drops a candidate that meets the criterion, and what clear failures cost.

    python benchmarks/false_rejection.py MODEL... --dataset LOCATION --calibration LOCATION --cache FOLDER

Each model runs once over all images in float and in some int8 and bf16 plans; the match records are kept in the cache.
Then the images are put in many random orders, and each candidate is looked at as in a search. With its own loss on the
whole set as the limit it is the hardest case of one that must not be dropped. With a limit of 1 % those that lose more
should be, the sooner the better.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from tuner.data.calibration import calibration_images
from tuner.data.dataset import DetectionDataset, open_dataset
from tuner.evaluation.coco_map import IouType
from tuner.evaluation.early_rejection import RESAMPLES, EarlyRejection, LossLimit, paired_resamples
from tuner.evaluation.evaluator import CocoEvaluator
from tuner.evaluation.match_records import MatchRecords, mean_average_precision
from tuner.model.loading import load_model
from tuner.precision import BF16, INT8, Granularity, OpPrecision, Output, PrecisionPlan, RangeAlgorithm
from tuner.progress import Silent
from tuner.quantization.quantize import find_quantizable_ops, prepare, quantize
from tuner.quantization.ranges import collect_ranges

CALIBRATION_IMAGES = 20
FLOAT = "float"
LIMIT = 0.01


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--annotations", type=Path, help="the instances JSON, where the dataset holds several")
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True, help="folder for match records, read where they are there")
    parser.add_argument("--plans", nargs="*", help="all unless given: " + ", ".join(plans([])))
    parser.add_argument("--orders", type=int, default=200)
    parser.add_argument("--images", type=int, help="a random choice of so many as the whole set; repeated if need be")
    asked = parser.parse_args()
    dataset = open_dataset(asked.dataset, annotations=asked.annotations and asked.annotations.absolute())
    print("| model | plan | loss | dropped at a limit of its loss (alpha) | dropped at 1 % | images evaluated at 1 % |")
    print("|---|---|---|---|---|---|")
    for path in asked.models:
        records = all_records(path, dataset, asked.calibration, asked.cache)
        if asked.images is not None:
            records = {name: chosen(kept, asked.images) for name, kept in records.items()}
        for name in asked.plans or plans([]):
            print(f"| {path.stem} | {name} | {row(records[FLOAT], records[name], asked.orders)} |", flush=True)


def plans(ops: Sequence[str]) -> dict[str, PrecisionPlan]:
    """Candidates that lose a little, much, and nearly everything, by name."""
    half = len(ops) // 2
    per_tensor = OpPrecision(weight_granularity=Granularity.PER_TENSOR)
    made: Mapping[str, tuple[Sequence[str], OpPrecision]] = {
        "bf16": (ops, BF16),
        "int8": (ops, INT8),
        "int8_exact": (ops, OpPrecision(output=Output.EXACT)),
        "int8_first_half": (ops[:half], INT8),
        "int8_second_half": (ops[half:], INT8),
        "int8_kl": (ops, OpPrecision(activation_algorithm=RangeAlgorithm.KL)),
        "int8_per_tensor": (ops, per_tensor),
    }
    return {name: PrecisionPlan(dict.fromkeys(chosen, precision)) for name, (chosen, precision) in made.items()}


def all_records(path: Path, dataset: DetectionDataset, calibration: Path, cache: Path) -> dict[str, MatchRecords]:
    """The match records of the model in float and in every plan."""
    files = {name: cache / f"{path.stem}_{name}.npz" for name in (FLOAT, *plans([]))}
    if not all(file.is_file() for file in files.values()):
        cache.mkdir(parents=True, exist_ok=True)
        model = prepare(load_model(path))
        ops = find_quantizable_ops(model)
        images = islice(calibration_images(open_dataset(calibration), CALIBRATION_IMAGES), CALIBRATION_IMAGES)
        ranges = collect_ranges(model, ops.tensors, images)
        evaluator = CocoEvaluator(dataset, Silent())
        for name, plan in {FLOAT: None, **plans(list(ops.names))}.items():
            graph = model if plan is None else quantize(model, plan, ranges)
            evaluator.evaluate(
                graph,
                lambda accuracies: False,
                keep=lambda kept, to=files[name]: np.savez(to, **kept[IouType.BBOX].to_arrays()),
            )
    return {name: read(file) for name, file in files.items()}


def chosen(records: MatchRecords, images: int) -> MatchRecords:
    """A random choice of images; of more than there are, each occurs several times under ids of its own."""
    random = np.random.default_rng(1)
    picked = random.permutation(np.resize(random.permutation(len(records)), images))
    return replace(records.take(picked), image_ids=np.arange(images))


def read(file: Path) -> MatchRecords:
    """Match records from a file of the cache."""
    with np.load(file, allow_pickle=False) as arrays:
        return MatchRecords.from_arrays(arrays)


def row(baseline: MatchRecords, candidate: MatchRecords, orders: int) -> str:
    """The cells of one candidate."""
    before, after = (mean_average_precision(one, np.ones((1, len(one))))[0] for one in (baseline, candidate))
    loss = float(1 - after / before)
    if loss <= 0:
        return f"{loss:.2%} | | | "
    used: dict[float, list[int]] = {loss: [], LIMIT: []}
    for number in range(orders):
        order = np.random.default_rng(number).permutation(len(baseline))
        ordered, tried = baseline.take(order), candidate.take(order)
        policies = {limit: EarlyRejection(ordered, LossLimit("relative", limit)) for limit in used}
        stopped: dict[float, int] = {}
        for images in policies[LIMIT].schedule:
            resamples = paired_resamples(ordered, tried.first(images), RESAMPLES, number)
            for limit, policy in policies.items():
                if limit not in stopped and policy.decide(images, *resamples) is not None:
                    stopped[limit] = images
        for limit, counts in used.items():
            counts.append(stopped.get(limit, len(baseline)))
    dropped = {limit: sum(count < len(baseline) for count in counts) for limit, counts in used.items()}
    cells = [f"{loss:.2%}", f"{dropped[loss]} of {orders} ({EarlyRejection.alpha:.0%})"]
    cells += [f"{dropped[LIMIT] / orders:.0%}", f"{np.mean(used[LIMIT]):.0f} of {len(baseline)}"]
    return " | ".join(cells)


if __name__ == "__main__":
    main()
