"""Commands in processes of their own that may crash, hang or eat memory, and what came of them.

TensorFlow is imported once, then each command is a fork. As a program: reads one order per line, a JSON object, and
answers each with another.
"""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

# Of processor time, and of waiting where there is none to be had: a busy machine is no fault of the command.
MOST_CPU_S = 30
MOST_WALL_S = 120
MOST_BYTES = 2 * 10**9
# Before the machine runs out of memory; between the two a run ends as "memory", too.
LIMIT_BYTES = 6 * 10**9

_STDOUT, _STDERR, _SCRATCH = "stdout.txt", "stderr.txt", "scratch"
_OF_LIBJPEG = (
    r"Corrupt JPEG data|Premature end of JPEG file|Invalid (SOS|JPEG)|Inconsistent progression|Empty JPEG image|"
    r"Improper call to JPEG library|Didn't expect more than one scan|Unsupported marker type|Bogus "
)
# What --skip-bad-records is asked to count.
_SKIPPED = r"warning: .* bad records skipped; first: "
_ASIDE = re.compile(f"{_OF_LIBJPEG}|{_SKIPPED}")
_HIDDEN = re.compile(r"\..+\.[a-z0-9_]{8}")


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    exit_code: negative for a signal. peak_bytes: of resident memory. errors: what it wrote to stderr.
    left: files that should not be there, by their path in its folder.
    """

    exit_code: int
    cpu_s: float
    peak_bytes: int
    errors: str
    left: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """success, refused, or what is wrong: traceback, crash, hang, memory, partial, unclear."""
        faults = {
            "hang": self.exit_code in (-signal.SIGXCPU, -signal.SIGALRM),
            "memory": self.peak_bytes > MOST_BYTES,
            "crash": self.exit_code < 0,
            "partial": bool(self.left),
            "traceback": self.exit_code not in (0, 2, 3),
            "unclear": self.exit_code == 2 and not self._is_clear,
        }
        found = [name for name, is_so in faults.items() if is_so]
        # 3: a search that ended without a graph that meets the criterion
        return found[0] if found else "refused" if self.exit_code == 2 else "success"

    @property
    def _is_clear(self) -> bool:
        """One line, besides the count of bad records that was asked for.

        libjpeg, inside TensorFlow, writes notes of its own to the process's stderr; none can stop it.
        """
        told = [line for line in self.errors.splitlines() if not _ASIDE.match(line)]
        return len(told) == 1 and told[0].startswith("error: ") and len(told[0]) < 2000


class Commands(AbstractContextManager["Commands"]):
    """A process that runs commands one after the other."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.bad_input.runs"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[3],
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "COLUMNS": "200"},
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _pipe(self._process.stdin).close()
        self._process.wait()

    def run(self, folder: Path, arguments: Sequence[str]) -> Ended:
        """Run `tuner` with these arguments in `folder`."""
        (folder / _SCRATCH).mkdir()
        print(json.dumps({"folder": str(folder), "arguments": arguments}), file=_pipe(self._process.stdin), flush=True)
        answer = json.loads(_pipe(self._process.stdout).readline())
        left = [path.relative_to(folder) for path in folder.rglob("*") if _is_left(path.relative_to(folder))]
        errors = (folder / _STDERR).read_text(errors="replace")
        return Ended(**answer, errors=errors, left=tuple(map(str, left)))


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def _is_left(path: Path) -> bool:
    inside_scratch = path.parts[0] == _SCRATCH and len(path.parts) > 1
    return inside_scratch or _HIDDEN.fullmatch(path.name) is not None


def main() -> None:
    """Answer orders until there are no more."""
    import matplotlib.figure  # noqa: F401, PLC0415

    import tuner.measure  # noqa: PLC0415
    import tuner.pipeline  # noqa: PLC0415
    import tuner.summary  # noqa: PLC0415
    import tuner.untuned  # noqa: F401, PLC0415

    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            _run(Path(order["folder"]), order["arguments"])
        status, used = _wait(child)
        answer = {
            "exit_code": os.waitstatus_to_exitcode(status),
            "cpu_s": used.ru_utime + used.ru_stime,
            "peak_bytes": used.ru_maxrss * 1024,
        }
        print(json.dumps(answer), flush=True)


def _wait(child: int) -> tuple[int, resource.struct_rusage]:
    end = time.monotonic() + MOST_WALL_S
    while time.monotonic() < end:
        ended, status, used = os.wait4(child, os.WNOHANG)
        if ended:
            return status, used
        time.sleep(0.01)
    os.kill(child, signal.SIGALRM)
    _, status, used = os.wait4(child, 0)
    return status, used


def _run(folder: Path, arguments: Sequence[str]) -> None:
    """Run the command in this process, which ends with it."""
    os.chdir(folder)
    os.environ["TMPDIR"] = str(folder / _SCRATCH)
    for number, name in ((1, _STDOUT), (2, _STDERR)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), number)
    resource.setrlimit(resource.RLIMIT_CPU, (MOST_CPU_S, MOST_CPU_S + 5))
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT_BYTES, LIMIT_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    code = 1
    try:
        from tuner.cli import main as command  # noqa: PLC0415

        code = command(list(arguments))
    except BaseException:  # What leaves the command is what is looked for.
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
