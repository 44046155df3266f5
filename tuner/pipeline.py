"""The order of the stages, and nothing else: load, calibrate, measure, search, export, report."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.config import AccuracyCriterion, TuningConfig, pinned_yaml
from tuner.criterion import best_trial, judge, loss, outcome, passes, share_lost
from tuner.data.calibration import QDataloader, calibration_images
from tuner.data.dataset import open_dataset
from tuner.engine import allowed_decisions, calibrated_ranges, make_engine, optimized_model, worthwhile_decisions
from tuner.evaluation.evaluator import EvalFunction
from tuner.evaluation.latency import LatencyFigures, measure_models
from tuner.export.output import check_output, export_model
from tuner.files import write_text
from tuner.finals import Final, choose_fastest, of_search, other_plans, still_in_float
from tuner.inputs import first_image, open_inputs
from tuner.meter import apply_compute, make_evaluator
from tuner.model.detection_model import DetectionModel
from tuner.model.loading import load_model
from tuner.precision import OpPrecision
from tuner.progress import Clock, Progress, Silent
from tuner.quantization.cpu import read_cpu_features, warn_without_vnni
from tuner.quantization.quantize import find_quantizable_ops, prepare
from tuner.quantization.ranges import Ranges, first_images
from tuner.quantization.sensitivity import measure_sensitivity
from tuner.report.notes import describe_endpoints, describe_measurement, describe_trial
from tuner.report.result import CriterionFacts, DatasetFacts, ModelFacts, StageSeconds, TuningResult, result_json
from tuner.search.fallback import FallbackSearch, Proposal
from tuner.session import hash_images, identity, storage_url
from tuner.study import Study, open_study
from tuner.trial import CompletedTrial, FailedTrial, Measurement, Trial
from tuner.trial_runner import TrialRunner

SENSITIVITY_IMAGES = 4
STOPPED = "stopped by Ctrl-C; --resume goes on from here"


@dataclass(frozen=True)
class TuningJob:
    """One run as it was asked for.

    config: the settings. input_model: any of the four formats. output_model: a name ending in `.pb`, or a folder.
    workspace: where the run keeps its record. storage: an SQLAlchemy URL in the place of the workspace's study.db.
    eval_func, q_dataloader: objects that win over what the settings name. cache_mb: MiB for decoded images.
    """

    config: TuningConfig
    input_model: Path
    output_model: Path
    workspace: Path
    storage: str | None = None
    resume: bool = False
    skip_bad_records: bool = False
    cache_mb: int = 512
    eval_func: EvalFunction | None = None
    q_dataloader: QDataloader | None = None


def tune(job: TuningJob, progress: Progress | None = None) -> TuningResult:
    """Find the fastest int8 graph that meets the criterion; write it, its plan and `result.json`.

    Raises TunerError for what the user can mend. On Ctrl-C the best graph so far is written and the result says so;
    KeyboardInterrupt goes on where there is none yet.
    """
    config, clock = job.config, Clock(progress or Silent())
    calibration, criterion = config.quantization.calibration, config.tuning.accuracy_criterion
    warn_without_vnni(read_cpu_features())
    check_output(job.output_model, job.input_model)

    with clock.stage("load") as stage:
        model = load_model(job.input_model, config.model.inputs, config.model.outputs)
        inputs = open_inputs(
            config,
            skip_bad_records=job.skip_bad_records,
            cache_mb=job.cache_mb,
            eval_func=job.eval_func,
            q_dataloader=job.q_dataloader,
        )
        images = list(calibration_images(inputs.calibration, max(calibration.sampling_sizes)))
        optimized = optimized_model(config, model, images)
        prepared = prepare(optimized.model)
        ops = find_quantizable_ops(prepared)
        choices = allowed_decisions(config, model, ops)
        stage.note(describe_endpoints(model.inputs, model.outputs, len(ops.names), len(ops.refused), optimized.notes))

    with clock.stage("calibrate") as stage:
        images_sha256 = hash_images(images)
        run_identity = identity(config, model, inputs, images_sha256, choices)
        study = open_study(storage_url(job.workspace, job.storage), run_identity, resume=job.resume)
        ranges, calibrations = calibrated_ranges(job.workspace, prepared, ops, images, images_sha256)
        choices, unprofitable = worthwhile_decisions(config, choices, prepared, ranges)
        stage.note(f"{len(images)} images, {len(ranges)} tensors" + ("" if calibrations else ", from an earlier run"))

    with clock.stage("baseline") as stage:
        evaluator = make_evaluator(config, inputs, images[0], clock.progress)
        baseline = study.baseline or evaluator.evaluate(model, certify=lambda accuracy: True)
        loss(criterion, baseline, baseline)  # a baseline of which nothing can be a share is refused now
        study.record_baseline(baseline)
        stage.note(describe_measurement(baseline))

    sizes = [min(size, len(images)) for size in calibration.sampling_sizes]
    search = FallbackSearch(choices, sizes, _ranking(study, prepared, ranges, images, clock), config.tuning.random_seed)
    runner = TrialRunner(
        model,
        *make_engine(config, optimized.model, prepared, ops=ops, ranges=ranges, images=images),
        evaluator,
        certify=lambda accuracy: passes(criterion, baseline, replace(baseline, accuracy=accuracy)),
        study=study,
        # neural-compressor makes another graph each time, so the one that was measured is kept.
        graphs=job.workspace / "graphs" if config.quantization.engine == "inc" else None,
    )
    try:
        reason, interrupted = _search(config, search, runner, choices, baseline=baseline, clock=clock), False
    except KeyboardInterrupt:
        reason, interrupted = STOPPED, True
    best = best_trial(criterion, baseline, of_search(study.trials, choices))
    if best is None and interrupted:
        raise KeyboardInterrupt

    final = None
    if best is not None:
        _export(job, best, runner.graph(best), clock)
        if not interrupted:
            models = [model, optimized.model] if optimized.done else [model]
            try:
                final = _compare(job, runner, models=models, image=images[0], baseline=baseline, best=best, clock=clock)
                baseline, best, reason = final.baseline, final.best, "; ".join(filter(None, (reason, final.note)))
            except KeyboardInterrupt:
                reason, interrupted = STOPPED, True
    result = TuningResult(
        status=outcome(criterion, baseline, best, interrupted=interrupted),
        reason=reason,
        model=ModelFacts(job.input_model, model.sha256, model.inputs, model.outputs),
        dataset=DatasetFacts(inputs.evaluation_identity, baseline.images),
        criterion=CriterionFacts(criterion.kind, criterion.limit, criterion.higher_is_better),
        baseline=baseline,
        best=best,
        relative_loss=share_lost(criterion, baseline, best),
        output_model=job.output_model,
        trials=study.trials,
        calibrations=calibrations,
        seconds=_seconds(clock, runner),
        refused={**ops.refused, **still_in_float(unprofitable, best)},
        rewritten=optimized.notes,
        rewritten_ms=None if final is None else final.rewritten_ms,
    )
    write_text(job.workspace / "result.json", json.dumps(result_json(result), indent=2) + "\n")
    return result


def evaluate(
    config: TuningConfig,
    model: Path,
    progress: Progress | None = None,
    *,
    skip_bad_records: bool = False,
    cache_mb: int = 512,
) -> Measurement:
    """Measure one model of any format on the whole evaluation set. Raises TunerError for what the user can mend."""
    clock = Clock(progress or Silent())
    with clock.stage("load"):
        loaded = load_model(model, config.model.inputs, config.model.outputs)
        inputs = open_inputs(config, skip_bad_records=skip_bad_records, cache_mb=cache_mb)
    with clock.stage("evaluate"):
        image = next(calibration_images(inputs.calibration, 1))
        return make_evaluator(config, inputs, image, clock.progress).evaluate(loaded, certify=lambda accuracy: True)


def benchmark(
    config: TuningConfig | None,
    models: Sequence[Path],
    *,
    dataset_location: Path | None,
    batch_size: int,
    warmup: int,
    iterations: int,
    threads: int,
    instances: int,
) -> list[LatencyFigures]:
    """Time models of any format in turns on one batch: the first image of a data set, repeated.

    The data set is the one at dataset_location, else that of the settings, else a grey picture of 640 x 480.
    threads: of each instance, 0 for all of its cores. Raises TunerError for what the user can mend.
    """
    endpoints = ((), ()) if config is None else (config.model.inputs, config.model.outputs)
    loaded = [load_model(model, *endpoints) for model in models]
    image = np.full((480, 640, 3), 127, np.uint8)
    if dataset_location is not None:
        image = open_dataset(dataset_location, limit=1, cache_mb=0).first_image
    elif config is not None:
        evaluation = config.evaluation
        image = first_image(evaluation.performance.dataset or evaluation.accuracy.dataset, image)
    batch = np.repeat(image[np.newaxis], batch_size, axis=0)
    _, inter_threads = (0, 0) if config is None else apply_compute(config.evaluation.performance.configs)
    return measure_models(
        loaded,
        batch,
        threads=threads,
        inter_threads=inter_threads,
        instances=instances,
        warmup=warmup,
        iterations=iterations,
    )


def _export(job: TuningJob, trial: CompletedTrial, graph: DetectionModel, clock: Clock) -> None:
    """Write the graph of a trial and the settings that make it again."""
    with clock.stage("export") as stage:
        export_model(graph, job.output_model)
        write_text(job.workspace / "plan.yaml", pinned_yaml(job.config, trial.requested, trial.calibration_images))
        stage.note(str(job.output_model))


def _ranking(
    study: Study, prepared: DetectionModel, ranges: Ranges, images: Sequence[NDArray[Any]], clock: Clock
) -> Callable[[Proposal], Sequence[str]]:
    """The operators of a plan, the most damaging first: measured once for a study."""

    def rank(proposal: Proposal) -> Sequence[str]:
        if study.order is None:
            with clock.stage("sensitivity") as stage:
                proposed_ranges = first_images(ranges, proposal.calibration_images)
                damage = measure_sensitivity(prepared, proposal.plan, proposed_ranges, images[:SENSITIVITY_IMAGES])
                study.record_order(sorted(damage, key=lambda op: -damage[op]))
                stage.note(f"{len(damage)} ops on {len(images[:SENSITIVITY_IMAGES])} images")
        return study.order or ()

    return rank


def _compare(
    job: TuningJob,
    runner: TrialRunner,
    *,
    models: Sequence[DetectionModel],
    image: NDArray[Any],
    baseline: Measurement,
    best: CompletedTrial,
    clock: Clock,
) -> Final:
    """Time the best graph against the float model, and let a faster plan that passes take its place."""
    with clock.stage("compare") as stage:
        every_op = [node.name for node in models[0].graph_def.node]
        plans = other_plans(job.config, every_op, best.requested, read_cpu_features())
        final = choose_fastest(job.config, plans, runner, models=models, image=image, baseline=baseline, best=best)
        stage.note(final.note)
    if final.best.number != best.number:
        _export(job, final.best, final.graph, clock)
    return final


def _search(
    config: TuningConfig,
    search: FallbackSearch,
    runner: TrialRunner,
    choices: Mapping[str, Sequence[OpPrecision]],
    *,
    baseline: Measurement,
    clock: Clock,
) -> str:
    """Try what the search proposes until the criterion says stop; returns why it did."""
    criterion, policy, study = config.tuning.accuracy_criterion, config.tuning.exit_policy, runner.study
    for trial in of_search(study.trials, choices):
        _record(search, trial, criterion, baseline)
    while True:
        verdict = judge(criterion, policy, baseline, of_search(study.trials, choices), study.search_s)
        if verdict.stop:
            return verdict.reason
        proposal = search.propose()
        if proposal is None:
            return "there is no plan left to try"
        with clock.stage(f"trial {len(study.trials) + 1}") as stage:
            trial = runner.run(proposal.plan, proposal.calibration_images)
            _record(search, trial, criterion, baseline)
            stage.note(describe_trial(trial, criterion, baseline))


def _record(search: FallbackSearch, trial: Trial, criterion: AccuracyCriterion, baseline: Measurement) -> None:
    proposal, lost, passed = Proposal(trial.requested, trial.calibration_images), math.inf, False
    if not isinstance(trial, FailedTrial):
        lost = loss(criterion, baseline, trial.measurement)
        passed = passes(criterion, baseline, trial.measurement)
    search.record(proposal, loss=lost, passes=passed)


def _seconds(clock: Clock, runner: TrialRunner) -> StageSeconds:
    return StageSeconds(
        total=clock.total_s,
        **{stage: clock.seconds.get(stage, 0.0) for stage in ("load", "calibrate", "baseline", "sensitivity")},
        quantize=runner.quantize_s,
        evaluate=runner.evaluate_s,
    )
