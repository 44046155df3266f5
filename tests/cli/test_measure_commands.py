"""What `benchmark` hands to the pipeline and prints, and `profile` on the embedded detector."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tuner.cli import main

SHAPES = Path(__file__).parents[2] / "datasets/shapes"
DETECTOR = str(SHAPES / "detector.pb")


YAML = """
model: {name: m}
evaluation:
  performance:
    warmup: 2
    iteration: 33
    configs: {cores_per_instance: 4, num_of_instance: 2}
    dataloader: {batch_size: 8, dataset: {COCORecord: {root: v.record}}}
"""


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("", (1, 5, 100, 0, 1)),
        ("--topology=shapes", (1, 5, 100, 0, 1)),
        ("--batch_size=2 --warmup=0 --iters=9 --threads=3 --instances=2", (2, 0, 9, 3, 2)),
        ("--config=f.yaml", (8, 2, 33, 4, 2)),
        ("--config=f.yaml --batch_size=1 --warmup=0 --iters=9 --threads=0 --instances=1", (1, 0, 9, 0, 1)),
    ],
)
def test_benchmark(pipeline: Any, flags: str, expected: tuple[int, ...], capsys: pytest.CaptureFixture[str]) -> None:
    Path("f.yaml").write_text(YAML)
    assert main(["benchmark", "m.pb", *flags.split()]) == 0
    given = pipeline.job
    assert (*given.batch_sizes, given.warmup, given.iterations, given.threads, given.instances) == expected
    assert (given.models, given.dataset_location) == ([Path("m.pb")], None)
    assert (given.config is None) is ("topology" not in flags and "config" not in flags)
    assert "faster" not in capsys.readouterr().out and not given.xla


def test_benchmark_of_two(pipeline: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "m.pb", "--vs", "q.pb", "--dataset_location=v.record"]) == 0
    assert pipeline.job.models == [Path("m.pb"), Path("q.pb")]
    assert pipeline.job.dataset_location == Path("v.record")
    assert "2.00x faster" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("models", "names"),
    [
        (["a/frozen.pb", "b/frozen.pb"], ["a/frozen.pb", "b/frozen.pb"]),
        (["x/a/one/f.pb", "x/b/one/f.pb"], ["a/one/f.pb", "b/one/f.pb"]),
        (["a/f.pb", "a/q.pb"], ["f.pb", "q.pb"]),
        (["a/f.pb", "a/f.pb"], ["f.pb", "f.pb"]),
    ],
)
def test_models_of_one_name_are_told_apart(
    pipeline: Any, models: list[str], names: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["benchmark", models[0], "--vs", models[1], "--json", "--batch_size=1,2"]) == 0
    assert pipeline.job.names == names
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [run["model"] for run in runs] == names * 2
    assert [run["path"] for run in runs] == [str(tmp_path / model) for model in models] * 2


@pytest.mark.parametrize("flags", ["--batch_size=1,4,8", "--batch_size 1,4 --batch-size 8,4", "--batch_size '1, 4,8'"])
def test_several_batch_sizes(pipeline: Any, flags: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "m.pb", *shlex.split(flags)]) == 0
    assert pipeline.job.batch_sizes == [1, 4, 8]
    out = capsys.readouterr().out
    assert [f"batch of {size} " in out for size in (1, 4, 8)] == [True] * 3 and "2000.0" in out


def test_xla_beside_the_plain_runs(pipeline: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "m.pb", "--vs", "q.pb", "--xla", "--markdown", "--warmup=50", "--iters=1000"]) == 0
    assert (pipeline.job.xla, pipeline.job.warmup, pipeline.job.iterations) == (True, 50, 1000)
    out = capsys.readouterr().out
    assert [line.split(" | ")[1] for line in out.splitlines()[2:]] == ["m.pb", "m.pb, XLA", "q.pb", "q.pb, XLA"]


def test_benchmark_as_json(pipeline: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "m.pb", "--vs=q.pb", "--json", "--batch_size=2", "--iters=7"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {key: told[key] for key in ("schema", "warmup", "iterations", "threads", "instances")} == {
        "schema": 1,
        "warmup": 5,
        "iterations": 7,
        "threads": 0,
        "instances": 1,
    }
    assert [(run["model"], run["batch_size"], run["median_ms"], run["xla"]) for run in told["runs"]] == [
        ("m.pb", 2, 4.0, False),
        ("q.pb", 2, 2.0, False),
    ]


@pytest.mark.slow
def test_xla_on_a_real_image(capfd: pytest.CaptureFixture[str]) -> None:
    """In a process of its own, where decoding the image comes before the first session."""
    flags = ("--xla", "--json", "--iters=2", "--batch_size=1,2", f"--dataset_location={SHAPES / 'evaluation.record'}")
    environment = {"PYTHONPATH": str(SHAPES.parents[1]), "PATH": os.environ["PATH"]}
    command = [sys.executable, "-m", "tuner", "benchmark", DETECTOR, *flags]
    assert subprocess.run(command, env=environment, check=False).returncode == 0
    out, errors = capfd.readouterr()
    assert errors == ""
    assert [(run["xla"], run["xla_clusters"] > 0) for run in json.loads(out)["runs"]] == [
        (False, False),
        (True, True),
    ] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("benchmark m.pb --instances=0", "Invalid value for '--instances': "),
        ("benchmark m.pb --max_trials=3", "No such option: --max_trials"),
        ("benchmark m.pb --batch_size=0,1", "--batch_size: got '0,1'; expected whole numbers from 1 on, as 1,4,8"),
        ("benchmark m.pb --batch_size=1,,2", "--batch_size: got '1,,2'; expected"),
        ("benchmark m.pb --batch_size=x", "--batch_size: got 'x'; expected"),
        ("benchmark m.pb --json --markdown", "--markdown and --json: got both; expected one of them"),
        ("profile", "Missing argument 'MODEL'."),
        ("profile m.pb q.pb", "q.pb: the trace is written as JSON; expected a name ending in .json"),
        ("profile m.pb --runs=0", "Invalid value for '--runs': "),
        ("profile absent.pb", "absent.pb: no such file or folder"),
        (f"profile {DETECTOR} --dataset_location=absent.record", "absent.record: "),
    ],
)
def test_usage(pipeline: Any, arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments.split()) == 2
    out, errors = capsys.readouterr()
    assert (out, errors.count("\n"), pipeline.calls) == ("", 1, [])
    assert errors.startswith(f"error: {message}")


def test_profile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", DETECTOR, "out/t.json", "--runs=2", "--warmup=1", "--top=3"]) == 0
    out, errors = capsys.readouterr()
    lines = [line.split() for line in out.splitlines() if line.strip()]
    assert errors == "" and out.startswith("\na run takes ")
    parts = {" ".join(line[:-3]): float(line[-1].rstrip("%")) for line in lines[3:7]}
    assert set(parts) == {
        "pre-processing",
        "convolutions and matrix products",
        "rest of the network",
        "post-processing",
    }
    assert sum(parts.values()) == pytest.approx(100, abs=0.3)
    first_of_ops = next(number for number, line in enumerate(lines) if line[:2] == ["op", "type"]) + 2
    assert lines[first_of_ops + 3][0] == "node"
    trace = json.loads((tmp_path / "out/t.json").read_text())
    assert [event["name"] for event in trace["traceEvents"] if event["ph"] == "X" and event["pid"] == 0] == [
        "run 1",
        "run 2",
    ]


def test_profile_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    location = str(SHAPES / "evaluation.record")
    assert main(["profile", DETECTOR, "--runs=1", "--json", "--dataset_location", location]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["schema"], told["runs"], told["copies"]) == (1, 1, [])
    assert sum(node["time_us"] for node in told["nodes"]) == pytest.approx(told["total_us"])


@pytest.mark.parametrize(
    ("command", "examples"),
    [
        ("benchmark", ["tuner benchmark f.pb --vs q.pb", "tuner benchmark f.pb --vs q.pb --batch_size 1,4,8"]),
        ("profile", ["tuner profile f.pb trace.json --dataset_location coco"]),
    ],
)
def test_help(command: str, examples: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    out = capsys.readouterr().out
    lines = [line.strip() for line in out.splitlines()]
    assert [example for example in examples if not any(line.startswith(example) for line in lines)] == []
    assert max(map(len, out.splitlines())) <= 80
