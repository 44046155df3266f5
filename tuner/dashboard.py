"""Optuna's dashboard on a run's record, for this machine only, and only to look."""

import hashlib
import io
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from tuner.errors import ConfigError, TunerError
from tuner.report.html.page import page_and_pictures
from tuner.run_record import read_run
from tuner.study_storage import open_storage

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

HOST = "127.0.0.1"
INSTALL = "pip install 'tuner[dashboard]'"


def find_storage(workspace: Path, storage: str | None = None) -> str:
    """The SQLAlchemy URL of the study: `storage`, else study.db in the workspace, else what the run says it used.

    Raises ConfigError for a folder in which no run left its record.
    """
    file = workspace / "study.db"
    if storage is None:
        storage = f"sqlite:///{file.resolve()}" if file.is_file() else read_run(workspace).facts.storage
    # A database that is not there would be made.
    path = storage.removeprefix("sqlite:///")
    if path != storage and not Path(path).is_file():
        raise ConfigError(f"{path}: no such file; expected the study of a run")
    return storage


def report_files(workspace: Path) -> dict[str, str]:
    """File name -> content: the report as of now, and its pictures; nothing where the workspace has no record."""
    try:
        return page_and_pictures(read_run(workspace))
    except ConfigError:
        return {}


def serve(storage: str, port: int, announce: Callable[[str], None], files: Mapping[str, str]) -> None:
    """Show the studies on a storage until Ctrl-C, which raises KeyboardInterrupt.

    files: file name -> content, of what is shown as artifacts of the latest run; the storage stays as it is.
    port: 0 for any that is free. announce: is told the address once it answers.
    Raises TunerError where the dashboard is not installed, the storage cannot be read, or the port is in use.
    """
    try:
        # Only here: it is an extra.
        from optuna_dashboard import wsgi  # noqa: PLC0415
    except ImportError as error:
        raise TunerError(f"dashboard: optuna-dashboard is not installed; install it with: {INSTALL}") from error
    # Not to be guessed: the dashboard lets pages of any site read an artifact whose address they know.
    keys = {name: hashlib.sha256(content.encode()).hexdigest() for name, content in files.items()}
    store = _Artifacts({keys[name]: content for name, content in files.items()})
    application = _read_only(wsgi(open_storage(storage, {key: name for name, key in keys.items()}), store))
    try:
        server = make_server(HOST, port, application, _Server, _Quiet)
    except OSError as error:
        raise TunerError(f"--port: {port} on {HOST} cannot be used: {error.strerror or error}") from error
    with server:
        announce(f"http://{HOST}:{server.server_port}/dashboard/")
        server.serve_forever()


class _Artifacts:
    """Texts by their ids, in the form in which the dashboard asks for files."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = texts

    def open_reader(self, artifact_id: str) -> io.BytesIO:
        return io.BytesIO(self._texts[artifact_id].encode())

    def write(self, artifact_id: str, content_body: object) -> None:
        raise TypeError("the dashboard only shows")

    def remove(self, artifact_id: str) -> None:
        raise TypeError("the dashboard only shows")


class _Server(ThreadingMixIn, WSGIServer):
    """Browsers open connections ahead of their requests; each has a thread of its own."""

    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    """Says nothing of each request."""

    def log_message(self, *_: Any) -> None:
        return


def _read_only(application: "WSGIApplication") -> "WSGIApplication":
    """The study is the only record of a run: the dashboard's own deletes, renames and notes are refused."""

    def guarded(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return application(environ, start_response)
        start_response("405 Method Not Allowed", [("Content-Type", "application/json"), ("Allow", "GET, HEAD")])
        return [b'{"reason": "This is the record of a run: it can be looked at, and not changed."}']

    return guarded
