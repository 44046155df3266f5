"""The tutorial and the how-to pages: their commands are run in order, and print what the pages say.

A block ```console holds commands behind `$ ` with their output, stdout and stderr together; a block with `title="NAME"`
is a file that the commands use. Each page has a folder of its own that looks like the project's, set up. Blocks behind
`<!-- quick -->` are part of the default suite too.

What may differ from the page: times, speeds and what is faster; hashes; decimals by 0.005 (accuracies, MB), or 0.5
where a % follows; blanks; lines that tell, by the clock, how far a stage is (`evaluate 296/400`). A line
`...` on a page stands for any number of lines; the tutorial has none. All else is the same.

Troubleshooting's commands are mistakes, and run in this process, one after the other.

Run as a script with names of pages, this file writes what the commands print now into the pages, where that differs.
"""

import contextlib
import hashlib
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tuner.cli import main
from tuner.quantization.cpu import read_cpu_features

ROOT = Path(__file__).parents[2]
PAGES = {
    path.relative_to(ROOT / "docs").with_suffix("").as_posix(): path
    for path in [ROOT / "docs/tutorial.md", *sorted((ROOT / "docs/howto").glob("*.md"))]
}
MISTAKES = ROOT / "docs/troubleshooting.md"

_BLOCK = re.compile(
    r'(?P<quick><!-- quick -->\n)?```(?P<kind>\w+)(?: title="(?P<title>[^"]+)")?\n(?P<body>.*?)```\n', re.DOTALL
)
_COMMAND = re.compile(r"^\$ (?P<command>(?:.*\\\n)*.*)\n(?P<output>(?:(?!\$ ).*\n)*)", re.MULTILINE)

# Times and what follows from them, and hashes.
_FREE = re.compile(
    r"-?\b\d+(\.\d+)? *(ms|s)\b|\b\d+\.\d+x (faster|slower)\b|\b[0-9a-f]{12,64}\b|(?<=images per second).*"
)
_DECIMAL = re.compile(r"(?P<number>[+-]?\d+\.\d+)(?P<unit>%)?")


# How far a stage is: told by the clock, so only where the machine is slow.
_COUNT = re.compile(r"[a-z]+ \d+/\d+")


@dataclass(frozen=True)
class Step:
    """A file to write (name, content), or a command with the output that the page tells."""

    file: tuple[str, str] | None = None
    command: str = ""
    output: str = ""
    quick: bool = False


def steps(page: str) -> Iterator[Step]:
    for block in _BLOCK.finditer(page):
        if block["title"]:
            yield Step(file=(block["title"], block["body"]), quick=True)
        elif block["kind"] == "console":
            for match in _COMMAND.finditer(block["body"]):
                yield Step(command=match["command"], output=match["output"], quick=bool(block["quick"]))


def prepare(folder: Path) -> dict[str, str]:
    """Fill a folder; returns the environment of the commands."""
    for name in ("configs", "datasets", "run_tuning.sh", ".setup.sh", "pyproject.toml", "constraints.txt"):
        (folder / name).symlink_to(ROOT / name)
    programs = folder / ".venv/bin"
    programs.mkdir(parents=True)
    for name, arguments in (("tuner", " -m tuner"), ("python", "")):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{arguments} "$@"\n')
        (programs / name).chmod(0o755)
    (programs / "activate").write_text(f'export PATH="{programs}:$PATH"\n')
    # The mark of a complete installation, as .setup.sh leaves it: tests/test_scripts.py has the installation itself.
    installed = b"".join((ROOT / name).read_bytes() for name in ("pyproject.toml", "constraints.txt"))
    mark = hashlib.sha256(installed + bytes(folder)).hexdigest()
    (folder / ".venv/.installed-").write_text(f"{mark}  -\n")
    path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    settings = {"PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "80", "TF_CPP_MIN_LOG_LEVEL": "3"}
    return {**os.environ, **settings}


def run(step: Step, folder: Path, environment: dict[str, str]) -> str:
    """Write the file, or run the command; returns what it prints, without blanks at the ends of lines."""
    if step.file is not None:
        (folder / step.file[0]).write_text(step.file[1])
        return ""
    done = subprocess.run(
        ["bash", "-c", step.command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    lines = [line.rstrip() for line in done.stdout.replace(str(folder) + "/", "").splitlines()]
    return "\n".join(lines).strip("\n") + "\n" if any(lines) else ""


def run_mistake(step: Step, folder: Path, environment: dict[str, str]) -> str:
    """The same in this process, for a command of the tuner that ends with exit code 2."""
    if step.file is not None:
        return run(step, folder, environment)
    stderr = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stderr(stderr):
        code = main(shlex.split(step.command)[1:])
    assert code == 2, step.command
    return stderr.getvalue().replace(str(folder) + "/", "")


def difference(told: str, printed: str) -> str | None:
    """What of `printed` is not as the page tells, in words; None if all is."""
    wanted, found = ([" ".join(line.split()) for line in text.splitlines() if line.strip()] for text in (told, printed))
    found = [line for line in found if not _COUNT.fullmatch(line)]
    position = 0
    while wanted:
        line = wanted.pop(0)
        if line == "...":
            if not wanted:
                return None
            skipped = (n for n, other in enumerate(found[position:], position) if _alike(wanted[0], other))
            position = next(skipped, len(found))
            continue
        if position == len(found) or not _alike(line, found[position]):
            return f"told: {line!r}; printed: {found[position] if position < len(found) else 'nothing'!r}"
        position += 1
    return None if position == len(found) else f"not told: {found[position]!r}"


def _alike(told: str, printed: str) -> bool:
    told, printed = (re.sub(r"[─ ]+", " ", _FREE.sub("#", line)) for line in (told, printed))
    if _DECIMAL.sub("#", told) != _DECIMAL.sub("#", printed):
        return False
    pairs = zip(_DECIMAL.finditer(told), _DECIMAL.finditer(printed), strict=True)
    return all(
        a["unit"] == b["unit"] and abs(float(a["number"]) - float(b["number"])) <= (0.5 if a["unit"] else 0.005)
        for a, b in pairs
    )


@pytest.mark.parametrize(
    ("told", "printed", "alike"),
    [
        ("mAP  0.5429", "mAP 0.5466", True),
        ("mAP  0.5429", "mAP 0.5529", False),
        ("loss -0.11%", "loss 0.25%", True),
        ("loss -0.11%", "loss 0.9%", False),
        ("1.40x faster, 5.0 ms", "1.02x slower, 15 ms", True),
        ("49 int8", "48 int8", False),
        ("file size 2.58 MB 0.79 MB", "file size 2.58 MB 0.81 MB", False),
        ("a\n...\nc 1", "a\nb\nb\nc 1", True),
        ("a\n...\nc 1", "a\nb\nc 2", False),
        ("a\n...", "a\nb", True),
        ("a", "a\nb", False),
        ("a\nb", "a\nevaluate 296/400\nb", True),
        ("a\nb", "a", False),
    ],
)
def test_what_may_differ(told: str, printed: str, alike: bool) -> None:
    assert (difference(told, printed) is None) == alike


def test_every_page_has_commands() -> None:
    assert [name for name, path in PAGES.items() if not any(step.command for step in steps(path.read_text()))] == []


def test_the_tutorial_leaves_nothing_out() -> None:
    text = PAGES["tutorial"].read_text()
    kinds = [block["kind"] for block in _BLOCK.finditer(text) if not block["title"]]
    assert set(kinds) == {"console"}
    assert text.count("\n```") == 2 * len(list(_BLOCK.finditer(text)))
    assert "\n...\n" not in text


def test_quick_commands_of_the_pages(tmp_path: Path) -> None:
    environment = prepare(tmp_path)
    for name, path in PAGES.items():
        for step in steps(path.read_text()):
            if step.quick:
                told = difference(step.output, run(step, tmp_path, environment))
                assert told is None, f"{name}: {step.command}: {told}"


# Without VNNI sums of int8 products saturate, and a search finds another plan.
@pytest.mark.slow
@pytest.mark.skipif(
    not ((cpu := read_cpu_features()) and cpu.has_vnni), reason="the pages were printed on a CPU with VNNI"
)
@pytest.mark.parametrize("name", PAGES)
def test_all_commands_of_a_page(name: str, tmp_path: Path) -> None:
    environment = prepare(tmp_path)
    for step in steps(PAGES[name].read_text()):
        told = difference(step.output, run(step, tmp_path, environment))
        assert told is None, f"{step.command}: {told}"


def test_mistakes_are_told_as_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    page = list(steps(MISTAKES.read_text()))
    assert len([step for step in page if step.output]) >= 15
    environment = prepare(tmp_path)
    for step in page:
        assert run_mistake(step, tmp_path, environment) == step.output, step.command


def update(path: Path, folder: Path) -> None:
    """Write into a page what its commands print now."""
    environment, text = prepare(folder), path.read_text()
    for step in steps(text):
        printed = (run_mistake if path == MISTAKES else run)(step, folder, environment)
        if step.command and (told := difference(step.output, printed)) is not None:
            print(f"{path.name}: {step.command}: {told}")
            text = text.replace(f"$ {step.command}\n{step.output}", f"$ {step.command}\n{printed}", 1)
            path.write_text(text)


if __name__ == "__main__":
    import tempfile

    for page in sys.argv[1:] or [*PAGES, "troubleshooting"]:
        with tempfile.TemporaryDirectory() as scratch:
            update(PAGES.get(page, MISTAKES), Path(scratch))
