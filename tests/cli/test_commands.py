"""What the commands hand to the pipeline, what they print, and their exit codes."""

import errno
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from tuner.cli import main
from tuner.cli.tune_command import Start
from tuner.config import Objective, Strategy
from tuner.criterion import Status
from tuner.errors import ConfigError, DatasetError, EvaluationError, ModelError, QuantizationError, TunerError

TUNE = ["tune", "--input_model", "m.pb", "--output_model", "out/q.pb"]


@pytest.mark.parametrize(
    ("flags", "expected"), [("", True), ("--optimize-postprocess", True), ("--no-optimize-postprocess", False)]
)
def test_post_processing_is_optimised_unless_refused(pipeline: Any, flags: str, expected: bool) -> None:
    assert main([*TUNE, *flags.split(), "--dataset_location=v.record"]) == 0
    assert pipeline.job.config.quantization.optimize_postprocess is expected


def test_tune_hands_on_its_flags(pipeline: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--max_trials=5 --timeout=2.5 --accuracy_loss=2% --engine=inc --resume --storage=sqlite:///s.db"
    rest = "--workspace w --skip-bad-records --cache-mb 64 --dataset_location=v.record --topology=ssd_resnet50_v1"
    assert main([*TUNE, *flags.split(), *rest.split()]) == 0
    job = pipeline.job
    assert (job.input_model, job.output_model, job.workspace) == (Path("m.pb"), Path("out/q.pb"), Path("w"))
    assert (job.resume, job.storage, job.skip_bad_records, job.cache_mb) == (True, "sqlite:///s.db", True, 64)
    tuning = job.config.tuning
    assert (tuning.exit_policy.max_trials, tuning.exit_policy.timeout_s) == (5, 2.5)
    assert (tuning.accuracy_criterion.limit, tuning.random_seed) == (0.02, 9527)
    assert job.config.quantization.engine == "inc"
    assert job.config.evaluation.accuracy.dataset.source.root == tmp_path / "v.record"
    out, errors = capsys.readouterr()
    assert "accepted: said so" in out and "w/result.json" in out
    assert re.fullmatch(r"calibrate +0\.0 s  60 images\n", errors)


def test_tune_hands_on_how_to_search(pipeline: Any) -> None:
    flags = "--strategy=tpe --objective=modelsize --alpha=0.05 --confirm=0.25 --fresh --dataset_location=v.record"
    assert main([*TUNE, *flags.split()]) == 0
    tuning = pipeline.job.config.tuning
    assert (tuning.strategy.name, tuning.weights) == (Strategy.TPE, {Objective.MODELSIZE: 1.0})
    assert (tuning.early_rejection_alpha, tuning.confirm) == (0.05, 0.25)
    assert (pipeline.job.fresh, pipeline.job.resume) == (True, False)


def test_tune_hands_on_what_is_true(pipeline: Any) -> None:
    assert main([*TUNE, "--labels=model", "--label_score=0.05", "--iou_type=both", "--dataset_location=v.record"]) == 0
    accuracy = pipeline.job.config.evaluation.accuracy
    assert (accuracy.labels, accuracy.label_score, accuracy.iou_type) == ("model", 0.05, "both")


@pytest.mark.parametrize(
    "spelling",
    ["--max_trials=7", "--max-trials=7", "--max_trials 7", "--max-trials 7", "--skip_bad_records --max-trials 7"],
)
def test_spellings(pipeline: Any, spelling: str) -> None:
    assert main([*TUNE, *spelling.split()]) == 0
    assert pipeline.job.config.tuning.exit_policy.max_trials == 7
    assert pipeline.job.skip_bad_records is ("skip" in spelling)


@pytest.mark.parametrize(
    ("workspace", "flags", "expected"),
    [
        ("", "", ("tuner_workspace/_a_b", False)),
        ("", "--workspace=w", ("w", False)),
        ("resume: y", "--fresh", ("conf/y", False)),
        ("path: x", "", ("conf/x", False)),
        ("path: x", "--workspace=w --resume", ("w", True)),
        ("resume: y", "", ("conf/y", True)),
        ("path: x, resume: y", "", ("conf/y", True)),
    ],
)
def test_the_workspace(pipeline: Any, tmp_path: Path, workspace: str, flags: str, expected: tuple[str, bool]) -> None:
    Path("conf").mkdir()
    Path("conf/f.yaml").write_text(f"model: {{name: ../a/b}}\ntuning: {{workspace: {{{workspace}}}}}")
    assert main([*TUNE, "--config=conf/f.yaml", *flags.split()]) == 0
    job = pipeline.job
    assert ((tmp_path / job.workspace).relative_to(tmp_path).as_posix(), job.resume) == expected


@pytest.mark.parametrize(
    ("status", "code"),
    [(Status.ACCEPTED, 0), (Status.BEST_EFFORT, 3), (Status.FAILED, 3), (Status.INTERRUPTED, 130)],
)
def test_exit_codes_of_a_finished_run(
    pipeline: Any, status: Status, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline.status = status
    assert main([*TUNE, "--quiet"]) == code
    out, errors = capsys.readouterr()
    assert f"{status.value.replace('_', ' ')}: said so" in out
    assert errors.startswith("\nto go on:\n") if status is Status.INTERRUPTED else errors == ""


@pytest.mark.parametrize("command", [TUNE, ["evaluate", "m.pb"], ["benchmark", "m.pb"]])
@pytest.mark.parametrize(
    "error", [TunerError, ConfigError, ModelError, DatasetError, QuantizationError, EvaluationError]
)
def test_a_mistake_is_one_line(
    pipeline: Any, command: list[str], error: type[TunerError], capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline.fault = error("m.pb: got\nthat; expected this")
    assert main(command) == 2
    assert capsys.readouterr() == ("", "error: m.pb: got that; expected this\n")


@pytest.mark.parametrize(
    ("said", "flags", "expected"),
    [
        ((), ["--fresh", "--workspace=a b"], ["--fresh", "'--workspace=a b'"]),
        (("resume",), ["--fresh", "--workspace=a b"], ["'--workspace=a b'", "--resume"]),
        (("resume",), ["--resume", "--max_trials", "3"], ["--max_trials", "3", "--resume"]),
    ],
)
def test_the_line_that_goes_on(
    pipeline: Any, said: tuple[str, ...], flags: list[str], expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline.fault = KeyboardInterrupt(*said)
    assert main([*TUNE, "--quiet", *flags]) == 130
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == " ".join([f"cd {Path.cwd()} && tuner", *TUNE, "--quiet", *expected])
    if "--resume" in expected:
        pipeline.fault = None
        pipeline.calls.clear()
        assert main(shlex.split(line.partition("&& tuner ")[2])) == 0
        assert (pipeline.job.resume, pipeline.job.fresh) == (True, False)


@pytest.mark.parametrize(
    ("process", "command"),
    [
        (["/v/bin/python", "/v/bin/tuner", "tune", "-q"], "/v/bin/tuner tune -q --resume"),
        (
            ["python3", "-m", "tuner", "tune", "--config", "a 'b'"],
            """python3 -m tuner tune --config 'a '"'"'b'"'"'' --resume""",
        ),
    ],
)
def test_the_line_names_the_program_as_it_was_started(process: list[str], command: str) -> None:
    assert Start(Path("/w x"), process).command(resume=True) == f"cd '/w x' && {command}"


def test_json_lines(pipeline: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline.status = Status.INTERRUPTED
    assert main([*TUNE, "--json-lines"]) == 130
    out, errors = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert errors == ""
    assert [line["kind"] for line in lines] == ["began", "stage_began", "stage_ended", "result", "ended"]
    assert all(line["schema"] == 1 and line["time"].endswith("Z") for line in lines)
    assert lines[-2]["result"]["status"] == "interrupted"
    assert (lines[-1]["exit_code"], lines[-1]["error"]) == (130, None)
    assert lines[-1]["go_on"].endswith(" --resume")


@pytest.mark.parametrize(
    ("fault", "code", "ended"),
    [
        (ModelError("m.pb: no\nsuch"), 2, {"exit_code": 2, "error": "m.pb: no such", "go_on": None}),
        (ZeroDivisionError("ours"), 1, {"exit_code": 1, "error": None, "go_on": None}),
    ],
)
def test_json_lines_of_a_run_that_fails(
    pipeline: Any, fault: Exception, code: int, ended: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline.fault = fault
    if code == 1:
        with pytest.raises(ZeroDivisionError):
            main([*TUNE, "--json-lines"])
    else:
        assert main([*TUNE, "--json-lines"]) == code
    *_, last = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {key: last[key] for key in ended} == ended
    assert last["kind"] == "ended"


def test_what_others_print_is_kept_out_of_the_json(
    pipeline: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tune = pipeline.tune

    def chatting(job: Any, progress: Any) -> Any:
        print("my eval_func says hello")
        return tune(job, progress)

    monkeypatch.setattr(pipeline, "tune", chatting)
    assert main([*TUNE, "--json-lines"]) == 0
    out, errors = capsys.readouterr()
    assert errors == "my eval_func says hello\n"
    assert all(line.startswith("{") for line in out.splitlines())


@pytest.mark.parametrize("command", [TUNE, ["evaluate", "m.pb"], ["benchmark", "m.pb"]])
def test_an_interruption(pipeline: Any, command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    pipeline.fault = KeyboardInterrupt()
    assert main(command) == 130
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("command", [TUNE, ["evaluate", "m.pb"], ["benchmark", "m.pb"]])
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyError, OSError])
def test_our_own_mistake_keeps_its_traceback(pipeline: Any, command: list[str], error: type[Exception]) -> None:
    pipeline.fault = error("ours")
    with pytest.raises(error, match="ours"):
        main(command)


@pytest.mark.parametrize("command", [TUNE, ["evaluate", "m.pb"], ["benchmark", "m.pb"]])
def test_a_path_that_the_system_refuses(pipeline: Any, command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    pipeline.fault = PermissionError(errno.EACCES, "Permission denied", "closed/v.record")
    assert main(command) == 2
    assert capsys.readouterr().err.endswith("error: closed/v.record: Permission denied\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["summarize", "x" * 5000],
        ["evaluate", "m.pb", "--dataset_location", "x" * 5000],
        ["evaluate", "m.pb", "--config", "a/" * 3000],
        ["no_such_command" * 1000],
    ],
)
def test_long_names_are_told_without_their_middle(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and " ... " in errors and errors.count("\n") == 1 and len(errors) < 1600


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("tune", "--input_model and --output_model missing; for example: tuner tune --input_model"),
        ("tune --output_model=q.pb", "--input_model missing; "),
        ("tune --input_model=m.pb", "--output_model missing; "),
        ("tune --input_model", "Option '--input_model' requires an argument."),
        ("tune --frobnicate=1", "No such option: --frobnicate"),
        ("tune --max_trial=1", "No such option: --max_trial (Possible options: --max_trials)"),
        ("tune --max_trials=x", "Invalid value for '--max_trials': "),
        (
            "tune --input_model=m --output_model=q --max_trials=0",
            "--max_trials: tuning.exit_policy.max_trials: got 0; ",
        ),
        ("tune --input_model=m --output_model=q --engine=x", "--engine: quantization.engine: got 'x'; expected one of"),
        ("tune --input_model=m --output_model=q --timeout=-1", "--timeout: tuning.exit_policy.timeout: got -1.0; "),
        ("tune --input_model=m --output_model=q --timeout=nan", "--timeout: tuning.exit_policy.timeout: got nan; "),
        ("tune --input_model=m --output_model=q --topology=shapez", "--topology: got 'shapez'; expected one of "),
        ("tune --input_model=m --output_model=q --config=none.yaml", "none.yaml: no such file"),
        ("tune --input_model=m --output_model=q --resume --fresh", "--resume and --fresh: got both"),
        ("tune --input_model=m --output_model=q --strategy=tpee", "--strategy: tuning.strategy.name: got 'tpee'; "),
        ("tune --input_model=m --output_model=q --objective=speed", "--objective: tuning.objective: got 'speed'; "),
        ("tune --input_model=m --output_model=q --alpha=0.5", "--alpha: tuning.early_rejection_alpha: got 0.5; "),
        ("tune --input_model=m --output_model=q --confirm=1", "--confirm: tuning.confirm: got 1"),
        ("evaluate", "Missing argument 'MODEL'."),
        ("evaluate m.pb o.pb", "Got unexpected extra argument"),
        ("evaluate m.pb --mode=accuracy", "No such option: --mode"),
        ("evaluate m.pb --iters=0", "Invalid value for '--iters': "),
        ("tunr", "No such command 'tunr'. Did you mean 'tune'?"),
    ],
)
def test_usage(pipeline: Any, arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments.split()) == 2
    out, errors = capsys.readouterr()
    assert (out, errors.count("\n"), pipeline.calls) == ("", 1, [])
    assert errors.startswith(f"error: {message}")


def test_evaluate(pipeline: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--topology=shapes --dataset_location=v.record --batch_size=4 --iters=30 --cache-mb=8 --skip-bad-records"
    assert main(["evaluate", "m.pb", *flags.split()]) == 0
    given = pipeline.job
    assert (given.model, given.cache_mb, given.skip_bad_records) == (Path("m.pb"), 8, True)
    dataset = given.config.evaluation.accuracy.dataset
    assert (dataset.source.root, dataset.batch_size) == (tmp_path / "v.record", 4)
    assert given.config.evaluation.performance.iteration == 30
    out, errors = capsys.readouterr()
    assert "mAP" in out and "2.0 ms" in out
    assert errors == ""


@pytest.mark.parametrize(
    ("arguments", "examples"),
    [
        (["--help"], ["tuner tune --input", "tuner evaluate q.pb", "tuner benchmark f.pb --vs q.pb"]),
        (["tune", "--help"], ["tuner tune --input_model f.pb --dataset_location coco --output_model q.pb"]),
        (["evaluate", "-h"], ["tuner evaluate q.pb --dataset_location coco"]),
    ],
)
def test_help(arguments: list[str], examples: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    out = capsys.readouterr().out
    lines = [line.strip() for line in out.splitlines()]
    assert [example for example in examples if not any(line.startswith(example) for line in lines)] == []
    assert max(map(len, out.splitlines())) <= 80


def test_without_a_command_the_help_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    out, errors = capsys.readouterr()
    assert "benchmark" in out + errors and "error:" not in errors
