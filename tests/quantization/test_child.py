"""Children that misbehave, each a real process of a small module of its own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tuner.errors import QuantizationError
from tuner.quantization import child
from tuner.quantization.child import Limits, run_child

AMPLE = Limits(time_s=60, memory_mb=1000)
Run = Callable[..., int]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run source code as the module `task`; what it prints goes to `log.txt`."""

    def run_source(source: str, *arguments: str, limits: Limits = AMPLE) -> int:
        (tmp_path / "task.py").write_text(source)
        path = os.pathsep.join([str(tmp_path), *sys.path])
        environment = {**os.environ, "PYTHONPATH": path}
        return run_child("task", arguments, limits, log=tmp_path / "log.txt", environment=environment)

    return run_source


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def ends(pid: int) -> bool:
    """Whether a process ends within ten seconds."""
    deadline = time.monotonic() + 10
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not is_running(pid)


def test_a_module_runs_as_python_runs_it(run: Run, tmp_path: Path) -> None:
    source = "import sys; print(__name__, sys.argv[1:]); print('said', file=sys.stderr); sys.exit(3)"
    assert run(source, "one", "two words") == 3
    assert set((tmp_path / "log.txt").read_text().splitlines()) == {"__main__ ['one', 'two words']", "said"}


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("import os; os._exit(0)", 0),
        ("import os; os._exit(7)", 7),
        ("raise KeyError", 1),
        ("import ctypes; ctypes.string_at(0)", -signal.SIGSEGV),
        ("import os; os.abort()", -signal.SIGABRT),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL),
        ("raise KeyboardInterrupt", -signal.SIGINT),
    ],
)
def test_every_end_is_told_by_its_code(run: Run, source: str, code: int) -> None:
    assert run(source) == code


def test_a_child_that_hangs_is_ended_with_all_that_it_started(run: Run, tmp_path: Path) -> None:
    source = """
import signal, subprocess, sys, time
from pathlib import Path
signal.signal(signal.SIGTERM, signal.SIG_IGN)
started = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
Path(sys.argv[1]).write_text(str(started.pid))
time.sleep(600)
"""
    with pytest.raises(QuantizationError, match=r"^not done after 1.5 s, ended$"):
        run(source, str(tmp_path / "pid"), limits=Limits(time_s=1.5))
    assert ends(int((tmp_path / "pid").read_text()))


EATS_600_MIB = "held = [bytearray(b'x' * 2**20) for _ in range(600)]; import time; time.sleep(60)"


def test_a_child_that_eats_memory_is_ended(run: Run) -> None:
    with pytest.raises(QuantizationError, match=r"^took more than 200 MiB of memory, ended$"):
        run(EATS_600_MIB, limits=Limits(60, memory_mb=200))


def test_unless_told_a_child_may_take_three_quarters_of_what_is_free(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "_free_bytes", lambda: 400 * 2**20)
    with pytest.raises(QuantizationError, match=r"^took more than 300 MiB of memory, ended$"):
        run(EATS_600_MIB, limits=Limits(60))


def test_memory_that_is_only_reserved_does_not_count(run: Run) -> None:
    no_reserve = 0x4000  # MAP_NORESERVE, which Python names from 3.13 on
    source = f"import mmap, time; held = mmap.mmap(-1, 2**36, mmap.MAP_PRIVATE | mmap.MAP_ANON | {no_reserve})"
    assert run(f"{source}; time.sleep(0.5)") == 0


def test_the_system_ends_a_child_first_when_memory_runs_out(run: Run, tmp_path: Path) -> None:
    assert run("print(open('/proc/self/oom_score_adj').read())") == 0
    assert (tmp_path / "log.txt").read_text().strip() == "1000"


DRIVER = """
import os, sys
from pathlib import Path
from tuner.quantization.child import Limits, run_child
run_child("sleeper", sys.argv[1:], Limits(600, 1000), log=Path(sys.argv[1] + ".log"), environment=os.environ)
"""
SLEEPER = """
import os, sys, time
from pathlib import Path
part = Path(sys.argv[1] + ".part")
part.write_text(str(os.getpid()))
part.rename(sys.argv[1])
time.sleep(600)
"""


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_child_dies_with_its_parent(tmp_path: Path, stop: signal.Signals) -> None:
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    pid_file = tmp_path / "pid"
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(pid_file)], env=environment, stderr=subprocess.PIPE, text=True
    ) as driver:
        deadline = time.monotonic() + 30
        while not pid_file.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        pid = int(pid_file.read_text())
        assert is_running(pid)
        driver.send_signal(stop)
        driver.communicate(timeout=10)
        assert driver.returncode == -stop
        assert ends(pid)
