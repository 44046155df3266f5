"""Studies on a real PostgreSQL: runs, what goes wrong with the server, and who may write."""

import os
import platform
import re
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.contenders import contender, says
from tests.faults.test_storage import sha256, tuner, write_inputs
from tests.test_pipeline import Accuracy, MakeJob, files, make_job  # noqa: F401
from tests.test_study import IDENTITY, MEASUREMENT, complete
from tuner import pipeline, study_storage
from tuner.errors import TunerError
from tuner.exclusive import only_driver
from tuner.run_record import read_run
from tuner.storage_url import shown_storage
from tuner.study import open_study, read_study
from tuner.study_storage import only_driver_on, open_storage, sqlite_file

if TYPE_CHECKING:
    from tests.storage.conftest import Server
else:
    Server = Any

ROOT = Path(__file__).parents[2]
PASSWORD = "s3cret-of-the-tests"
# Takes the study as a run does, says so, and keeps it until stdin ends.
HOLD = """
import sys
from pathlib import Path
from tuner.errors import TunerError
from tuner.exclusive import only_driver
from tuner.study_storage import only_driver_on, sqlite_file
try:
    with only_driver(Path(sys.argv[1]), sqlite_file(sys.argv[2])), only_driver_on(sys.argv[2]):
        print("has it", flush=True)
        sys.stdin.read()
except TunerError as error:
    print(error, flush=True)
"""


@pytest.fixture
def url(server: Server) -> str:
    return server.new_database()


@pytest.fixture(autouse=True)
def no_password_at_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PGPASSWORD", raising=False)
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "none"))
    monkeypatch.setattr(study_storage, "_passwords", {})


def told(url: str) -> str:
    """The error that a run on a storage and a reader of it end with, which is one line without the password."""
    with pytest.raises(TunerError) as written, only_driver_on(url):
        open_study(url, IDENTITY, resume=True)
    with pytest.raises(TunerError) as read:
        read_study(url)
    for error in (written, read):
        assert "\n" not in str(error.value)
        assert "s3cret" not in str(error.value)
        assert str(error.value).startswith(f"{shown_storage(url)}: cannot be ")
    return str(written.value)


def test_everything_comes_back_as_it_was_recorded(url: str) -> None:
    study = open_study(url, IDENTITY, resume=False)
    study.record_baseline(MEASUREMENT)
    trials = [complete(study), complete(study, latency_ms=0.5)]
    for found in (study, open_study(url, IDENTITY, resume=True), read_study(url)):
        assert found is not None
        assert (found.baseline, list(found.trials)) == (MEASUREMENT, trials)
    with pytest.raises(TunerError, match=r"tuner:\*\*\*@.*: cannot be resumed: its model is 'abc'"):
        open_study(url, {**IDENTITY, "model": "xyz"}, resume=True)


def test_a_run_is_shown_and_goes_on_and_its_password_is_nowhere(
    server: Server, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_inputs(tmp_path)
    workspace, output = tmp_path / "run", tmp_path / "int8.pb"
    arguments = [
        *("tune", "--input_model", str(tmp_path / "float.pb"), "--config", str(tmp_path / "settings.yaml")),
        *("--workspace", str(workspace), "--output_model", str(output), "--storage", url),
    ]
    monkeypatch.setattr(sys, "argv", ["tuner", *arguments])  # run.json tells what was typed
    first = tuner(*arguments)
    assert first.code == 0, first.err
    assert "left out" not in first.err
    written, study = sha256(output), read_study(url)
    assert study is not None and study.trials
    assert not (workspace / "study.db").exists()

    output.unlink()
    again = tuner(*arguments, "--resume", "--json-lines")
    assert f"--storage '{shown_storage(url)}'" in again.out
    assert (again.code, sha256(output), read_study(url)) == (0, written, study)

    # As in another process: run.json has no password.
    study_storage._passwords.clear()
    without = tuner("explain", workspace)
    assert "give it in the URL, in PGPASSWORD or in ~/.pgpass" in without.err
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    shown = [tuner("explain", workspace), tuner("report", workspace)]
    assert [(said.code, said.err) for said in shown] == [(0, ""), (0, "")]
    assert read_run(workspace).study == study
    for storage in (url, read_run(workspace).facts.storage, url.replace(f":{PASSWORD}", "")):
        assert len(open_storage(storage, {"key": "report.html"}).get_all_studies()) == 1

    said = [first, again, without, *shown]
    assert "s3cret" not in "".join(one.out + one.err for one in said)
    files_left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert f"--storage '{shown_storage(url)}'" in read_run(workspace).facts.command
    assert workspace / "run.json" in files_left
    assert [path for path in files_left if b"s3cret" in path.read_bytes()] == []


class Stopping(Accuracy):
    """Stops a server while the second trial is measured."""

    def __init__(self, server: Server | None = None) -> None:
        super().__init__()
        self.server = server

    def __call__(self, graph_def: Any) -> float:
        if self.calls == 2 and self.server is not None:
            self.server.stop()
        return super().__call__(graph_def)


def test_a_server_that_stops_in_mid_run(server: Server, url: str, make_job: MakeJob) -> None:  # noqa: F811
    job = make_job(relative=0.035, storage=url, eval_func=Stopping(server))
    with pytest.raises(TunerError, match=r"^the run's record cannot be used: .*terminating connection") as ended:
        pipeline.tune(job)
    assert "\n" not in str(ended.value)
    assert "Connection refused" in told(url)

    server.start()
    finished = read_study(url)
    assert finished is not None and finished.baseline is not None
    assert len(finished.trials) == 1
    accuracy = Stopping()
    result = pipeline.tune(replace(job, eval_func=accuracy, resume=True))
    assert result.trials[0] == finished.trials[0]
    # Neither the float model nor the first trial again; what was under way when the server stopped is measured anew.
    assert accuracy.calls == len(result.trials) - 1 > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((f":{PASSWORD}@", ":s3cret-too@"), 'password authentication failed for user "tuner"'),
        ((f":{PASSWORD}@", "@"), "no password supplied; give it in the URL, in PGPASSWORD or in ~/.pgpass"),
        ((r"/studies_\d+", "/gone"), 'database "gone" does not exist'),
        ((r":\d+/", ":1/"), "Connection refused"),
        ((r":\d+/", ":12a/"), "expected a URL as SQLAlchemy reads it, for example postgresql\\+psycopg://user@host/"),
        ((f":{PASSWORD}@", ":x@s3cret@"), "an @ in a password is written %40"),
        ((f":{PASSWORD}@(.*)", r"@\1?password=s3cret"), r"a password goes before the @ \(user:password@host\)"),
        (("psycopg:", "pg8000:"), "pg8000 is not installed"),
        (("postgresql.psycopg:", "nosql:"), "Can't load plugin: sqlalchemy.dialects:nosql"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(url: str, change: tuple[str, str], message: str) -> None:
    assert re.search(f"{message}", told(re.sub(*change, url)))


def test_a_driver_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    message = told(f"postgresql+psycopg://tuner:{PASSWORD}@127.0.0.1/studies")
    assert message.endswith("psycopg is not installed; install it with: pip install 'tuner[postgresql]'")


def test_a_second_run_is_told_who_has_the_study(server: Server, url: str, tmp_path: Path) -> None:
    """Each from a workspace of its own; when the first is killed, another gets the study at once."""
    with contender(HOLD, str(tmp_path / "one"), url) as first:
        assert says(first) == "has it"
        with contender(HOLD, str(tmp_path / "two"), url) as second:
            assert re.fullmatch(
                rf"{re.escape(shown_storage(url))}: another run works on it: process {first.pid} on "
                rf"{re.escape(platform.node()[:38])}, since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d; "
                "wait for it, or name another --storage",
                says(second),
            )
        with only_driver_on(server.new_database()):
            pass  # another study, which nobody has
        first.kill()
        first.wait()
        began_s = time.monotonic()
        while "another run" in (answer := taken(url)):
            assert time.monotonic() - began_s < 10, "the server still keeps it"
        assert answer == ""
    with only_driver_on(url):
        assert f"process {os.getpid()} on" in taken(url)


def taken(url: str) -> str:
    """What one is told who wants a study; nothing where it is to be had."""
    try:
        with only_driver_on(url):
            return ""
    except TunerError as error:
        return str(error)


def test_of_many_at_once_one_has_it(url: str, tmp_path: Path) -> None:
    with ExitStack() as running:
        processes = [running.enter_context(contender(HOLD, str(tmp_path / str(n)), url)) for n in range(4)]
        answers = {process.pid: says(process) for process in processes}
        (winner,) = (pid for pid, answer in answers.items() if answer == "has it")
        assert all(f"process {winner} on" in answer for pid, answer in answers.items() if pid != winner), answers


def test_what_a_run_does_while_another_has_the_study(url: str, make_job: MakeJob) -> None:  # noqa: F811
    job = make_job(storage=url, eval_func=Accuracy())
    with only_driver_on(url), pytest.raises(TunerError, match="another run works on it: process"):
        pipeline.tune(job)
    assert read_study(url) is None


def test_a_file_of_sqlite_is_kept_too(tmp_path: Path) -> None:
    """Under any name of it, and the one of a workspace when another run names it."""
    for storage, other_name in (("a.db", "link.db"), ("first/study.db", "first/../first/study.db")):
        url = f"sqlite:///{tmp_path / storage}"
        if other_name == "link.db":
            (tmp_path / other_name).symlink_to(tmp_path / storage)
        with contender(HOLD, str(tmp_path / "first"), url) as first:
            assert says(first) == "has it"
            with (
                pytest.raises(TunerError, match=rf"another run works there: process {first.pid} on .* --storage$"),
                only_driver(tmp_path / "second", sqlite_file(f"sqlite:///{tmp_path / other_name}")),
            ):
                pytest.fail("both have it")
            with only_driver(tmp_path / "second", sqlite_file(f"sqlite:///{tmp_path}/b.db")):
                pass
            first.kill()
            first.wait()
        with only_driver(tmp_path / "second", sqlite_file(url)):
            pass


@pytest.mark.parametrize(
    ("storage", "file"),
    [
        ("sqlite:////runs/a.db", Path("/runs/a.db")),
        ("sqlite+pysqlite:////runs/a.db", Path("/runs/a.db")),
        ("sqlite:///file:/runs/a.db?uri=true", Path("/runs/a.db")),
        ("sqlite://", None),
        ("sqlite:///:memory:", None),
        ("mysql+pymysql://host/runs", None),
    ],
)
def test_which_file_a_storage_is(storage: str, file: Path | None) -> None:
    assert sqlite_file(storage) == file


@pytest.mark.parametrize(
    ("storage", "shown"),
    [
        ("postgresql://u:p@h/db", "postgresql://u:***@h/db"),
        ("postgresql://u:p/a@s:s@h/db", "postgresql://u:***@h/db"),
        ("postgresql://u@h/db?sslpassword=p&a=b&password=p", "postgresql://u@h/db?sslpassword=***&a=b&password=***"),
        ("postgresql://u@h/db", "postgresql://u@h/db"),
        ("sqlite:////a:b@c.db", "sqlite:////a:b@c.db"),
        ("no url", "no url"),
    ],
)
def test_no_password_is_shown(storage: str, shown: str) -> None:
    assert shown_storage(storage) == shown
