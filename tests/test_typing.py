"""The package is typed for those who use it."""

import subprocess
import sys
import tomllib
from importlib.resources import files
from pathlib import Path

ROOT = Path(__file__).parents[1]

SCRIPT = """
from typing import Any

import tuner
from tuner.trial import CompletedTrial, Trial


def accuracy(graph_def: Any) -> float:
    return 0.5


def watch(trial: Trial, running: tuner.RunningResult) -> None:
    loss: float | None = running.loss(trial)
    if loss is not None and isinstance(trial, CompletedTrial) and trial.measurement.latency_ms < 5:
        raise tuner.StopTuning("fast enough")


result = tuner.tune("conf.yaml", "float.pb", "int8.pb", eval_func=accuracy, callbacks=[watch])
latency: float | None = None if result.best is None else result.best.measurement.latency_ms
page: str = result._repr_html_()
reveal_type(result.relative_loss)
tuner.tune("conf.yaml", "float.pb")
tuner.tune("conf.yaml", "float.pb", "int8.pb", callbacks=[accuracy])
"""


def test_a_users_script_is_checked(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--no-error-summary", str(script)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    told = [line.partition("script.py:")[2] for line in done.stdout.splitlines() if "script.py:" in line]
    # The types are those of the package, and its two mistakes are seen, but no other.
    assert [line.partition(":")[0] for line in told if ": error:" in line] == ["22", "23"], done.stdout + done.stderr
    assert any('Revealed type is "float | None"' in line.replace("builtins.", "") for line in told)


def test_the_mark_of_a_typed_package_is_installed() -> None:
    assert (files("tuner") / "py.typed").is_file()
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "py.typed" in settings["tool"]["setuptools"]["package-data"]["tuner"]
