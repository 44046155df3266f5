"""A PostgreSQL of the tests' own: on loopback, with a data folder, a port and a user of its own."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

PROGRAMS = ("initdb", "postgres", "pg_isready", "psql")
# Found nowhere else in what a run prints or writes.
PASSWORD = "s3cret-of-the-tests"
USER = "tuner"
# What a test does not wait for, since nothing here outlives the machine.
FAST = ("fsync=off", "full_page_writes=off", "synchronous_commit=off", "shared_buffers=16MB", "autovacuum=off")


def binaries() -> Path | None:
    """The folder of the server's programs; Debian keeps one for each version, and none of them in the PATH."""
    folders = [Path(shutil.which("initdb") or "/none/initdb").resolve().parent]
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name), reverse=True)
    return next((folder for folder in folders if all((folder / name).is_file() for name in PROGRAMS)), None)


def as_other_user(command: Sequence[str]) -> list[str]:
    """PostgreSQL refuses to be run by root."""
    if os.geteuid() != 0:
        return list(command)
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", *command]


@dataclass
class Server:
    """A server that may be stopped and started again; its databases stay."""

    binaries: Path
    data: Path
    port: int
    _process: subprocess.Popen[bytes] | None = None
    _databases: int = 0

    def start(self) -> None:
        options = [f"-c{option}" for option in (*FAST, "listen_addresses=127.0.0.1", "unix_socket_directories=")]
        log = (self.data.parent / "log").open("ab")
        command = [str(self.binaries / "postgres"), "-D", str(self.data), "-p", str(self.port), *options]
        self._process = subprocess.Popen(as_other_user(command), stdout=log, stderr=log, cwd="/")
        deadline = time.monotonic() + 60
        while subprocess.run([self.binaries / "pg_isready", "-qh127.0.0.1", f"-p{self.port}"], check=False).returncode:
            assert self._process.poll() is None and time.monotonic() < deadline, (self.data.parent / "log").read_text()
            time.sleep(0.05)

    def stop(self) -> None:
        """As an administrator does who does not wait for anybody: whoever is connected is cut off."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        self._process.wait()

    def url(self, database: str, password: str | None = PASSWORD) -> str:
        secret = "" if password is None else f":{password}"
        return f"postgresql+psycopg://{USER}{secret}@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """The URL of an empty database."""
        self._databases += 1
        name = f"studies_{self._databases}"
        self.sql(f"CREATE DATABASE {name} TEMPLATE template0")
        return self.url(name)

    def sql(self, statement: str) -> str:
        return subprocess.run(
            [self.binaries / "psql", "-qAt", "-h127.0.0.1", f"-p{self.port}", f"-U{USER}", "-c", statement, "postgres"],
            env={**os.environ, "PGPASSWORD": PASSWORD},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()


@pytest.fixture(scope="session")
def running_server() -> Iterator[Server]:
    folder = binaries()
    if folder is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    # Not below pytest's own folder, into which another user cannot look.
    with tempfile.TemporaryDirectory(prefix="tuner-postgresql-") as place:
        if os.geteuid() == 0:
            owner = pwd.getpwnam("postgres")
            os.chown(place, owner.pw_uid, owner.pw_gid)
        secret = Path(place) / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        data = Path(place) / "data"
        subprocess.run(
            as_other_user(
                [
                    *(str(folder / "initdb"), "-D", str(data), "-U", USER, f"--pwfile={secret}"),
                    *("--auth=scram-sha-256", "--no-sync", "--locale=C", "--encoding=UTF8"),
                ]
            ),
            check=True,
            stdout=subprocess.DEVNULL,
            cwd="/",
        )
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        server = Server(folder, data, port)
        try:
            server.start()
            yield server
        finally:
            server.stop()


@pytest.fixture
def server(running_server: Server) -> Server:
    """The server, running, whatever the test before did with it."""
    if running_server._process is None or running_server._process.poll() is not None:
        running_server.start()
    return running_server
