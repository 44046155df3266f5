"""A trial in the terms of a plot: a few numbers and words by name, which say nothing that its record does not."""

import re
from collections.abc import Iterable, Mapping

from tuner.config.tuning import AccuracyCriterion
from tuner.criterion import loss, passes
from tuner.errors import EvaluationError
from tuner.precision import Correction, Dtype, Granularity, RangeAlgorithm
from tuner.trial import CompletedTrial, FailedTrial, Measurement, Proposal, RejectedTrial, Trial

MOST_IMAGES = 10**6
_NONE, _MIXED = "none", "mixed"
CHOICES: Mapping[str, tuple[str, ...]] = {
    "range_algorithm": (_NONE, *(one.value for one in RangeAlgorithm), _MIXED),
    "weight_granularity": (_NONE, *(one.value for one in Granularity), _MIXED),
    "corrections": (_NONE, *(one.value for one in Correction), _MIXED),
}
_LOWER_IS_BETTER = ", lower is better"
_CRITERION = re.compile(r"(relative|absolute) ([^ ,]+)(, lower is better)?")

Term = str | int | float


def describe_proposal(proposal: Proposal) -> dict[str, Term]:
    """What a proposal asks for.

    int8_share, bf16_share: of the operators of the plan. calibration_images. range_algorithm, weight_granularity: of
    its int8 operators, and corrections: of its weights, one of CHOICES; "mixed" where there are several.
    """
    plan = proposal.plan
    counts, int8 = plan.count(), [one for one in plan.values() if one.dtype is Dtype.INT8]
    return {
        "int8_share": counts[Dtype.INT8] / max(len(plan), 1),
        "bf16_share": counts[Dtype.BF16] / max(len(plan), 1),
        "calibration_images": min(max(proposal.calibration_images, 1), MOST_IMAGES),
        "range_algorithm": _in_a_word(one.activation_algorithm.value for one in int8),
        "weight_granularity": _in_a_word(one.weight_granularity.value for one in int8),
        "corrections": _in_a_word(correction.value for correction in proposal.corrections),
    }


def describe_trial(trial: Trial, baseline: Measurement | None, identity: Mapping[str, str]) -> dict[str, Term]:
    """What became of a trial.

    idea; verdict: "meets the criterion", "loses too much", "rejected early", "failed", or "measured" where the baseline
    or the criterion is not known; what of these there is: ops_int8, ops_bf16, ops_fp32 (of the graph), loss (as the
    criterion counts; an estimate where it was rejected), accuracy, latency_ms, size_bytes, images.
    identity: of the run, with its criterion.
    """
    told: dict[str, Term] = {"idea": trial.proposal.idea}
    if isinstance(trial, FailedTrial):
        return {**told, "verdict": "failed"}
    told |= {f"ops_{dtype.value}": count for dtype, count in trial.applied.count().items()}
    if isinstance(trial, RejectedTrial):
        rejection = trial.rejection
        return {**told, "verdict": "rejected early", "loss": rejection.loss, "images": rejection.images}
    measured = trial.measurement
    return {
        **told,
        **_judged(trial, baseline, identity),
        "accuracy": measured.accuracy,
        "latency_ms": measured.latency_ms,
        "size_bytes": measured.size_bytes,
        "images": measured.images,
    }


def lower_is_better(identity: Mapping[str, object]) -> bool:
    """Whether the run's accuracy is a loss."""
    return str(identity.get("criterion", "")).endswith(_LOWER_IS_BETTER)


def _judged(trial: CompletedTrial, baseline: Measurement | None, identity: Mapping[str, str]) -> dict[str, Term]:
    stated = _CRITERION.fullmatch(identity.get("criterion", ""))
    if baseline is None or stated is None:
        return {"verdict": "measured"}
    kind, limit, _ = stated.groups()
    criterion = AccuracyCriterion.model_validate({kind: limit, "higher_is_better": not lower_is_better(identity)})
    try:
        lost = loss(criterion, baseline, trial.measurement)
    except EvaluationError:
        return {"verdict": "measured"}
    passed = passes(criterion, baseline, trial.measurement)
    return {"verdict": "meets the criterion" if passed else "loses too much", "loss": lost}


def _in_a_word(found: Iterable[str]) -> str:
    kinds = set(found)
    return kinds.pop() if len(kinds) == 1 else _MIXED if kinds else _NONE
