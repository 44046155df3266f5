import fcntl
import hashlib
import logging
import resource
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tuner.download.archives import Archive
from tuner.download.fetch import Patience, fetch
from tuner.errors import TunerError
from tuner.progress import Silent

CONTENT = np.random.default_rng(0).bytes(2_500_000)
NOTHING_LEFT: list[str] = []
Download = Callable[[Archive], None]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "models" / "file.tar.gz"


@pytest.fixture
def download(target: Path, patience: Patience) -> Download:
    """Fetches to `target`."""
    return lambda archive: fetch(archive, target, Silent(), patience)


@pytest.fixture
def part(target: Path) -> Path:
    """Where what has arrived lies; its folder is there."""
    target.parent.mkdir()
    return target.with_name("file.tar.gz.part")


def names_beside(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir() if path != target)


def test_a_whole_file_arrives_and_nothing_else_is_left(serve: Any, target: Path, download: Download) -> None:
    server = serve(CONTENT)
    download(server.archive())
    assert target.read_bytes() == CONTENT
    assert names_beside(target) == NOTHING_LEFT
    assert server.asked == [None]


def test_what_is_there_is_not_fetched_again(serve: Any, target: Path, download: Download) -> None:
    server = serve(CONTENT)
    for _ in range(2):
        download(server.archive())
    assert len(server.seen) == 1
    target.write_bytes(CONTENT[:-1] + b"?")
    download(server.archive())
    assert target.read_bytes() == CONTENT


def test_megabytes_are_counted(serve: Any, target: Path, patience: Patience) -> None:
    told = []

    class Told(Silent):
        def track(self, items: Any, total: int, title: str) -> Any:
            for item in items:
                told.append((title, total))
                yield item

    server = serve(CONTENT, cuts=[1_700_000])
    fetch(server.archive(), target, Told(), patience)
    assert told == [("file.tar.gz, MB", 2)] * 2


@pytest.mark.parametrize("length", [True, False])
def test_a_cut_connection_is_taken_up_again(
    serve: Any, target: Path, download: Download, caplog: Any, length: bool
) -> None:
    server = serve(CONTENT, cuts=[1_000_000, 0, 0, 700_000], length=length)
    with caplog.at_level(logging.WARNING):
        download(server.archive())
    assert target.read_bytes() == CONTENT
    assert server.asked == [None, *["bytes=1000000-"] * 3, "bytes=1700000-"]
    assert [headers.get("If-Range") for _, headers in server.seen] == [None, *['"1"'] * 4]
    assert "trying again in 0.01 s" in caplog.text
    assert names_beside(target) == NOTHING_LEFT


def test_nothing_at_all_leaves_nothing(serve: Any, target: Path, download: Download) -> None:
    server = serve(CONTENT, stalls=4)
    with pytest.raises(TunerError, match="with 0 of 2,500,000 bytes here"):
        download(server.archive())
    assert names_beside(target) == NOTHING_LEFT


def test_after_the_last_try_a_later_call_goes_on(serve: Any, target: Path, part: Path, download: Download) -> None:
    server = serve(CONTENT, cuts=[1_000_000, 0, 0, 0])
    with pytest.raises(TunerError, match=r"with 1,000,000 of 2,500,000 bytes here; the same command goes on"):
        download(server.archive())
    assert part.read_bytes() == CONTENT[:1_000_000]
    download(server.archive())
    assert target.read_bytes() == CONTENT
    assert server.asked[-1] == "bytes=1000000-"


def test_a_server_that_goes_silent_is_asked_again(serve: Any, target: Path, download: Download) -> None:
    server = serve(CONTENT, stalls=1)
    download(server.archive())
    assert target.read_bytes() == CONTENT
    assert len(server.seen) == 2


def test_a_server_without_ranges_starts_anew(serve: Any, target: Path, download: Download) -> None:
    server = serve(CONTENT, ranges=False, etag=None, cuts=[2_000_000])
    download(server.archive())
    assert target.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=2000000-"]


def test_a_server_without_ranges_that_always_cuts_is_given_up(serve: Any, target: Path, download: Download) -> None:
    server = serve(CONTENT, ranges=False, cuts=[2_000_000] * 50)
    with pytest.raises(TunerError, match="the connection was cut, with 2,000,000 of"):
        download(server.archive())
    assert len(server.seen) == 4


@pytest.mark.parametrize(
    ("etag", "date"),
    [
        ('"2"', None),
        (None, "Fri, 02 Feb 2018 00:00:00 GMT"),
        # A weak ETag may not be used for this.
        ('W/"2"', "Fri, 02 Feb 2018 00:00:00 GMT"),
    ],
)
def test_parts_of_two_files_are_never_joined(
    serve: Any, target: Path, download: Download, etag: str | None, date: str | None
) -> None:
    before = {"etag": etag and etag.replace("2", "1"), "last_modified": date and "Thu, 01 Feb 2018 00:00:00 GMT"}
    server = serve(CONTENT[::-1], cuts=[1_000_000, 0, 0, 0], **before)
    with pytest.raises(TunerError, match="was cut"):
        download(server.archive())
    server.content, server.etag, server.last_modified = CONTENT, etag, date
    download(server.archive())
    assert target.read_bytes() == CONTENT
    assert server.seen[-1][1]["If-Range"] == (before["last_modified"] or before["etag"])


@pytest.mark.parametrize("kept", [b"", b'"2"\r\nX: y', bytes(range(1, 256))])
def test_a_version_that_is_none_starts_anew(
    serve: Any, target: Path, part: Path, download: Download, kept: bytes
) -> None:
    part.write_bytes(CONTENT[:500])
    part.with_name(f"{part.name}.version").write_bytes(kept)
    download(serve(CONTENT).archive())
    assert target.read_bytes() == CONTENT
    assert names_beside(target) == NOTHING_LEFT


def test_an_answer_with_another_part_starts_anew(serve: Any, target: Path, part: Path, download: Download) -> None:
    part.write_bytes(CONTENT[:500])
    server = serve(CONTENT, part_start=400)
    download(server.archive())
    assert target.read_bytes() == CONTENT
    assert server.asked == ["bytes=500-", None]


# What is asked of the server when the part has so many bytes.
ASKED_FOR = {2_499_999: ["bytes=2499999-"], 2_500_000: [], 2_500_001: [None]}


@pytest.mark.parametrize("held", ASKED_FOR)
def test_a_part_of_any_size_ends_as_the_file(
    serve: Any, target: Path, part: Path, download: Download, held: int
) -> None:
    part.write_bytes((CONTENT + b"?")[:held])
    server = serve(CONTENT)
    download(server.archive())
    assert target.read_bytes() == CONTENT
    assert server.asked == ASKED_FOR[held]


def test_a_range_that_the_server_refuses_starts_anew(serve: Any, target: Path, part: Path, download: Download) -> None:
    part.write_bytes(CONTENT[:500])
    server = serve(CONTENT, codes=[416])
    download(server.archive())
    assert target.read_bytes() == CONTENT
    assert server.asked == ["bytes=500-", None]


def test_redirects_are_followed_with_the_range(serve: Any, target: Path, part: Path, download: Download) -> None:
    part.write_bytes(CONTENT[:500])
    there = serve(CONTENT)
    here = serve(b"", redirects={"/file.tar.gz": "/moved", "/moved": there.address})
    download(there.archive(address=here.address))
    assert target.read_bytes() == CONTENT
    assert there.asked == ["bytes=500-"]


@pytest.mark.parametrize("location", ["/file.tar.gz", "ftp://127.0.0.1/file.tar.gz", "file:///etc/passwd"])
def test_redirects_in_a_circle_or_elsewhere_are_refused(
    serve: Any, target: Path, download: Download, location: str
) -> None:
    server = serve(CONTENT, redirects={"/file.tar.gz": location})
    with pytest.raises(TunerError, match=r"file.tar.gz: (redirected in a circle|cannot be opened: unknown url)"):
        download(server.archive())
    assert len(server.seen) <= 11
    assert names_beside(target) == NOTHING_LEFT


def test_a_missing_file_is_told_at_once(serve: Any, target: Path, download: Download) -> None:
    server = serve(CONTENT, codes=[404])
    with pytest.raises(TunerError, match=r"/file.tar.gz: the server says 404 Not Found$"):
        download(server.archive())
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"HT\x1b[2J\x07TP\r1.1 200\xa0OK\r\n\r\n", r"HT\?\[2J\?TP\?1.1 200\?OK, with 0 of"),
        (b"X" * 5000 + b"\r\n\r\n", r": X{200}, with 0 of"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", "a Content-Length of 5000 digits$"),
        (b"HTTP/1.1 206 OK\r\nContent-Range: bytes 0-1/" + b"9" * 5000 + b"\r\n\r\n", "sent another part than"),
        (b"HTTP/1.1 206 OK\r\nContent-Range: bytes " + b"9" * 5000 + b"-1/2\r\n\r\n", "sent another part than"),
        (b"HTTP/1.1 302 OK\r\nLocation: x\x1b:y\r\n\r\n", "redirected|unknown|is no address"),
    ],
    ids=["control characters", "long", "Content-Length", "total", "start", "Location"],
)
def test_whatever_a_server_answers_is_one_printable_line(
    serve: Any, download: Download, answer: bytes, message: str
) -> None:
    with pytest.raises(TunerError, match=message) as caught:
        download(serve(CONTENT, answer=answer).archive())
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


def test_a_busy_server_is_asked_again(serve: Any, target: Path, download: Download) -> None:
    server = serve(CONTENT, codes=[503, 429, 500])
    download(server.archive())
    assert len(server.seen) == 4
    assert target.read_bytes() == CONTENT


def test_a_wrong_checksum_tells_both_and_removes_the_file(serve: Any, target: Path, download: Download) -> None:
    server = serve(CONTENT)
    with pytest.raises(TunerError) as caught:
        download(server.archive(sha256="5" * 64))
    assert hashlib.sha256(CONTENT).hexdigest() in str(caught.value)
    assert "5" * 64 in str(caught.value)
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize("held", [0, 500])
def test_another_size_is_told_before_the_download(
    serve: Any, target: Path, part: Path, download: Download, held: int
) -> None:
    part.write_bytes(CONTENT[:held])
    server = serve(CONTENT)
    with pytest.raises(TunerError, match="the server's file has 2,500,000 bytes; expected 2,600,000"):
        download(server.archive(size_bytes=2_600_000))
    assert names_beside(target) == ([part.name] if held else NOTHING_LEFT)
    assert not held or part.stat().st_size == held


def test_a_body_that_ends_too_soon_is_not_the_file(serve: Any, target: Path, download: Download) -> None:
    server = serve(CONTENT, length=False)
    with pytest.raises(TunerError, match=r"of 2,500,001 bytes here"):
        download(server.archive(size_bytes=2_500_001))
    assert not target.exists()


def test_no_room_is_told_before_the_download(serve: Any, target: Path, download: Download) -> None:
    server = serve(CONTENT)
    with pytest.raises(TunerError, match=r"1,000,000,000,000.0 MB are still to come, and the disk has [\d,.]+ MB free"):
        download(server.archive(size_bytes=10**18))
    assert server.seen == []


@pytest.mark.parametrize("held", [0, 500])
@pytest.mark.parametrize("name", ["file.tar.gz.part", "file.tar.gz.part.version"])
def test_links_are_not_followed(serve: Any, part: Path, download: Download, name: str, held: int) -> None:
    mine = part.with_name("mine")
    mine.write_bytes(b"mine")
    if held:
        part.write_bytes(CONTENT[:held])
    part.with_name(name).unlink(missing_ok=True)
    part.with_name(name).symlink_to(mine)
    with pytest.raises(TunerError, match=rf"{name}: is a symbolic link; remove it$"):
        download(serve(CONTENT).archive())
    assert mine.read_bytes() == b"mine"


def test_what_fitted_is_kept_and_gone_on_from(
    serve: Any,
    target: Path,
    part: Path,
    download: Download,
    files_of_at_most: Callable[[int], None],
) -> None:
    server = serve(CONTENT)
    files_of_at_most(1_000_000)
    with pytest.raises(TunerError, match="cannot be written: File too large"):
        download(server.archive())
    assert part.read_bytes() == CONTENT[:1_000_000]
    files_of_at_most(resource.RLIM_INFINITY)
    download(server.archive())
    assert target.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000000-"]


def test_a_folder_that_cannot_be_made_is_one_line(serve: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TunerError, match=r"file/x.tar.gz.part: cannot be written: File exists"):
        fetch(serve(CONTENT).archive(), tmp_path / "file" / "x.tar.gz", Silent())


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://nowhere.invalid/x.tar.gz", "nowhere.invalid cannot be reached"),
        ("http://127.0.0.1:{closed}/x.tar.gz", "cannot be reached: Connection refused"),
        ("http://a b/x.tar.gz", "is no address"),
        ("http://[::1/x.tar.gz", "is no address"),
        ("http://127.0.0.1:port/x.tar.gz", "is no address"),
        ("http://\N{SNOWMAN}" + "x" * 70 + "/x.tar.gz", "is no address"),
        ("http:///x.tar.gz", "no host given"),
    ],
)
def test_what_cannot_be_reached_is_told_at_once(serve: Any, target: Path, address: str, message: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        archive = serve(b"x").archive(address=address.format(closed=unused.getsockname()[1]))
        with pytest.raises(TunerError, match=message):
            fetch(archive, target, Silent())


def test_two_at_once_do_not_mix(serve: Any, target: Path, part: Path, download: Download) -> None:
    with part.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(TunerError, match="another process is downloading it"):
            download(serve(CONTENT).archive())
    download(serve(CONTENT).archive())
    assert target.read_bytes() == CONTENT
