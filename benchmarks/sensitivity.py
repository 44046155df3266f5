"""How well cheap measures of an operator's damage predict what int8 really costs there; print markdown tables.

    python benchmarks/sensitivity.py MODEL... --dataset LOCATION --calibration LOCATION --cache FOLDER

The truth is measured on all images with the real lowering: plans in which one operator alone is int8 ("alone"), and
plans in which it alone is float ("without"). A ranker sees four calibration images and the plan with all in int8.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sensitivity_rankers import RANKERS

from tuner.data.calibration import calibration_images
from tuner.data.dataset import DetectionDataset, open_dataset
from tuner.detections import Detections
from tuner.evaluation.coco_map import ImageTruth, match_image
from tuner.evaluation.match_records import match_records, mean_average_precision
from tuner.graph.postprocess import optimize_postprocess
from tuner.model.detection_model import DetectionModel
from tuner.model.endpoints import DETECTION_OUTPUTS
from tuner.model.loading import load_model
from tuner.model.runner import ModelRunner
from tuner.precision import FP32, INT8, PrecisionPlan
from tuner.quantization.quantize import find_quantizable_ops, prepare, quantize
from tuner.quantization.ranges import collect_ranges
from tuner.quantization.sensitivity import find_heads

CALIBRATION_IMAGES = 20
RANKED_BY_IMAGES = 4
# The set is halved at random so many times.
HALVINGS = 10
# Detections below this score are not followed from float to int8.
LOWEST_SCORE = 0.05
TRUTHS = ("mAP alone", "scores alone", "heads alone", "mAP without", "scores without", "heads without")
PATHS = ("leave one out", "one in", "one in, scores", "gradients", "squares, both", "shared out")
# Shares of the operators that leave int8, those first that a ranker finds worst.
SHARES_OUT = (0.05, 0.1)

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one plan does. maps: [1 + 2 * HALVINGS], of all images, then of halves and their other halves in turn.

    score_changes, head_errors: [images], the mean absolute change of the score of each float detection, and the squared
    error of the raw heads over their squared norm.
    """

    maps: Array
    score_changes: Array
    head_errors: Array


class Judge:
    """Runs plans of one detector over all images, or reads from the cache what they did."""

    def __init__(self, model: DetectionModel, dataset: DetectionDataset, images: Sequence[Array], cache: Path) -> None:
        self.prepared = prepare(optimize_postprocess(model, images).model)
        ops = find_quantizable_ops(self.prepared)
        self.ops = ops.names
        self.ranges = collect_ranges(self.prepared, ops.tensors, images)
        self.heads = find_heads(self.prepared.graph)
        self._dataset, self._cache = dataset, cache
        self._truths = [ImageTruth(one.image_id, one.height, one.width, one.ground_truth) for one in dataset.entries]
        self._categories = {i for truth in self._truths for i in truth.ground_truth.category_ids.tolist()}
        self.plan = PrecisionPlan(dict.fromkeys(self.ops, INT8))

    def outcome(self, plan: PrecisionPlan) -> Outcome:
        """Of the real graph of a plan."""
        file = self.file(f"{plan.sha256[:24]}.npz")
        if not file.is_file():
            started = time.perf_counter()
            np.savez(file, **vars(self._measured(quantize(self.prepared, plan, self.ranges))))
            print(f"{file.name}: {time.perf_counter() - started:.1f} s", file=sys.stderr, flush=True)
        with np.load(file, allow_pickle=False) as arrays:
            return Outcome(**arrays)

    def file(self, name: str) -> Path:
        """A file of this detector in the cache."""
        self._cache.mkdir(parents=True, exist_ok=True)
        return self._cache / f"{self.prepared.sha256[:12]}_{name}"

    def _measured(self, graph: DetectionModel) -> Outcome:
        matches, score_changes, head_errors = [], [], []
        with ModelRunner(replace(graph, outputs=graph.outputs + self.heads)) as runner:
            for truth, image, (detections, heads) in zip(self._truths, self._images, self._exact, strict=True):
                values = runner.run(image)
                found = detections_of(values)
                matches.append(match_image(truth, found, self._categories))
                score_changes.append(score_change(detections, found))
                shares = [
                    np.sum((values[name] - exact) ** 2, dtype=np.float64) / (np.sum(exact**2, dtype=np.float64) + 1e-12)
                    for name, exact in zip(self.heads, heads, strict=True)
                ]
                head_errors.append(np.mean(shares))
        records = match_records([truth.image_id for truth in self._truths], self._categories, matches)
        halves = [np.ones(len(records), np.int64)]
        for seed in range(HALVINGS):
            half = np.random.default_rng(seed).permutation(len(records)) % 2
            halves += [half, 1 - half]
        return Outcome(
            mean_average_precision(records, np.stack(halves)), np.array(score_changes), np.array(head_errors)
        )

    @cached_property
    def _images(self) -> list[Array]:
        return [sample.image[np.newaxis] for sample in self._dataset]

    @cached_property
    def _exact(self) -> list[tuple[Detections, list[Array]]]:
        """What the float graph finds in each image, and its raw heads."""
        with ModelRunner(replace(self.prepared, outputs=self.prepared.outputs + self.heads)) as runner:
            results = (runner.run(image) for image in self._images)
            return [(detections_of(values), [values[name] for name in self.heads]) for values in results]


def main() -> None:
    """Print a table of correlations and one of what the rankings are worth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--annotations", type=Path, help="the instances JSON, where the dataset holds several")
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True, help="folder for what plans do, read where it is there")
    parser.add_argument("--every", type=int, default=3, help="the truth of every so manieth operator (default: 3)")
    asked = parser.parse_args()
    dataset = open_dataset(asked.dataset, annotations=asked.annotations and asked.annotations.absolute())
    images = [*calibration_images(open_dataset(asked.calibration), CALIBRATION_IMAGES)]
    correlations = [f"| model | ranker | seconds | {' | '.join(TRUTHS)} |", "|---" * (len(TRUTHS) + 3) + "|"]
    cells = " | ".join(f"{share:.0%} float: loss, heads' error" for share in SHARES_OUT)
    paths = [f"| model | order | {cells} |", "|---" * (len(SHARES_OUT) + 2) + "|"]
    for path in asked.models:
        name = path.parent.name if path.stem == "frozen_inference_graph" else path.stem
        judge = Judge(load_model(path), dataset, images, asked.cache)
        chosen = judge.ops[asked.every // 2 :: asked.every]
        truths, halves = truths_of(judge, chosen)
        cells = " | ".join(f"{halves[truth]:.2f}" for truth in TRUTHS)
        correlations.append(f"| {name} | truth: one half by the other, {len(chosen)} of {len(judge.ops)} | | {cells} |")
        paths.append(f"| {name} | none | {path_cells(judge, [])} |")
        for ranker, (seconds, damage) in ranked(judge, images[:RANKED_BY_IMAGES]).items():
            ranking = np.array([damage[op] for op in chosen])
            cells = " | ".join(f"{spearman(ranking, truths[truth]):.2f}" for truth in TRUTHS)
            correlations.append(f"| {name} | {ranker} | {seconds:.1f} | {cells} |")
            order = sorted(judge.ops, key=lambda op: -damage[op])
            if ranker in PATHS:
                paths.append(f"| {name} | {ranker} | {path_cells(judge, order)} |")
    print("\n".join([*correlations, "", *paths]))


def truths_of(judge: Judge, ops: Sequence[str]) -> tuple[dict[str, Array], dict[str, float]]:
    """Of each truth, the damage of each of `ops`, and the mean of rho between two halves of the images."""
    none = PrecisionPlan(dict.fromkeys(judge.ops, FP32))
    alone = [judge.outcome(none.with_ops([op], INT8)) for op in ops]
    without = [judge.outcome(judge.plan.with_ops([op], FP32)) for op in ops]
    truths, halves = {}, {}
    for kind, outcomes, reference, sign in (("alone", alone, none, 1), ("without", without, judge.plan, -1)):
        before = judge.outcome(reference)
        maps = sign * (before.maps - np.stack([one.maps for one in outcomes]))
        truths[f"mAP {kind}"], pairs = maps[:, 0], maps[:, 1:]
        halves[f"mAP {kind}"] = mean_rho(pairs[:, ::2].T, pairs[:, 1::2].T)
        for truth, field in (("scores", "score_changes"), ("heads", "head_errors")):
            changes = sign * (np.stack([getattr(one, field) for one in outcomes]) - getattr(before, field))
            sides = [np.random.default_rng(seed).permutation(changes.shape[1]) % 2 == 0 for seed in range(HALVINGS)]
            truths[f"{truth} {kind}"] = changes.mean(axis=1)
            halves[f"{truth} {kind}"] = mean_rho(
                [changes[:, side].mean(axis=1) for side in sides], [changes[:, ~side].mean(axis=1) for side in sides]
            )
    return truths, halves


def ranked(judge: Judge, images: Sequence[Array]) -> dict[str, tuple[float, Mapping[str, float]]]:
    """Seconds and damage of each operator, of every ranking."""
    found = {}
    for ranker, rank in RANKERS.items():
        file = judge.file(f"{ranker.replace(' ', '_')}.json")
        if not file.is_file():
            started = time.perf_counter()
            rankings = rank(judge.prepared, judge.plan, judge.ranges, images)
            file.write_text(json.dumps({"seconds": time.perf_counter() - started, "rankings": rankings}))
        kept = json.loads(file.read_text())
        found.update({ranker + name: (kept["seconds"], damage) for name, damage in kept["rankings"].items()})
    return found


def path_cells(judge: Judge, order: Sequence[str]) -> str:
    """Relative loss of mAP, and error of the heads, with the first operators of an order in float."""
    before = judge.outcome(PrecisionPlan(dict.fromkeys(judge.ops, FP32))).maps[0]
    cells = []
    for share in SHARES_OUT:
        after = judge.outcome(judge.plan.with_ops(order[: round(share * len(judge.ops))], FP32))
        cells.append(f"{1 - after.maps[0] / before:.2%}, {after.head_errors.mean():.2e}")
    return " | ".join(cells)


def detections_of(values: Mapping[str, Array]) -> Detections:
    """The detections among a model's outputs for one image."""
    boxes, scores, classes, number = (values[f"{name}:0"] for name in DETECTION_OUTPUTS)
    count = int(number.reshape(()))
    return Detections(boxes[0, :count], scores[0, :count], np.rint(classes[0, :count]).astype(np.int64))


def score_change(before: Detections, after: Detections) -> float:
    """The mean absolute change of the scores of `before`; what has no partner of its category and IoU 0.5 has 0 after.

    0 where nothing was found before.
    """
    kept = before.scores >= LOWEST_SCORE
    if not kept.any():
        return 0.0
    boxes, others = before.boxes[kept, np.newaxis], after.boxes[np.newaxis]
    sides = np.minimum(boxes[..., 2:], others[..., 2:]) - np.maximum(boxes[..., :2], others[..., :2])
    shared = np.prod(np.maximum(sides, 0), axis=-1)
    areas = [np.prod(one[..., 2:] - one[..., :2], axis=-1) for one in (boxes, others)]
    same = before.category_ids[kept, np.newaxis] == after.category_ids
    is_partner = same & (shared > 0.5 * (areas[0] + areas[1] - shared))
    scores = np.max(is_partner * after.scores, axis=1, initial=0.0)
    return float(np.abs(before.scores[kept] - scores).mean())


def mean_rho(ones: Sequence[Array] | Array, others: Sequence[Array] | Array) -> float:
    """The mean of rho over pairs."""
    return float(np.mean([spearman(one, other) for one, other in zip(ones, others, strict=True)]))


def spearman(one: Array, other: Array) -> float:
    """Spearman's rho: the correlation of ranks, equal values sharing the mean of theirs."""
    return float(np.corrcoef(ranks(one), ranks(other))[0, 1])


def ranks(values: Array) -> Array:
    """[N] -> [N] ranks."""
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[index]


if __name__ == "__main__":
    main()
