"""Records in a bucket, by the protocol of S3 over HTTP: a server of this process, and s3fs as users have it.

Not part of the extra `test`, since they bring half a hundred packages: pip install s3fs 'moto[s3,server]'
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from tuner.address import Address
from tuner.data.dataset import open_dataset
from tuner.data.kept_ranges import FOLDER
from tuner.errors import DatasetError

pytestmark = pytest.mark.slow

SHAPES = Path(__file__).parents[2] / "datasets/shapes"


@pytest.fixture(autouse=True)
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A bucket `sets` with the embedded evaluation set below `shapes/`, in three shards; gives its file system."""
    s3fs = pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "me")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv(FOLDER, str(tmp_path / "kept"))
    s3fs.S3FileSystem.clear_instance_cache()
    # Its state is the process's.
    post(f"http://{host}:{port}/moto-api/reset")
    files = s3fs.S3FileSystem()
    files.mkdir("sets")
    for path in local_shards(tmp_path):
        files.put_file(str(path), f"sets/shapes/{path.name}")
    yield files
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def post(url: str, data: bytes = b"") -> None:
    urlopen(Request(url, data, {"Content-Type": "text/plain"})).close()


def local_shards(folder: Path) -> list[Path]:
    """The first 90 records of the embedded set, 30 in each of three files; written to a folder."""
    whole = (SHAPES / "evaluation.record").read_bytes()
    begin, paths = 0, []
    for index in range(3):
        end = begin
        for _ in range(30):
            end += 16 + int.from_bytes(whole[end : end + 8], "little")
        paths.append(folder / f"e.record-0000{index}-of-00003")
        paths[-1].write_bytes(whole[begin:end])
        begin = end
    return paths


@pytest.mark.parametrize("what", ["", "/", "/e.record-*", "/e.record-0000?-of-00003", "/e.record-00001-of-00003"])
def test_a_bucket_is_read_as_the_folder_is(tmp_path: Path, what: str) -> None:
    local = open_dataset(Path(f"{tmp_path}{what}") if what.strip("/") else tmp_path)
    remote = open_dataset(Address(f"s3://sets/shapes{what}"))
    assert remote.sha256 == local.sha256
    assert [entry.read() for entry in remote.entries] == [entry.read() for entry in local.entries]


def test_an_entry_asks_for_its_own_bytes(bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = open_dataset(Address("s3://sets/shapes")).entries
    monkeypatch.setenv(FOLDER, str(tmp_path / "of another machine"))
    asked: list[str] = []

    def remember(request: Any, **_: Any) -> None:
        asked.append(request.headers.get("Range", b"").decode())

    bucket.s3.meta.events.register("before-send.s3.GetObject", remember)
    for _ in range(3):
        assert entries[50].read() == open_dataset(tmp_path).entries[50].read()
    assert asked == [f"bytes={entries[50].offset}-{entries[50].offset + entries[50].size - 1}"]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://sets/shapes/e.record-00001-of-00004", "no such file or folder (did you mean 'e.record-0000"),
        ("s3://sets/shapes/x-*", "no such file or folder"),
        ("s3://no-such-bucket/x.record", "no such file or folder"),
    ],
)
def test_what_is_not_there_is_told(url: str, message: str) -> None:
    with pytest.raises(DatasetError, match=re.escape(f"{url}: {message}")):
        open_dataset(Address(url))


def test_a_missing_shard_is_named(bucket: Any) -> None:
    bucket.rm("sets/shapes/e.record-00001-of-00003")
    with pytest.raises(
        DatasetError, match=r"^s3://sets/shapes: e.record-\?+-of-00003: shard 00001 is missing; found 2"
    ):
        open_dataset(Address("s3://sets/shapes"))


def test_no_credentials_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    pytest.importorskip("s3fs").S3FileSystem.clear_instance_cache()
    with pytest.raises(DatasetError, match=r"^s3://sets/shapes: cannot be read: Unable to locate credentials$"):
        open_dataset(Address("s3://sets/shapes"))


def test_a_server_that_is_gone_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    pytest.importorskip("s3fs").S3FileSystem.clear_instance_cache()
    with pytest.raises(DatasetError, match=r"^s3://sets/shapes: cannot be read: .*http://127.0.0.1:1") as error:
        open_dataset(Address("s3://sets/shapes"))
    assert "\n" not in str(error.value)


def test_refused_access_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    post(f"{endpoint}/moto-api/reset-auth", b"0")
    try:
        for url in ("s3://sets/shapes", "s3://sets/shapes/e.record-*", "s3://sets/shapes/e.record-00001-of-00003"):
            pytest.importorskip("s3fs").S3FileSystem.clear_instance_cache()
            with pytest.raises(DatasetError, match=rf"^{re.escape(url)}: cannot be read: access is refused$"):
                open_dataset(Address(url))
    finally:
        post(f"{endpoint}/moto-api/reset-auth", b"inf")
