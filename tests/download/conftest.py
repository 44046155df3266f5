"""A real HTTP server on this machine that serves one file, and can misbehave in every way that servers do."""

import hashlib
import re
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tuner.download.archives import Archive
from tuner.download.fetch import Patience

RANGE = re.compile(r"bytes=(\d+)-")


@dataclass
class Server:
    """What is served, and how. seen: (path, headers) of each request.

    ranges: whether it knows Range. etag: of the content. length: whether it tells Content-Length.
    cuts: after how many bytes of their body the answers break off, one for each request until none is left.
    stalls: how many requests get headers and no body. codes: of the first answers, instead of the content.
    redirects: path -> Location. part_start: what a Content-Range begins with, if not with what was asked for.
    answer: what is sent instead of all that.
    """

    content: bytes
    ranges: bool = True
    etag: str | None = '"1"'
    last_modified: str | None = None
    length: bool = True
    cuts: list[int] = field(default_factory=list)
    stalls: int = 0
    codes: list[int] = field(default_factory=list)
    redirects: dict[str, str] = field(default_factory=dict)
    part_start: int | None = None
    answer: bytes | None = None
    port: int = 0
    seen: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/file.tar.gz"

    def archive(self, **changes: Any) -> Archive:
        """The file as it is served now."""
        facts = {"size_bytes": len(self.content), "sha256": hashlib.sha256(self.content).hexdigest()}
        return Archive(**{"address": self.address, "folder": "folder", **facts, **changes})

    @property
    def asked(self) -> list[str | None]:
        """The Range of each request."""
        return [headers.get("Range") for _, headers in self.seen]


def make_handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            server.seen.append((self.path, dict(self.headers)))
            if server.answer is not None:
                self.wfile.write(server.answer)
            elif server.codes:
                self.send_error(server.codes.pop(0))
            elif self.path in server.redirects:
                self.send_response(302)
                self.send_header("Location", server.redirects[self.path])
                self.end_headers()
            else:
                self._send()

        def _send(self) -> None:
            asked = RANGE.fullmatch(self.headers.get("Range", ""))
            unchanged = self.headers.get("If-Range") in (None, server.etag, server.last_modified)
            start = int(asked[1]) if asked and server.ranges and unchanged else 0
            if start >= len(server.content):
                self.send_error(416)
                return
            body, total = server.content[start:], len(server.content)
            self.send_response(206 if start else 200)
            for name, value in (("ETag", server.etag), ("Last-Modified", server.last_modified)):
                if value is not None:
                    self.send_header(name, value)
            if start:
                told = start if server.part_start is None else server.part_start
                self.send_header("Content-Range", f"bytes {told}-{total - 1}/{total}")
            if server.length:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if server.stalls:
                server.stalls -= 1
                server.released.wait(10)
                return
            cut = server.cuts.pop(0) if server.cuts else None
            self.wfile.write(body[:cut])
            if cut is not None:
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)

    return Handler


class QuietServer(ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """A client may leave whenever it likes."""


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Starts a server for some content: (content, fields of Server)."""
    running = []

    def start(content: bytes, **how: Any) -> Server:
        server = Server(content, **how)
        http = QuietServer(("127.0.0.1", 0), make_handler(server))
        server.port = http.server_port
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        running.append((server, http, thread))
        return server

    yield start
    for server, http, thread in running:
        server.released.set()
        http.shutdown()
        http.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def patience() -> Patience:
    """Four tries, close together."""
    return Patience(timeout_s=0.3, waits_s=(0.01, 0.01, 0.01))


@pytest.fixture
def files_of_at_most() -> Iterator[Callable[[int], None]]:
    """Lets no file of this process grow above some bytes, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size_bytes: resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
