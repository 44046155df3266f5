"""What reaches the terminal, seen from outside: processes with pipes for their output."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

DETECTOR = str(ROOT / "datasets/shapes/detector.pb")


def run(*command: str, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TF_")}
    return subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        env={**environment, "PYTHONPATH": str(ROOT), **settings},
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("arguments", [["--help"], ["tune", "--help"], ["tune", "--max_trials=0"]])
def test_help_and_mistakes_do_not_wait_for_tensorflow(arguments: list[str]) -> None:
    code = (
        "import sys; from tuner.cli import main; main(sys.argv[1:]);"
        "sys.exit(' '.join({'tensorflow', 'keras', 'optuna', 'numpy'} & set(sys.modules)) or None)"
    )
    assert run("-c", code, *arguments).returncode == 0


def test_help_does_not_wait_for_tensorflow() -> None:
    program = "import sys; from tuner.cli import main; main(['--help']); sys.exit('tensorflow' in sys.modules)"
    assert run("-c", program).returncode == 0


def test_exit_codes_leave_the_process() -> None:
    done = run("-m", "tuner", "evaluate", "none.pb")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: none.pb: ") and done.stderr.count("\n") == 1


CHATTER = """
import logging, os, sys, warnings
from rich.console import Console
from tuner.cli.terminal import hushed, set_up_logging
verbose = sys.argv[1] == "-v"
set_up_logging(Console(stderr=True), verbose=verbose)
with hushed(verbose=verbose):
    import tuner.model.loading
    os.write(2, b"a native banner\\n")
logging.getLogger("tuner.data").warning("2 bad [records]")
logging.getLogger("tuner.data").info("a detail")
logging.getLogger("faster_coco_eval").setLevel(logging.DEBUG)
logging.getLogger("faster_coco_eval").info("their info")
logging.getLogger("tensorflow").warning("their warning")
logging.getLogger("absl").error("their error")
warnings.warn("deprecated", UserWarning)
"""


def test_only_what_matters_reaches_the_terminal() -> None:
    done = run("-c", CHATTER, "")
    assert (done.stdout, done.stderr) == ("", "warning: 2 bad [records]\nerror: their error\n")


def test_verbose_hides_nothing() -> None:
    done = run("-c", CHATTER, "-v")
    told = ["native banner", "oneDNN", "2 bad [records]", "a detail", "their info", "their warning", "deprecated"]
    assert [text for text in told if text not in done.stderr] == []


def test_what_was_kept_back_is_told_when_something_breaks() -> None:
    code = (
        "import os, sys; from tuner.cli.terminal import hushed; from tuner.errors import TunerError\n"
        "with hushed(verbose=False):\n    os.write(2, b'last words\\n')\n    raise {error}('broken')"
    )
    assert "last words" in run("-c", code.format(error="RuntimeError")).stderr
    assert "last words" not in run("-c", code.format(error="TunerError")).stderr


@pytest.mark.parametrize("instances", ["1", "2"])
def test_a_real_run_is_quiet(instances: str) -> None:
    if int(instances) > len(os.sched_getaffinity(0)):
        pytest.skip("needs a core for each instance")
    done = run("-m", "tuner", "benchmark", DETECTOR, "--iters=2", "--warmup=0", f"--instances={instances}")
    assert (done.returncode, done.stderr) == (0, "")
    assert "latency, median" in done.stdout and "\x1b" not in done.stdout


BROKEN = """
import os, sys
from rich.console import Console
from tuner.cli.progress import LiveProgress, PlainProgress
from tuner.cli.terminal import steady
read, write = os.pipe()
os.dup2(write, 2)
os.close(write)
os.close(read)
for form, terminal in ((PlainProgress, False), (LiveProgress, True)):
    progress = form(Console(file=steady(sys.stderr), force_terminal=terminal))
    with progress.stage("load") as stage:
        stage.note("x" * 9)
        list(progress.track(range(3), 3, "images"))
print("went on")
"""


def test_a_reader_who_is_gone_ends_nothing() -> None:
    done = run("-c", BROKEN)
    assert (done.returncode, done.stdout) == (0, "went on\n")


def test_ctrl_c(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tuner", "tune", "--topology=shapes", "--input_model", DETECTOR, "--output_model=q.pb"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert process.stderr.readline().startswith("load ")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in errors) == (130, False)
    assert not (tmp_path / "q.pb").exists()
    # There is nothing yet that --resume could go on from.
    command = f"cd {tmp_path} && {sys.executable} -m tuner tune --topology=shapes --input_model {DETECTOR} "
    assert errors.endswith(f"\nto go on:\n{command}--output_model=q.pb\n")
