"""A Python module run in a process of its own, which may hang, eat memory or crash without harm to this one (Linux)."""

import ctypes
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tuner.errors import QuantizationError

# A process that allocates as fast as it can takes some 0.1 GB between two looks at it.
LOOK_S = 0.05
SHARE_OF_FREE = 0.75
_MIB = 2**20
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a child process may take.

    time_s: wall time in seconds. memory_mb: MiB of its own memory, in RAM or swapped out; 0: three quarters of what the
    machine has free when the child starts.
    """

    time_s: float
    memory_mb: int = 0


def run_child(
    module: str, arguments: Sequence[str], limits: Limits, *, log: Path, environment: Mapping[str, str]
) -> int:
    """Run a module as `python -m` does; returns its exit code, or minus the number of the signal that ended it.

    The child is a fresh interpreter: to fork a process that runs TensorFlow's threads is not safe. It dies with this
    process, and with all that it started when this function is left, by Ctrl-C too. When the machine runs out of
    memory, the system ends it first. log: the file for what it prints, on stdout and stderr.

    Its memory is looked at from here. The limits of setrlimit(2) count what is reserved, of which TensorFlow reserves
    far more than it takes, and tell no cause.

    Raises QuantizationError when it takes more time or memory than it may.
    """
    most_bytes = limits.memory_mb * _MIB or int(SHARE_OF_FREE * _free_bytes())
    command = [sys.executable, "-m", __name__, str(os.getpid()), module, *arguments]
    with (
        log.open("wb") as stream,
        subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        ) as process,
    ):
        try:
            return _watch(process, limits.time_s, most_bytes)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _watch(process: subprocess.Popen[bytes], most_s: float, most_bytes: int) -> int:
    end = time.monotonic() + most_s
    while time.monotonic() < end:
        with suppress(subprocess.TimeoutExpired):
            return process.wait(LOOK_S)
        if _memory_bytes(process.pid) > most_bytes:
            raise QuantizationError(f"took more than {most_bytes // _MIB} MiB of memory, ended")
    raise QuantizationError(f"not done after {most_s:g} s, ended")


def _free_bytes() -> int:
    return _kibibytes(Path("/proc/meminfo"), "MemAvailable") * 1024


def _memory_bytes(pid: int) -> int:
    """Of a process, without the files that it maps; 0 once it has ended."""
    try:
        return _kibibytes(Path(f"/proc/{pid}/status"), "RssAnon|RssShmem|VmSwap") * 1024
    except OSError:
        return 0


def _kibibytes(table: Path, rows: str) -> int:
    return sum(int(found) for found in re.findall(rf"^(?:{rows}):\s+(\d+) kB$", table.read_text("ascii"), re.MULTILINE))


def _run_below(parent: int, arguments: list[str]) -> None:
    """The child's part: arrange how it ends, then run the module that the first argument names."""
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the process that started this one is gone")
    with suppress(OSError):  # not every system lets it
        Path("/proc/self/oom_score_adj").write_text("1000", "ascii")
    sys.argv = arguments
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _run_below(int(sys.argv[1]), sys.argv[2:])
