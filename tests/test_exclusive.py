import json
import os
import platform
import re
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.contenders import contender, says
from tuner.errors import TunerError
from tuner.exclusive import only_driver

# Takes the workspace, says so, and keeps it until stdin ends.
HOLD = """
import sys
from pathlib import Path
from tuner.errors import TunerError
from tuner.exclusive import only_driver
try:
    with only_driver(Path(sys.argv[1])):
        print("has it", flush=True)
        sys.stdin.read()
except TunerError as error:
    print(error, flush=True)
"""
CONTENDERS = 20


def test_the_second_is_told_who_has_the_workspace(tmp_path: Path) -> None:
    with contender(HOLD, str(tmp_path / "w")) as first:
        assert says(first) == "has it"
        with pytest.raises(TunerError) as refused, only_driver(tmp_path / "w"):
            pytest.fail("both have it")
    assert re.fullmatch(
        rf"{re.escape(str(tmp_path))}/w: another run works there: process {first.pid} on {re.escape(platform.node())}, "
        r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d; wait for it, or name a --workspace",
        str(refused.value),
    )


def test_of_the_same_process_too(tmp_path: Path) -> None:
    with only_driver(tmp_path):
        with pytest.raises(TunerError, match=f"process {os.getpid()} on"), only_driver(tmp_path):
            pytest.fail("both have it")
        with only_driver(tmp_path / "other"):
            pass
    with only_driver(tmp_path):
        pass


def test_what_a_killed_run_leaves_is_taken_over(tmp_path: Path) -> None:
    with contender(HOLD, str(tmp_path)) as first:
        assert says(first) == "has it"
        first.send_signal(signal.SIGKILL)
        first.wait()
    left = json.loads((tmp_path / "driver.json").read_text())
    assert left["process"] == first.pid
    with only_driver(tmp_path):
        assert json.loads((tmp_path / "driver.json").read_text())["process"] == os.getpid()


@pytest.mark.parametrize("left", [b"", b"{", b"\xff\xfe", b"[]", b'{"process": 1, "machine": "elsewhere"}'])
def test_what_the_file_held_does_not_matter(left: bytes, tmp_path: Path) -> None:
    (tmp_path / "driver.json").write_bytes(left)
    with only_driver(tmp_path):
        pass
    assert (tmp_path / "driver.json").read_bytes() == b""


def test_of_many_at_once_one_has_it(tmp_path: Path) -> None:
    """Each in a process of its own; when the one goes, the next gets it, and never are there two."""
    left = {"process": 999999999, "machine": platform.node(), "started": "long ago"}
    (tmp_path / "driver.json").write_text(json.dumps(left))
    for _ in range(2):
        with ExitStack() as running:
            processes = [running.enter_context(contender(HOLD, str(tmp_path))) for _ in range(CONTENDERS)]
            answers = {process.pid: says(process) for process in processes}
            (winner,) = (pid for pid, answer in answers.items() if answer == "has it")
            others = [answer for pid, answer in answers.items() if pid != winner]
            assert len(others) == CONTENDERS - 1
            assert all(f"process {winner} on" in answer for answer in others), others


def test_a_workspace_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(TunerError, match="file: cannot be used as workspace: File exists"),
        only_driver(tmp_path / "file"),
    ):
        pytest.fail("a file is no folder")
    (tmp_path / "driver.json").symlink_to(tmp_path / "file")
    with pytest.raises(TunerError, match="is a symbolic link; remove it"), only_driver(tmp_path):
        pytest.fail("followed a link")
