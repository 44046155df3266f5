"""The run_*.sh scripts, with a Python that only writes down what it was asked: no network, no installation."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = (".setup.sh", "run_tuning.sh", "run_tests.sh", "run_benchmark.sh")

# Stands for python3.12, and for the .venv/bin/python that it makes: one line in $CALLS for each call.
FAKE_PYTHON = """#!/usr/bin/env bash
case "$1 $2" in
"-c "*) echo "${FAKE_VERSION:-3.12}"; exit ;;
"-m venv") mkdir -p "$4/bin" && rm -f "$4"/.install* && cp "$0" "$4/bin/python" && echo venv >>"$CALLS" ;;
"-m pip")
    [[ $3 == --version ]] && exit
    printf 'pip %s\\n' "${*: -1}" >>"$CALLS"
    sleep "${FAKE_PIP_S:-0}"
    if [[ -n ${FAKE_PIP_FAILS:-} ]]; then
        echo "WARNING: chatter"; echo "ERROR: no such version"; exit 1
    fi ;;
*) printf '<%s>' "$@" >>"$CALLS"; printf ' in %s\\n' "$PWD" >>"$CALLS"; exit "${FAKE_EXIT:-0}" ;;
esac
"""


class Project:
    """A copy of the scripts in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a project"
        (self.root / "bin").mkdir(parents=True)
        for name in SCRIPTS:
            shutil.copy(ROOT / name, self.root / name)
        for name in ("pyproject.toml", "constraints.txt"):
            (self.root / name).write_text("first\n")
        self.python = self.root / "bin/python"
        self.python.write_text(FAKE_PYTHON)
        self.python.chmod(0o755)
        self._calls = self.root / "calls"

    def start(self, script: str, *arguments: str, **settings: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHON": str(self.python), "CALLS": str(self._calls), **settings}
        return subprocess.Popen(
            ["bash", str(self.root / script), *arguments],
            cwd=self.root.parent,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def run(self, script: str, *arguments: str, **settings: str) -> tuple[int, str]:
        """Exit code and stderr."""
        process = self.start(script, *arguments, **settings)
        _, errors = process.communicate(timeout=20)
        return process.returncode, errors

    def calls(self) -> list[str]:
        """What Python was asked since the last time, the folder of the project as $root."""
        text = self._calls.read_text() if self._calls.exists() else ""
        self._calls.unlink(missing_ok=True)
        return text.replace(str(self.root), "$root").splitlines()


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_the_first_run_sets_up_and_the_second_does_not(project: Project) -> None:
    code, errors = project.run("run_tuning.sh", "--max_trials=3")
    assert (code, errors.count("\n")) == (0, 1)
    tuned = f"<-m><tuner><tune><--max_trials=3> in {project.root.parent}"
    assert project.calls() == ["venv", "pip $root", tuned]
    assert project.run("run_tuning.sh", "--max_trials=3") == (0, "")
    assert project.calls() == [tuned]


def test_without_arguments_the_embedded_default_is_tuned(project: Project) -> None:
    project.run("run_tuning.sh")
    assert project.calls()[-1] == (
        "<-m><tuner><tune><--config><configs/shapes.yaml><--input_model><datasets/shapes/detector.pb>"
        "<--output_model><output/shapes_int8.pb> in $root"
    )


def test_arguments_arrive_as_they_were_given(project: Project) -> None:
    project.run("run_tuning.sh", "--topology", "x", "--input_model=a b.pb", "--resume", "*", "")
    assert project.calls()[-1].startswith("<-m><tuner><tune><--topology><x><--input_model=a b.pb><--resume><*><> in ")
    project.run("run_tests.sh", "-k", "one or two")
    assert project.calls()[-1] == "<-m><pytest><-k><one or two> in $root"


@pytest.mark.parametrize("code", [0, 1, 2, 3, 130])
def test_the_exit_code_is_the_programs(project: Project, code: int) -> None:
    assert project.run("run_tuning.sh", FAKE_EXIT=str(code))[0] == code


def test_tests_add_their_extra_once_for_both(project: Project) -> None:
    project.run("run_tests.sh")
    assert project.calls()[:2] == ["venv", "pip $root[test]"]
    project.run("run_tuning.sh")
    project.run("run_tests.sh")
    assert [call for call in project.calls() if call.startswith("pip")] == []


@pytest.mark.parametrize("changed", ["pyproject.toml", "constraints.txt"])
def test_a_changed_requirement_installs_again(project: Project, changed: str) -> None:
    project.run("run_tests.sh")
    project.calls()
    (project.root / changed).write_text("second\n")
    project.run("run_tuning.sh")
    assert project.calls()[0] == "pip $root"
    project.run("run_tests.sh")
    assert project.calls()[0] == "pip $root[test]"


def test_a_failed_installation_is_told_and_repaired(project: Project) -> None:
    code, errors = project.run("run_tuning.sh", FAKE_PIP_FAILS="yes")
    assert code == 1
    assert errors.splitlines()[1:] == ["ERROR: no such version", "Installation failed; the next run tries again."]
    assert project.calls() == ["venv", "pip $root"]
    assert project.run("run_tuning.sh")[0] == 0
    assert [call.split()[0] for call in project.calls()] == [
        "pip",
        "<-m><tuner><tune><--config><configs/shapes.yaml>"
        + ("<--input_model><datasets/shapes/detector.pb><--output_model><output/shapes_int8.pb>"),
    ]


def test_a_killed_installation_starts_anew(project: Project) -> None:
    process = project.start("run_tuning.sh", FAKE_PIP_S="30")
    deadline = time.monotonic() + 10
    while not (project.root / "calls").exists() or "pip" not in (project.root / "calls").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    project.calls()
    assert project.run("run_tuning.sh")[0] == 0
    assert project.calls()[:2] == ["venv", "pip $root"]


def test_two_at_once_install_once(project: Project) -> None:
    both = [project.start("run_tuning.sh", FAKE_PIP_S="0.5") for _ in range(2)]
    assert [process.wait(20) for process in both] == [0, 0]
    for process in both:
        process.communicate()
    calls = project.calls()
    assert (calls.count("venv"), calls.count("pip $root"), len(calls)) == (1, 1, 4)


@pytest.mark.parametrize("settings", [{"FAKE_VERSION": "3.13"}, {"FAKE_VERSION": "3.10"}, {"PYTHON": "/absent"}])
def test_another_python_gets_one_line(project: Project, settings: Mapping[str, str]) -> None:
    code, errors = project.run("run_tuning.sh", **settings)
    assert code == 2
    assert errors.count("\n") == 1
    assert errors.startswith("Python 3.11 or 3.12 is needed: ")
    assert settings.get("FAKE_VERSION", "/absent is no Python") in errors
    assert project.calls() == []


@pytest.mark.parametrize(
    ("arguments", "call"),
    [
        ("--mode=accuracy --input_model=m.pb --config=c.yaml", "<evaluate><m.pb><--config=c.yaml>"),
        ("--config c.yaml --input_model m.pb --mode accuracy", "<evaluate><m.pb><--config><c.yaml>"),
        ("--mode=benchmark --input_model m.pb --iters=9 --vs o.pb", "<benchmark><m.pb><--iters=9><--vs><o.pb>"),
        ("--mode=benchmark --input_model m.pb", "<benchmark><m.pb>"),
    ],
)
def test_benchmark_modes(project: Project, arguments: str, call: str) -> None:
    assert project.run("run_benchmark.sh", *arguments.split())[0] == 0
    assert project.calls()[-1] == f"<-m><tuner>{call} in {project.root.parent}"


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ("", "--mode: got ''; expected accuracy or benchmark"),
        ("--mode=speed --input_model=m.pb", "--mode: got 'speed'; expected accuracy or benchmark"),
        ("--mode=accuracy", "--input_model is missing"),
        ("--input_model=m.pb --mode", "--mode needs a value"),
    ],
)
def test_benchmark_faults(project: Project, arguments: str, fault: str) -> None:
    assert project.run("run_benchmark.sh", *arguments.split()) == (2, f"run_benchmark.sh: {fault}\n")
    assert project.calls() == []


@pytest.mark.parametrize("script", [*SCRIPTS, ".ci/run"])
def test_scripts_parse(script: str) -> None:
    subprocess.run(["bash", "-n", str(ROOT / script)], check=True)
    if checker := shutil.which("shellcheck"):
        subprocess.run([checker, "-x", str(ROOT / script)], check=True, cwd=ROOT)
