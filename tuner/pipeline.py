"""The order of the stages, and nothing else: load, calibrate, measure, search, export, report."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

from tuner.cache import Cache
from tuner.config import TuningConfig, pinned_yaml
from tuner.criterion import best_trial, judge, outcome, pareto_front, passing_trials, share_lost
from tuner.data.calibration import calibration_images
from tuner.engine import calibrated_ranges, make_engine, optimized_model, search_space, worthwhile_space
from tuner.evidence.keep import keep_evidence
from tuner.exclusive import only_driver
from tuner.export.output import check_output, export_model
from tuner.files import write_sealed, write_text
from tuner.finals import Final, choose_final, untried_proposals
from tuner.foresight import Foreseer
from tuner.inputs import open_inputs, open_model, with_labels
from tuner.job import TuningJob
from tuner.meter import Meter
from tuner.model.detection_model import DetectionModel
from tuner.progress import Clock, Progress, Silent
from tuner.quantization.cpu import read_cpu_features, warn_without_vnni
from tuner.quantization.quantize import find_quantizable_ops, prepare
from tuner.report.advice import repeated_failure
from tuner.report.html.page import write_report
from tuner.report.notes import describe_endpoints, describe_measurement, describe_trial
from tuner.report.result import (
    CriterionFacts,
    DatasetFacts,
    ModelFacts,
    StageSeconds,
    TuningResult,
    result_json,
    still_in_float,
)
from tuner.report.running import TrialWatcher
from tuner.run_record import RunRecord, read_run, write_run
from tuner.search.announced import Announced
from tuner.search.space import SearchSpace
from tuner.search.strategy import make_search
from tuner.session import environment, hash_images, identity, remove_leftovers_of_kills, run_facts
from tuner.study import open_study
from tuner.study_storage import only_driver_on, sqlite_file
from tuner.trial import CompletedTrial
from tuner.trial_runner import TrialRunner
from tuner.workforce import hired

STOPPED = "stopped by Ctrl-C; --resume goes on from here"


def tune(job: TuningJob, progress: Progress | None = None) -> TuningResult:
    """Find the fastest graph that meets the criterion; write it, its plan, `result.json` and `report.html`.

    Raises TunerError for what the user can mend. On Ctrl-C the best graph so far is written and the result says so;
    KeyboardInterrupt goes on where there is none yet; it says STOPPED where --resume would repeat nothing.
    What a callback raises goes on, but for StopTuning, which ends the search.
    """
    with ExitStack() as held:
        return _tune(job, Clock(progress or Silent()), held)


def _tune(job: TuningJob, clock: Clock, held: ExitStack) -> TuningResult:
    """All stages. held: keeps the workspace for this run, from the moment that it is first needed."""
    config, features = job.config, read_cpu_features()
    criterion, weights = config.tuning.accuracy_criterion, config.tuning.weights
    warn_without_vnni(features)
    check_output(job.output_model, job.input_model)
    workers = held.enter_context(
        hired(job.cluster, config.evaluation.accuracy.configs, clock.progress, cache_mb=job.cache_mb)
    )

    with clock.stage("load") as stage:
        model = open_model(config, job.input_model, allow_ops=job.allow_ops)
        inputs = open_inputs(
            config,
            skip_bad_records=job.skip_bad_records,
            cache_mb=job.cache_mb,
            eval_func=job.eval_func,
            q_dataloader=job.q_dataloader,
            fed_to=model,
            allow_code=job.allow_code,
        )
        inputs = with_labels(config, inputs, model, clock.progress, workers)
        images = list(calibration_images(inputs.calibration, max(config.quantization.calibration.sampling_sizes)))
        optimized = optimized_model(config, model, images)
        prepared = prepare(optimized.model)
        ops = find_quantizable_ops(prepared)
        space = search_space(config, model, ops, features, len(images))
        stage.note(describe_endpoints(model.inputs, model.outputs, len(ops.names), len(ops.refused), optimized.notes))

    with clock.stage("calibrate") as stage:
        held.enter_context(_only_run(job))
        images_sha256 = hash_images(images)
        run_identity = identity(config, model, inputs, images_sha256=images_sha256, space=space, features=features)
        study = open_study(job.storage_url, run_identity, resume=job.resume)
        cache = Cache(job.workspace, reads=not job.fresh)
        ranges, calibrations = calibrated_ranges(cache, prepared, ops, images, images_sha256, observe=workers.observe)
        space, unprofitable = worthwhile_space(config, space, prepared, ranges)
        stage.note(f"{len(images)} images, {len(ranges)} tensors" + ("" if calibrations else ", from an earlier run"))

    with clock.stage("baseline") as stage:
        meter = Meter(
            config, inputs, images[0], cache, clock.progress, environment=environment(config, features), workers=workers
        )
        write_run(
            job.workspace,
            run_facts(
                config,
                inputs,
                run_identity,
                (job.input_model, job.output_model),
                storage=job.storage_url,
                float_ops={**ops.refused, **unprofitable},
                keys={"matches": meter.records_key, "foresight": [prepared.sha256, images_sha256]},
            ),
        )
        baseline = meter.measure_baseline(model, study.baseline)
        study.record_baseline(baseline)
        stage.note(describe_measurement(baseline))

    engine = workers.learn(make_engine(config, optimized.model, prepared, ops=ops, ranges=ranges, images=images))
    foreseer = Foreseer(config, space, prepared, engine, ranges, images, images_sha256, meter, cache, clock)
    search = Announced(
        partial(
            make_search,
            config.tuning.strategy.name,
            space,
            seed=config.tuning.random_seed,
            goes_on=config.tuning.exit_policy.timeout_s > 0,
            at_once=workers.at_once(meter.images),
        ),
        foreseer.foresight(times_graphs=not study.deadly),
        wanted=lambda: workers.ahead(meter.images),
        announce=lambda proposals: workers.expect(proposals, meter.images),
    )
    runner = TrialRunner(
        model,
        engine,
        partial(meter.measure, foretell=search.foretell),
        study,
        TrialWatcher(config.tuning, baseline, study.trials, clock.progress, job.callbacks),
        # neural-compressor makes another graph each time, so the one that was measured is kept.
        graphs=job.workspace / "graphs" if config.quantization.engine == "inc" else None,
    )
    reason = _search(config, search, runner, meter, clock)

    leading = passing_trials(weights, criterion, baseline, study.trials)
    best = best_trial(weights, criterion, baseline, study.trials)
    if best is None and reason == STOPPED:
        raise KeyboardInterrupt(STOPPED)
    final = None
    if best is not None:
        final = _hand_over(
            job,
            runner,
            meter,
            space,
            [model, optimized.model] if optimized.done else [model],
            leading=leading or [best],
            compare=reason != STOPPED,
            clock=clock,
        )
        reason = STOPPED if final is None else "; ".join(filter(None, (reason, final.note)))
    if final is not None:
        baseline, best = final.baseline, final.best
    interval = None if best is None else meter.loss_interval(best.graph_sha256)
    result = TuningResult(
        status=outcome(
            criterion, baseline, best, interrupted=reason == STOPPED, confirmed=best is None or meter.confirms(best)
        ),
        reason=reason,
        model=ModelFacts(job.input_model, model.sha256, model.inputs, model.outputs),
        dataset=DatasetFacts(inputs.evaluation_identity, baseline.images, config.evaluation.accuracy.labels),
        criterion=CriterionFacts(criterion.kind, criterion.limit, criterion.higher_is_better),
        baseline=baseline,
        best=best,
        relative_loss=share_lost(criterion, baseline, best),
        output_model=job.output_model,
        trials=study.trials,
        calibrations=calibrations,
        seconds=StageSeconds.of(clock, quantize_s=runner.quantize_s, evaluate_s=runner.evaluate_s),
        refused={**ops.refused, **still_in_float(unprofitable, best)},
        rewritten=optimized.notes,
        rewritten_ms=None if final is None else final.rewritten_ms,
        pareto_front=pareto_front(criterion, baseline, study.trials),
        loss_interval=None if interval is None else (interval.low, interval.high),
        confirmation=None if best is None else meter.confirmations.get(best.graph_sha256),
    )
    keep = partial(
        keep_evidence, float_model=model, prepared=prepared, ranges=ranges, dataset=inputs.evaluation, image=meter.image
    )
    _report(job, result, final, runner, clock, keep=keep)
    return result


@contextmanager
def _interrupts_go_on() -> Iterator[None]:
    """Once a search was made, Ctrl-C says that --resume repeats nothing of it."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(STOPPED) from None


@contextmanager
def _only_run(job: TuningJob) -> Iterator[None]:
    """Keep the workspace and the study for this run; what a killed one left half written goes."""
    with only_driver(job.workspace, sqlite_file(job.storage_url)), only_driver_on(job.storage_url):
        remove_leftovers_of_kills(job.workspace, job.output_model)
        yield


def _search(config: TuningConfig, search: Announced, runner: TrialRunner, meter: Meter, clock: Clock) -> str:
    """Try what the search proposes until it, the exit policy, a callback or Ctrl-C says stop; returns why it did."""
    criterion, study = config.tuning.accuracy_criterion, runner.study
    for trial in study.trials:
        search.record(trial.proposal, meter.outcome(trial))
    try:
        with runner.watcher.searching(study.search_s):
            while not (verdict := judge(config.tuning.exit_policy, len(study.trials), study.search_s)).stop:
                proposal = search.propose()
                if proposal is None:
                    return search.ending
                with clock.stage(f"trial {len(study.trials) + 1}") as stage:
                    trial = runner.run(proposal)
                    found = meter.outcome(trial)
                    search.record(proposal, found)
                    if found.passes:
                        clock.seconds.setdefault("accepted", clock.total_s)
                    stage.note(describe_trial(trial, criterion, meter.baseline))
                if stop_reason := runner.watcher.stop_reason or repeated_failure(study.trials):
                    return stop_reason
        return verdict.reason
    except KeyboardInterrupt:
        return STOPPED
    finally:
        search.end()


@_interrupts_go_on()
def _hand_over(
    job: TuningJob,
    runner: TrialRunner,
    meter: Meter,
    space: SearchSpace,
    models: Sequence[DetectionModel],
    *,
    leading: Sequence[CompletedTrial],
    compare: bool,
    clock: Clock,
) -> Final | None:
    """Write the best graph of the search; time it against the float model and what was not tried; write the fastest.

    None where there is nothing to compare, or Ctrl-C came: then the graph and the plan are the search's best.
    """
    best = leading[0]
    try:
        _export(job, best, runner.graph(best), clock)
        if not compare:
            return None
        with clock.stage("compare") as stage:
            untried = untried_proposals(job.config, space, runner.study.trials)
            final = choose_final(job.config, runner, meter, models=models, leading=leading, untried=untried)
            stage.note(final.note)
        if final.best.number != best.number:
            _export(job, final.best, final.graph, clock)
    except KeyboardInterrupt:
        _export(job, best, runner.graph(best), clock)
        return None
    return final


def _export(job: TuningJob, trial: CompletedTrial, graph: DetectionModel, clock: Clock) -> None:
    """Write the graph of a trial and the settings that make it again."""
    with clock.stage("export") as stage:
        export_model(graph, job.output_model)
        asked = trial.proposal
        pinned = pinned_yaml(job.config, asked.plan, asked.calibration_images, asked.corrections)
        write_text(job.workspace / "plan.yaml", pinned)
        stage.note(str(job.output_model))


@_interrupts_go_on()
def _report(
    job: TuningJob,
    result: TuningResult,
    final: Final | None,
    runner: TrialRunner,
    clock: Clock,
    *,
    keep: Callable[[DetectionModel, RunRecord], None],
) -> None:
    """Write result.json and the report. final: None after Ctrl-C. keep: keeps what is shown of the best graph."""
    write_sealed(job.workspace / "result.json", result_json(result))
    with clock.stage("report") as stage:
        if result.best is not None:
            keep(runner.graph(result.best) if final is None else final.graph, read_run(job.workspace))
        stage.note(str(write_report(job.workspace)))
