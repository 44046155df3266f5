"""Whole runs on a detector of six convolutions, whose own float detections are the annotations of eight images."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tuner.config import Strategy, TuningConfig, load_config, parse_config
from tuner.criterion import Status
from tuner.data.images import decode_image
from tuner.errors import ConfigError, EvaluationError, ModelError, TunerError
from tuner.evaluation import early_rejection
from tuner.evaluation.evaluator import CocoEvaluator
from tuner.evidence.changed_images import most_changed
from tuner.exclusive import only_driver
from tuner.job import TuningJob
from tuner.measure import evaluate
from tuner.meter import Meter
from tuner.model.detection_model import DetectionModel
from tuner.model.loading import load_model
from tuner.model.runner import ModelRunner
from tuner.pipeline import tune
from tuner.quantization.lowering.kernels import KERNEL_OPS
from tuner.report.result import TuningResult
from tuner.run_record import read_run
from tuner.search.announced import Announced
from tuner.search.space import Outcome
from tuner.trial import CompletedTrial, Proposal, RejectedTrial

tf1 = tf.compat.v1

OPS = {"stem", "middle", "mix", "deep", "boxes", "classes"}
SIDE = 64
SLOTS = 16


def make_detector() -> tf1.GraphDef:
    """A grid of 8 x 8 cells; the sixteen with the largest class score are the detections."""
    random = np.random.default_rng(11)

    def weights(*shape: int) -> Any:
        return (random.normal(0, 1, shape) / np.sqrt(np.prod(shape[:3]))).astype(np.float32)

    with tf.Graph().as_default() as graph:
        image = tf1.placeholder(tf.uint8, [1, None, None, 3], name="image_tensor")
        data = tf.cast(image, tf.float32) / 127.5 - 1
        data = tf.nn.relu6(2 * tf.nn.bias_add(conv(data, weights(5, 5, 3, 16), "stem", stride=8), weights(16)))
        data = tf.nn.relu(
            tf1.nn.depthwise_conv2d_native(data, 8 * weights(3, 3, 16, 1), [1, 1, 1, 1], "SAME", name="middle")
        )
        data = tf.nn.relu(tf.nn.bias_add(conv(data, weights(1, 1, 16, 16), "mix"), weights(16))) + data
        data = tf.nn.relu(conv(data, weights(3, 3, 16, 16), "deep"))
        offsets = tf.reshape(conv(data, weights(1, 1, 16, 4), "boxes"), [-1, 4])
        scores = tf.nn.softmax(tf.reshape(4 * conv(data, weights(1, 1, 16, 3), "classes"), [-1, 3]))
        best, cells = tf.math.top_k(tf.reduce_max(scores, -1), SLOTS)
        corners = np.stack(np.meshgrid(np.arange(8), np.arange(8), indexing="ij"), -1).reshape(-1, 2) / 8
        anchors = np.concatenate([corners, corners + 0.125], -1).astype(np.float32)
        boxes = tf.gather(tf.clip_by_value(anchors + 0.05 * tf.tanh(4 * offsets), 0, 1), cells)
        tf.identity(boxes[tf.newaxis], name="detection_boxes")
        tf.identity(best[tf.newaxis], name="detection_scores")
        found = tf.gather(tf.argmax(scores, -1), cells) + 1
        tf.cast(found[tf.newaxis], tf.float32, name="detection_classes")
        tf.fill([1], float(SLOTS), name="num_detections")
    return graph.as_graph_def()


def conv(data: tf.Tensor, weights: Any, name: str, stride: int = 1) -> tf.Tensor:
    return tf1.nn.conv2d(data, weights, [1, stride, stride, 1], "SAME", name=name)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `float.pb`, `images/` and the `instances.json` that the detector itself annotated."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "float.pb").write_bytes(make_detector().SerializeToString())
    (folder / "images").mkdir()
    random = np.random.default_rng(12)
    images, annotations = [], []
    with ModelRunner(load_model(folder / "float.pb")) as runner:
        for image_id in range(1, 9):
            patches = random.integers(0, 256, (8, 8, 3)).astype(np.float32)
            pixels = tf.cast(tf.image.resize(patches, (SIDE, SIDE)), tf.uint8)
            encoded = tf.io.encode_jpeg(pixels).numpy()
            name = f"{image_id}.jpg"
            (folder / "images" / name).write_bytes(encoded)
            images.append({"id": image_id, "file_name": name, "height": SIDE, "width": SIDE})
            found = runner.detect(decode_image(encoded, name))
            for box, category in zip(found.boxes.tolist(), found.category_ids.tolist(), strict=True):
                ymin, xmin, ymax, xmax = (side * SIDE for side in box)
                width, height = xmax - xmin, ymax - ymin
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": category,
                        "bbox": [xmin, ymin, width, height],
                        "area": width * height,
                        "iscrowd": 0,
                    }
                )
    categories = [{"id": i, "name": f"kind {i}"} for i in (1, 2, 3)]
    table = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(table))
    return folder


MakeJob = Callable[..., TuningJob]


@pytest.fixture
def make_job(files: Path, tmp_path: Path) -> MakeJob:
    """A job with its own workspace and output; (fields of the job, criterion, max_trials, timeout, eval_func)."""

    def make(
        relative: float = 0.3, max_trials: int = 20, timeout: float = 0, accuracy: Any = None, **fields: Any
    ) -> TuningJob:
        dataloader = {"dataset": {"COCORaw": {"root": str(files / "instances.json")}}}
        settings = {
            "model": {"name": "tiny", "framework": "tensorflow"},
            # Which of such small graphs is the fastest is chance.
            "quantization": {"int8_only": True, "calibration": {"sampling_size": 4, "dataloader": dataloader}},
            "evaluation": {
                "accuracy": accuracy or {"metric": {"COCOmAP": {}}, "dataloader": dataloader},
                "performance": {"warmup": 1, "iteration": 3},
            },
            "tuning": {
                "accuracy_criterion": {"relative": relative},
                "exit_policy": {"timeout": timeout, "max_trials": max_trials},
            },
        }
        job = TuningJob(
            config=parse_config(settings, "test"),
            input_model=files / "float.pb",
            output_model=tmp_path / "out" / "int8.pb",
            workspace=tmp_path / "workspace",
        )
        return replace(job, **fields)

    return make


class Accuracy:
    """An eval_func that counts its calls: 1 for the float graph, and `loss` less for each op in int8.

    raising: what it raises at a call by its number, from 1 on.
    """

    def __init__(self, loss: float = 0.01, raising: dict[int, BaseException] | None = None) -> None:
        self.loss = loss
        self.raising = raising or {}
        self.calls = 0

    def __call__(self, graph_def: Any) -> float:
        self.calls += 1
        if self.calls in self.raising:
            raise self.raising[self.calls]
        return 1 - self.loss * len(int8_ops(graph_def))


def int8_ops(graph_def: Any) -> set[str]:
    return {node.name.removesuffix("/int8") for node in graph_def.node if node.op in KERNEL_OPS}


def result_of(job: TuningJob) -> Any:
    return json.loads((job.workspace / "result.json").read_text())


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_run_that_is_accepted(make_job: MakeJob, files: Path) -> None:
    job = make_job()
    result = tune(job)

    assert result.status is Status.ACCEPTED
    assert result.baseline.accuracy == pytest.approx(1)
    assert result.best is not None
    assert 0.7 <= result.best.measurement.accuracy < 1
    assert result.best.measurement.images == 8
    assert int8_ops(load_model(job.output_model).graph_def) == OPS
    found = evaluate(job.config, job.output_model)
    assert found.metrics == pytest.approx(dict(result.best.measurement.metrics), abs=1e-12)

    table = result_of(job)
    assert table["schema"] == 1
    assert table["status"] == "accepted"
    assert table["reason"]
    assert table["model"]["sha256"] == load_model(files / "float.pb").sha256
    assert table["model"]["inputs"] == ["image_tensor:0"]
    assert table["model"]["outputs"][0] == "detection_boxes:0"
    assert table["dataset"]["images"] == 8
    assert table["criterion"] == {"kind": "relative", "limit": 0.3, "higher_is_better": True}
    assert set(table["baseline"]) >= {"accuracy", "latency_ms", "size_bytes", "images"}
    best = table["best"]
    assert best["accuracy"] == result.best.measurement.accuracy
    assert best["relative_loss"] == pytest.approx(1 - best["accuracy"])
    assert best["ops"] == {"int8": 6, "bf16": 0, "fp32": 0}
    assert best["plan_sha256"] == result.best.proposal.plan.sha256
    assert best["graph_sha256"] == sha256(job.output_model)
    assert best["size_bytes"] == job.output_model.stat().st_size
    assert best["output_model"] == str(job.output_model)
    assert (table["trials"], table["full_evaluations"], table["images_evaluated"], table["calibrations"]) == (
        1,
        1,
        8,
        1,
    )
    assert set(table["seconds"]) == {
        "total",
        "load",
        "calibrate",
        "baseline",
        "sensitivity",
        "timing",
        "quantize",
        "evaluate",
        "accepted",
    }
    assert {entry.name for entry in job.workspace.iterdir()} >= {
        *("study.db", "ranges", "result.json", "plan.yaml", "run.json", "report.html", "changed", "times", "values")
    }


def test_a_saved_model_has_the_same_graph(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job(output_model=tmp_path / "saved", eval_func=Accuracy())
    result = tune(job)
    assert result.best is not None
    loaded = load_model(job.output_model)
    assert int8_ops(loaded.graph_def) == OPS
    assert sorted(loaded.outputs) == sorted(result.model.outputs)


def test_the_plan_makes_the_same_graph_again(make_job: MakeJob, tmp_path: Path) -> None:
    """A loss of 1 % for each of six int8 ops, of which 3.5 % are allowed: 1, 2, 4, then 3 ops fall back."""
    job = make_job(relative=0.035, eval_func=Accuracy())
    first = tune(job)
    assert first.status is Status.ACCEPTED
    assert first.best is not None
    # Two plans pass; which of such small graphs is the faster one is chance.
    assert len(int8_ops(load_model(job.output_model).graph_def)) in (2, 3)

    again = replace(
        job,
        config=load_config(job.workspace / "plan.yaml"),
        output_model=tmp_path / "again.pb",
        workspace=tmp_path / "other",
    )
    second = tune(again)

    assert sha256(again.output_model) == sha256(job.output_model)
    assert second.best is not None
    assert second.best.proposal == first.best.proposal
    assert len(second.trials) == 1
    assert second.status is Status.ACCEPTED


def test_equal_runs_make_equal_graphs(make_job: MakeJob, tmp_path: Path) -> None:
    hashes = set()
    for name in ("a", "b"):
        job = make_job(relative=0.045, eval_func=Accuracy(), output_model=tmp_path / f"{name}.pb")
        tune(replace(job, workspace=tmp_path / name))
        hashes.add(sha256(job.output_model))
    assert len(hashes) == 1


def test_resuming_repeats_nothing(make_job: MakeJob) -> None:
    first, second = Accuracy(), Accuracy()
    before = tune(make_job(relative=0.035, max_trials=2, eval_func=first))
    assert before.status is Status.BEST_EFFORT
    assert (len(before.trials), first.calls, before.calibrations) == (2, 3, 1)

    after = tune(make_job(relative=0.035, max_trials=20, eval_func=second, resume=True))
    assert after.status is Status.ACCEPTED
    assert list(after.trials[:2]) == list(before.trials)
    # Neither the baseline nor a trial of the first session; nor were ranges or sensitivity measured again.
    assert second.calls == len(after.trials) - 2 > 0
    assert (after.calibrations, after.seconds.sensitivity, after.seconds.timing) == (0, 0, 0)
    whole = tune(make_job(relative=0.035, eval_func=Accuracy()))
    assert [trial.proposal for trial in whole.trials] == [trial.proposal for trial in after.trials]


def test_resuming_a_finished_run_only_writes_its_results(make_job: MakeJob) -> None:
    job = make_job(eval_func=Accuracy())
    tune(job)
    written = sha256(job.output_model)
    job.output_model.unlink()
    accuracy = Accuracy()
    result = tune(replace(job, eval_func=accuracy, resume=True))
    assert accuracy.calls == 0
    assert sha256(job.output_model) == written
    assert result.status is Status.ACCEPTED


def test_resuming_with_another_model_is_refused(make_job: MakeJob, files: Path, tmp_path: Path) -> None:
    job = make_job(eval_func=Accuracy())
    tune(job)
    graph_def = load_model(files / "float.pb").graph_def
    next(node for node in graph_def.node if node.op == "Softmax").name = "renamed"
    for node in graph_def.node:
        node.input[:] = [name.replace("Softmax", "renamed") for name in node.input]
    (tmp_path / "other.pb").write_bytes(graph_def.SerializeToString())
    with pytest.raises(ConfigError, match="cannot be resumed: its model is"):
        tune(replace(job, input_model=tmp_path / "other.pb", resume=True))


def test_ctrl_c_writes_the_best_so_far(make_job: MakeJob) -> None:
    accuracy = Accuracy(raising={4: KeyboardInterrupt()})
    job = make_job(relative=0.001, max_trials=5, eval_func=accuracy)
    result = tune(job)
    assert result.status is Status.INTERRUPTED
    assert len(result.trials) == 2
    assert result.best is not None
    assert sha256(job.output_model) == result.best.graph_sha256 == result_of(job)["best"]["graph_sha256"]
    assert result_of(job)["status"] == "interrupted"

    resumed = Accuracy()
    after = tune(replace(job, eval_func=resumed, resume=True))
    assert resumed.calls == len(after.trials) - 2


@pytest.mark.parametrize("moment", ["trial 3", "export", "compare"])
def test_ctrl_c_in_the_progress(make_job: MakeJob, moment: str) -> None:
    class Stopping:
        @contextmanager
        def stage(self, title: str) -> Iterator[Any]:
            stopping.append(title)
            if title == moment and stopping.count(title) == 1:
                raise KeyboardInterrupt
            yield self

        def note(self, text: str) -> None:
            pass

        def track(self, items: Any, total: int, title: str) -> Any:
            return iter(items)

        def event(self, event: Any) -> None:
            pass

    stopping: list[str] = []
    job = make_job(relative=0.001, eval_func=Accuracy())
    result = tune(job, Stopping())
    assert result.status is Status.INTERRUPTED
    assert result.best is not None
    assert sha256(job.output_model) == result.best.graph_sha256
    assert (job.workspace / "plan.yaml").is_file()
    assert result_of(job)["status"] == "interrupted"


def test_ctrl_c_before_anything_was_found(make_job: MakeJob) -> None:
    for call in (1, 2):
        job = make_job(eval_func=Accuracy(raising={call: KeyboardInterrupt()}))
        with pytest.raises(KeyboardInterrupt):
            tune(job)
        assert not job.output_model.exists()
        assert not (job.workspace / "result.json").exists()


def test_a_criterion_that_cannot_be_met_ends_with_the_best_effort(make_job: MakeJob) -> None:
    job = make_job(relative=1e-6, max_trials=4, eval_func=Accuracy())
    result = tune(job)
    assert result.status is Status.BEST_EFFORT
    assert "4 trials" in result.reason
    assert len(result.trials) == 4
    assert result.best is not None
    accuracies = [trial.measurement.accuracy for trial in result.trials if isinstance(trial, CompletedTrial)]
    assert result.best.measurement.accuracy == max(accuracies)
    assert sha256(job.output_model) == result.best.graph_sha256
    assert result_of(job)["status"] == "best_effort"


@pytest.mark.parametrize("stopped", [False, True])
def test_a_graph_that_loses_too_much_is_shown_as_one_that_passes(make_job: MakeJob, *, stopped: bool) -> None:
    def stop(*told: Any) -> None:
        raise KeyboardInterrupt

    job = make_job(relative=1e-6, max_trials=1, callbacks=[stop] if stopped else [])
    settings = with_tuning(job, early_rejection_alpha=0)
    result = tune(replace(job, config=settings))
    assert result.status is (Status.INTERRUPTED if stopped else Status.BEST_EFFORT)
    assert result.relative_loss is not None and result.relative_loss > 1e-6
    assert result.loss_interval is not None
    run = read_run(job.workspace)
    assert run.facts.category_names == {"1": "kind 1", "2": "kind 2", "3": "kind 3"}
    assert run.best is not None and run.op_times is not None and run.op_values is not None
    before, after = run.matches(run.facts.model_sha256), run.matches(run.best.graph_sha256)
    assert before is not None and after is not None
    shown = run.changed_images()
    assert shown is not None
    assert shown["ids"].tolist() == most_changed(before, after) != before.image_ids[: len(shown["ids"])].tolist()
    assert not np.array_equal(shown["0 float"], shown["0 best"])


def test_a_time_limit_looks_for_faster_plans(make_job: MakeJob) -> None:
    job = make_job(timeout=600, max_trials=3, eval_func=Accuracy(loss=0.0))
    result = tune(job)
    assert result.status is Status.ACCEPTED
    # All int8 passed: nothing is left that could go back to int8.
    assert len(result.trials) <= 3


def test_a_trial_that_fails_is_recorded_and_the_search_goes_on(make_job: MakeJob) -> None:
    job = make_job(relative=0.3, eval_func=Accuracy(raising={2: ValueError("no")}))
    result = tune(job)
    assert result.status is Status.ACCEPTED
    assert len(result.trials) == 2
    assert result_of(job)["failed_trials"] == [{"number": 0, "cause": "eval_func raised ValueError: no"}]
    assert result_of(job)["full_evaluations"] == 1


def test_trials_that_all_fail_end_failed_and_write_no_graph(make_job: MakeJob) -> None:
    faults: dict[int, BaseException] = {call: ValueError("no") for call in range(2, 10)}
    job = make_job(max_trials=3, eval_func=Accuracy(raising=faults))
    result = tune(job)
    assert result.status is Status.FAILED
    assert result.best is None
    assert len(result.trials) == 3
    assert not job.output_model.exists()
    assert result_of(job)["best"] is None
    assert len(result_of(job)["failed_trials"]) == 3


def test_an_eval_func_that_always_fails_is_told_at_the_baseline(make_job: MakeJob) -> None:
    job = make_job(eval_func=Accuracy(raising={1: ValueError("no")}))
    with pytest.raises(EvaluationError, match=r"^eval_func raised ValueError: no$"):
        tune(job)
    assert not job.output_model.exists()


def test_a_baseline_of_zero_has_no_share(make_job: MakeJob) -> None:
    with pytest.raises(EvaluationError, match="the baseline's accuracy is 0"):
        tune(make_job(eval_func=lambda graph_def: 0.0))


def test_functions_named_in_the_settings(make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_metric.py").write_text("def accuracy(graph_def):\n    return 0.75\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    result = tune(make_job(allow_code=True, accuracy={"eval_func": "my_metric:accuracy"}))
    assert result.status is Status.ACCEPTED
    assert result.baseline.accuracy == 0.75
    assert result.baseline.images == 0


@pytest.fixture
def taken(tmp_path: Path) -> Path:
    path = tmp_path / "a file"
    path.write_text("in the way")
    return path


def test_an_output_that_cannot_be_written_is_refused_before_any_work(make_job: MakeJob, taken: Path) -> None:
    accuracy = Accuracy()
    for output in (taken / "int8.pb", taken):
        job = make_job(eval_func=accuracy, output_model=output)
        with pytest.raises(TunerError, match="a file"):
            tune(job)
        assert not job.workspace.exists()
    assert accuracy.calls == 0


def test_the_input_is_never_replaced(make_job: MakeJob, files: Path) -> None:
    before = sha256(files / "float.pb")
    with pytest.raises(ConfigError, match="would replace the input model"):
        tune(make_job(output_model=files / "images" / ".." / "float.pb"))
    assert sha256(files / "float.pb") == before


def test_a_workspace_that_cannot_be_made(make_job: MakeJob, taken: Path) -> None:
    with pytest.raises(TunerError, match="workspace: cannot be used as workspace: Not a directory"):
        tune(make_job(workspace=taken / "workspace", eval_func=Accuracy()))


def test_a_second_run_in_a_workspace_is_refused_before_it_costs_anything(make_job: MakeJob) -> None:
    accuracy = Accuracy()
    job = make_job(eval_func=accuracy)
    with (
        only_driver(job.workspace),
        pytest.raises(TunerError, match=f"another run works there: process {os.getpid()} "),
    ):
        tune(job)
    assert accuracy.calls == 0
    assert [path.name for path in job.workspace.iterdir()] == ["driver.json"]
    assert tune(job).status == "accepted"


def test_a_disk_that_fills_up_leaves_no_part_of_a_graph(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(eval_func=Accuracy())
    job.output_model.parent.mkdir()
    job.output_model.write_bytes(b"the old graph")
    fsync = os.fsync

    def full(descriptor: int) -> None:
        if str(job.output_model.parent) in Path(f"/proc/self/fd/{descriptor}").readlink().as_posix():
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr("tuner.files.os.fsync", full)
    with pytest.raises(TunerError, match=r"int8\.pb: cannot be written: No space left on device"):
        tune(job)
    assert job.output_model.read_bytes() == b"the old graph"
    assert [entry.name for entry in job.output_model.parent.iterdir()] == ["int8.pb"]

    # Nothing is lost: with room again, the record is enough.
    monkeypatch.undo()
    accuracy = Accuracy()
    assert tune(replace(job, eval_func=accuracy, resume=True)).status is Status.ACCEPTED
    assert accuracy.calls == 0


def test_a_model_without_convolutions(make_job: MakeJob, tmp_path: Path) -> None:
    with tf.Graph().as_default() as graph:
        tf.identity(tf1.placeholder(tf.uint8, [1, None, None, 3], name="image_tensor"), name="out")
    path = tmp_path / "empty.pb"
    path.write_bytes(graph.as_graph_def().SerializeToString())
    with pytest.raises(ModelError, match="nothing in the model can be int8: it has no convolutions"):
        tune(make_job(input_model=path))


def test_sampling_sizes_are_all_tried(make_job: MakeJob) -> None:
    job = make_job(relative=1e-6, max_trials=3, eval_func=Accuracy())
    settings = job.config.model_dump(mode="json", by_alias=True, exclude_unset=True)
    settings["quantization"]["calibration"]["sampling_size"] = [2, 4, 100]
    result = tune(replace(job, config=parse_config(settings, "test")))
    # Eight images are there, so 100 means eight.
    assert [trial.proposal.calibration_images for trial in result.trials] == [8, 4, 2]
    assert result.calibrations == 1


@pytest.mark.parametrize("strategy", list(Strategy))
def test_every_strategy_meets_the_criterion(make_job: MakeJob, strategy: Strategy) -> None:
    job = make_job(relative=0.055, max_trials=30, eval_func=Accuracy())
    result = tune(replace(job, config=with_tuning(job, strategy={"name": strategy.value})))
    assert result.status is Status.ACCEPTED
    assert len(int8_ops(load_model(job.output_model).graph_def)) <= 5


def test_a_plan_that_finds_little_is_rejected_early(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks at two and four of eight images."""
    monkeypatch.setattr(early_rejection, "FEWEST_IMAGES", 2)
    job = make_job(relative=0.01, max_trials=4)
    result = tune(job)
    rejected = [trial for trial in result.trials if isinstance(trial, RejectedTrial)]
    assert {trial.rejection.images for trial in rejected} <= {2, 4}
    assert result_of(job)["rejected_early"] == len(rejected)
    everything = tune(replace(make_job(relative=0.01, max_trials=4), config=with_tuning(job, early_rejection_alpha=0)))
    assert not [trial for trial in everything.trials if isinstance(trial, RejectedTrial)]


def test_a_share_of_the_images_confirms_the_result(make_job: MakeJob) -> None:
    job = make_job(relative=0.9)
    result = tune(replace(job, config=with_tuning(job, confirm=0.25)))
    assert result.status is Status.ACCEPTED
    assert result.best is not None and result.confirmation is not None
    assert (result.best.measurement.images, result.confirmation.images) == (6, 2)
    assert result_of(job)["best"]["confirmation"]["passes"]


def test_a_result_that_is_not_confirmed_is_not_accepted(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Meter, "confirm", never_confirms)
    job = make_job(relative=0.9)
    result = tune(replace(job, config=with_tuning(job, confirm=0.25)))
    assert result.status is Status.BEST_EFFORT
    assert job.output_model.exists()


def never_confirms(meter: Meter, graph: DetectionModel) -> bool:
    return False


def test_images_that_can_confirm_nothing_are_told_before_the_search(
    make_job: MakeJob, files: Path, tmp_path: Path
) -> None:
    """Only one of eight images is annotated: whichever way they are split, one part has nothing to find."""
    table = json.loads((files / "instances.json").read_text())
    table["annotations"] = [one for one in table["annotations"] if one["image_id"] == 1]
    (tmp_path / "images").symlink_to(files / "images")
    (tmp_path / "instances.json").write_text(json.dumps(table))
    job = make_job(relative=0.9)
    settings = with_tuning(job, confirm=0.25).model_dump(mode="json", by_alias=True, exclude_unset=True)
    settings["evaluation"]["accuracy"]["dataloader"]["dataset"]["COCORaw"]["root"] = str(tmp_path / "instances.json")
    with pytest.raises(EvaluationError, match="no object is annotated"):
        tune(replace(job, config=parse_config(settings, "test")))
    assert not job.output_model.exists()


def test_an_eval_func_has_no_images_to_keep_back(make_job: MakeJob) -> None:
    job = make_job(eval_func=Accuracy())
    with pytest.raises(ConfigError, match=r"tuning\.confirm: an eval_func keeps its own images"):
        tune(replace(job, config=with_tuning(job, confirm=0.25)))


def test_an_eval_func_may_import_the_graph(make_job: MakeJob) -> None:
    def accuracy(graph_def: Any) -> float:
        with tf.Graph().as_default():
            tf.import_graph_def(graph_def, name="")  # writes default attributes into what it is given
        return 1.0

    job = make_job(eval_func=accuracy)
    result = tune(job)
    assert result.best is not None
    assert sha256(job.output_model) == result.best.graph_sha256
    assert job.output_model.stat().st_size == result.best.measurement.size_bytes


def test_the_smallest_graph_is_all_int8(make_job: MakeJob) -> None:
    """Without int8_only, so that speed would take int8 away from operators of such a small graph."""
    job = make_job(relative=0.9, eval_func=Accuracy())
    settings = with_tuning(job, objective="modelsize").model_dump(mode="json", by_alias=True, exclude_unset=True)
    del settings["quantization"]["int8_only"]
    result = tune(replace(job, config=parse_config(settings, "test")))
    assert int8_ops(load_model(job.output_model).graph_def) == OPS
    assert result.refused == {}


def test_the_most_accurate_graph_is_looked_for(make_job: MakeJob) -> None:
    """All int8 passes, but operators in bf16 or float lose nothing by this measure."""
    job = make_job(relative=0.9, eval_func=Accuracy())
    settings = with_tuning(job, objective="accuracy").model_dump(mode="json", by_alias=True, exclude_unset=True)
    settings["quantization"] |= {"int8_only": False, "model_wise": {"activation": {"dtype": ["int8", "bf16", "fp32"]}}}
    result = tune(replace(job, config=parse_config(settings, "test")))
    assert result.best is not None
    assert len(result.trials) > 1
    assert result.best.measurement.accuracy == 1


def test_the_loss_has_an_interval(make_job: MakeJob) -> None:
    result = tune(make_job(relative=0.9))
    assert result.loss_interval is not None and result.relative_loss is not None
    low, high = result.loss_interval
    assert low <= result.relative_loss <= high


@pytest.mark.parametrize("objective", ["modelsize", "footprint", "accuracy"])
def test_objectives(make_job: MakeJob, objective: str) -> None:
    job = make_job(relative=0.9, eval_func=Accuracy())
    result = tune(replace(job, config=with_tuning(job, objective=objective)))
    assert result.status is Status.ACCEPTED
    assert result.best is not None
    assert (result.best.measurement.memory_bytes > 0) == (objective == "footprint")


@pytest.mark.parametrize("objective", ["performance", "footprint"])
def test_what_comes_of_a_trial_is_foretold(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, objective: str) -> None:
    foretold: list[Outcome] = []
    recorded: list[Outcome] = []
    record = Announced.record

    def noted(self: Announced, proposal: Proposal, outcome: Outcome) -> None:
        recorded.append(outcome)
        record(self, proposal, outcome)

    monkeypatch.setattr(Announced, "foretell", lambda self, outcome: foretold.append(outcome))
    monkeypatch.setattr(Announced, "record", noted)
    job = make_job(relative=0.9)
    tune(replace(job, config=with_tuning(job, objective=objective)))
    # Memory is taken last of all.
    assert len(foretold) == (0 if objective == "footprint" else len(recorded))
    for expected, outcome in zip(foretold, recorded, strict=False):
        assert (expected.loss, expected.excess) == pytest.approx((outcome.loss, outcome.excess), abs=1e-12)
        assert expected.cost == outcome.cost


def test_the_next_run_measures_the_baseline_no_more(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(relative=0.9)
    first = tune(job)
    evaluated: list[str] = []
    evaluate_one = CocoEvaluator.evaluate

    def counted(self: CocoEvaluator, model: DetectionModel, *arguments: Any, **named: Any) -> Any:
        evaluated.append(model.sha256)
        return evaluate_one(self, model, *arguments, **named)

    monkeypatch.setattr(CocoEvaluator, "evaluate", counted)
    second = tune(job)
    assert first.model.sha256 not in evaluated
    assert second.baseline.accuracy == first.baseline.accuracy
    assert second.calibrations == 0
    evaluated.clear()
    third = tune(replace(job, fresh=True))
    assert evaluated[0] == first.model.sha256
    assert third.calibrations == 1


def with_tuning(job: TuningJob, **tuning: Any) -> TuningConfig:
    settings = job.config.model_dump(mode="json", by_alias=True, exclude_unset=True)
    settings["tuning"] |= tuning
    return parse_config(settings, "test")


def test_every_stage_is_told_in_order(make_job: MakeJob) -> None:
    titles: list[str] = []

    class Listening:
        @contextmanager
        def stage(self, title: str) -> Iterator[Any]:
            titles.append(title)
            yield self

        def note(self, text: str) -> None:
            assert "\n" not in text

        def event(self, event: Any) -> None:
            pass

        def track(self, items: Any, total: int, title: str) -> Any:
            return iter(items)

    result: TuningResult = tune(make_job(relative=0.055, eval_func=Accuracy()), Listening())
    assert titles == [
        *("load", "calibrate", "baseline", "trial 1", "timing", "sensitivity", "trial 2"),
        *("export", "compare", "report"),
    ]
    assert result.seconds.total > 0


def test_evaluating_needs_detection_outputs(make_job: MakeJob, files: Path, tmp_path: Path) -> None:
    model: DetectionModel = load_model(files / "float.pb", outputs=["detection_boxes"])
    (tmp_path / "boxes.pb").write_bytes(model.graph_def.SerializeToString())
    with pytest.raises(ModelError, match="no detection outputs"):
        evaluate(make_job().config, tmp_path / "boxes.pb")


def test_images_without_annotations_are_tuned_on_what_the_float_model_finds(
    make_job: MakeJob, files: Path, tmp_path: Path
) -> None:
    images = tmp_path / "unlabelled"
    shutil.copytree(files / "images", images)
    for kind, root in (("COCORecord", images), ("COCORaw", images)):
        accuracy = {"dataloader": {"dataset": {kind: {"root": str(root)}}}, "labels": "model", "label_score": 0.2}
        job = make_job(accuracy=accuracy, workspace=tmp_path / kind)
        result = tune(job)
        assert result.status is Status.ACCEPTED
        assert result.baseline.accuracy == pytest.approx(1)
        assert result.best is not None
        assert 0.7 <= result.best.measurement.accuracy < 1
        assert result_of(job)["dataset"]["labels"] == "model"
    # The float model's last bits are no part of what a run is.
    assert tune(replace(job, resume=True)).trials == result.trials


def test_a_model_alone_is_not_compared_with_itself(make_job: MakeJob, files: Path) -> None:
    dataloader = {"dataset": {"COCORaw": {"root": str(files / "instances.json")}}}
    job = make_job(accuracy={"dataloader": dataloader, "labels": "model"})
    with pytest.raises(ConfigError, match=r"labels: got model; a model alone cannot be compared with itself"):
        evaluate(job.config, job.input_model)
