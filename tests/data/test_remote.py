"""Records at addresses: the same as by path, and what is told when they cannot be had.

`file://` and a web server of this process are read through fsspec as any other address is.
"""

import multiprocessing
import re
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from operator import methodcaller
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tuner.address import Address, Place
from tuner.cli import main
from tuner.data import frames
from tuner.data.dataset import DetectionDataset, open_dataset
from tuner.data.kept_ranges import FOLDER, SIZE
from tuner.data.records import AnnotatedJpeg, write_records
from tuner.data.remote import read_range
from tuner.errors import DatasetError

Annotated = Callable[..., AnnotatedJpeg]

ROOT = Path(__file__).parents[2]
SHAPES = ROOT / "datasets/shapes"
IDS = list(range(1, 41))


class Web(ThreadingHTTPServer):
    """A folder on the web, with ranges.

    asked: the ranges that were asked for, as (name, begin, end). statuses: name -> what is answered in its place.
    breaks: so many of the next answers end in their middle. ranges, sizes: whether it knows of these.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.folder = folder
        self.asked: list[tuple[str, int, int]] = []
        self.statuses: dict[str, int] = {}
        self.breaks = 0
        self.ranges = self.sizes = True

    @property
    def fetched_bytes(self) -> int:
        return sum(end - begin for _, begin, end in self.asked)

    def address(self, name: str, user: str = "") -> Address:
        return Address(f"http://{user}127.0.0.1:{self.server_port}/{name}")


class _Answer(BaseHTTPRequestHandler):
    server: Web

    def do_HEAD(self) -> None:
        self._answer(with_content=False)

    def do_GET(self) -> None:
        self._answer(with_content=True)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self, *, with_content: bool) -> None:
        name = self.path.strip("/").partition("?")[0]
        path = self.server.folder / name
        status = self.server.statuses.get(name, 200 if path.exists() else 404)
        if status != 200:
            self.send_error(status)
            return
        if path.is_dir():
            links = "".join(f'<a href="{one.name}">{one.name}</a>\n' for one in path.iterdir())
            content = f"<html>{links}</html>".encode()
        else:
            content = path.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked and self.server.ranges:
            begin, end = int(asked[1]), int(asked[2]) + 1
            self.server.asked.append((name, begin, end))
            content = content[begin:end]
        self.send_response(206 if asked and self.server.ranges else 200)
        if self.server.sizes:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_content and self.server.breaks and asked:
            self.server.breaks -= 1
            content = content[: len(content) // 2]
        if with_content:
            self.wfile.write(content)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    (tmp_path / "web").mkdir()
    with Web(tmp_path / "web") as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where fetched images are kept in this test."""
    monkeypatch.setenv(FOLDER, str(tmp_path / "kept"))
    return tmp_path / "kept"


@pytest.fixture
def records(tmp_path: Path, web: Web, annotated: Annotated) -> Path:
    """A folder with one set of three shards."""
    write_records(web.folder / "set/val.record", [annotated(i) for i in IDS], shards=3)
    return web.folder / "set"


def as_file(path: Path | str) -> Address:
    return Address(f"file://{path}")


def told(location: Place, **options: Any) -> str:
    """What is said of a set that cannot be opened."""
    with pytest.raises(DatasetError) as error:
        open_dataset(location, **options)
    return str(error.value)


def assert_same(one: DetectionDataset, other: DetectionDataset) -> None:
    facts = [
        [(entry.image_id, entry.name, entry.offset, entry.size, entry.category_names) for entry in dataset.entries]
        for dataset in (one, other)
    ]
    assert facts[0] == facts[1]
    assert (one.sha256, one.category_ids, one.names) == (other.sha256, other.category_ids, other.names)
    for left, right in zip(one, other, strict=True):
        np.testing.assert_array_equal(left.image, right.image)
        assert str(left.ground_truth.masks) == str(right.ground_truth.masks)
        for values in ("boxes", "category_ids", "is_crowd", "areas_px"):
            np.testing.assert_array_equal(getattr(left.ground_truth, values), getattr(right.ground_truth, values))


# The same as by path


@pytest.mark.parametrize(
    "what", ["", "/", "/val.record-*", "/val.record-0000[02]-of-00003", "/val.record-00001-of-00003"]
)
def test_a_file_address_is_read_as_the_path_is(records: Path, what: str) -> None:
    assert_same(open_dataset(as_file(f"{records}{what}")), open_dataset(Path(f"{records}{what}")))


@pytest.mark.parametrize("what", ["set/", "set/val.record-*", "set/val.record-00001-of-00003?key=1"])
def test_a_web_address_is_read_as_the_path_is(records: Path, web: Web, what: str) -> None:
    assert_same(open_dataset(web.address(what)), open_dataset(web.folder / what.partition("?")[0]))


@pytest.mark.parametrize(
    "options",
    [{"masks": True}, {"annotated": False}, {"limit": 3}, {"objects": 2}, {"label_map": {"car": 7, "cat": 8}}],
)
def test_options_are_as_by_path(tmp_path: Path, annotated: Annotated, options: dict[str, Any]) -> None:
    masks = tuple(tf.io.encode_png(np.eye(24, 32, k, np.uint8)[..., None]).numpy() for k in (0, 5))
    write_records(tmp_path / "x.record", [annotated(i, masks=masks) for i in range(1, 6)])
    assert_same(open_dataset(as_file(tmp_path / "x.record"), **options), open_dataset(tmp_path / "x.record", **options))


@pytest.mark.parametrize("chunk_bytes", [1, 7, 1000, 10**9])
def test_records_may_lie_across_the_pieces_that_are_fetched(
    tmp_path: Path, annotated: Annotated, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    monkeypatch.setattr(frames, "_CHUNK_BYTES", chunk_bytes)
    write_records(tmp_path / "two.record", [annotated(i) for i in (1, 2)])
    assert_same(open_dataset(as_file(tmp_path / "two.record")), open_dataset(tmp_path / "two.record"))


def damaged(content: bytes) -> Iterator[bytes]:
    """Every kind of damage: cut off anywhere, and a bit turned in each part of the second frame."""
    second = 16 + int.from_bytes(content[:8], "little")
    for length in (1, 7, 8, 11, 12, 13, second - 1, second + 5, second + 9, second + 20, len(content) - 1):
        yield content[:length]
    for position in (0, 3, 7, 8, 11, 12, 500):
        for bit in (1, 128):
            changed = bytearray(content)
            changed[second + position] ^= bit
            yield bytes(changed)
    yield content + b"\x00" * 9
    yield b"\x1f\x8b\x08" + content


def test_damaged_records_are_told_as_by_path(tmp_path: Path, annotated: Annotated) -> None:
    path = tmp_path / "x.record"
    write_records(path, [annotated(i) for i in (1, 2, 3)])
    for content in damaged(path.read_bytes()):
        path.write_bytes(content)
        found = [
            [str(one).removeprefix("file://") if isinstance(one, str) else one for one in frames.read_frames(place)]
            for place in (path, as_file(path))
        ]
        assert found[0] == found[1]
    path.write_bytes(b"")
    assert told(as_file(path)) == f"file://{path}: holds no usable image"


def test_bad_records_are_left_out_and_named_by_their_address(tmp_path: Path, annotated: Annotated) -> None:
    path = tmp_path / "x.record"
    write_records(path, [annotated(i) for i in (1, 2, 3)])
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert told(as_file(path)).startswith(f"file://{path}: record 1: is damaged at byte ")
    dataset = open_dataset(as_file(path), skip_bad_records=True)
    assert_same(dataset, open_dataset(path, skip_bad_records=True))
    assert [message.removeprefix("file://") for message in dataset.skipped] == list(
        open_dataset(path, skip_bad_records=True).skipped
    )


# What goes over the network


def test_each_byte_is_fetched_once_for_opening_hash_and_images(records: Path, web: Web) -> None:
    dataset = open_dataset(web.address("set/"), cache_mb=0)
    assert len(dataset.sha256) == 64
    assert [sample.image_id for sample in dataset] == [sample.image_id for sample in dataset]
    assert web.fetched_bytes == sum(path.stat().st_size for path in records.iterdir())


def test_another_process_fetches_the_ranges_of_its_entries_once(
    records: Path, web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = open_dataset(web.address("set/")).entries[5:9]
    local = [entry.read() for entry in open_dataset(records).entries[5:9]]
    web.asked.clear()
    monkeypatch.setenv(FOLDER, str(tmp_path / "of another machine"))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        for _ in range(3):
            assert pool.map(methodcaller("read"), entries) == local
    expected = [(entry.offset, entry.offset + entry.size) for entry in entries]
    assert [(begin, end) for _, begin, end in web.asked] == expected
    # One that is damaged on the disk is fetched again.
    (tmp_path / "of another machine" / entries[2].sha256).write_bytes(b"\xff\xd8 damaged")
    assert [entry.read() for entry in entries] == local
    assert [(begin, end) for _, begin, end in web.asked] == [*expected, expected[2]]


def test_where_nothing_is_kept_each_range_is_fetched_each_time(
    records: Path, web: Web, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SIZE, "0")
    entry = open_dataset(web.address("set/"), limit=1).entries[0]
    web.asked.clear()
    assert entry.read() == entry.read() == open_dataset(records, limit=1).entries[0].read()
    assert web.fetched_bytes == 2 * entry.size and not kept.exists()


def test_a_file_that_changed_is_noticed(records: Path, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SIZE, "0")
    entry = open_dataset(web.address("set/")).entries[0]
    path = records / "val.record-00000-of-00003"
    path.write_bytes(path.read_bytes().replace(b"\xff\xd8", b"\xff\xd9"))
    with pytest.raises(DatasetError, match=r"val.record-00000-of-00003: record 0: the file has changed since the set"):
        entry.read()


@pytest.mark.parametrize("breaks", [1, 2])
def test_a_connection_that_breaks_is_tried_again(records: Path, web: Web, breaks: int) -> None:
    web.breaks = breaks
    assert open_dataset(web.address("set/")).sha256 == open_dataset(records).sha256
    assert web.breaks == 0


# What is told


def test_the_rules_of_a_folder_are_those_of_a_local_one(records: Path, annotated: Annotated) -> None:
    (records / "val.record-00001-of-00003").unlink()
    assert told(as_file(records)) == f"file://{told(records)}"
    assert "val.record-?????-of-00003: shard 00001 is missing; found 2 of the shards" in told(as_file(records))
    write_records(records / "other.tfrecord", [annotated(1)])
    assert told(as_file(records)) == f"file://{told(records)}"
    assert "holds several record sets; name one of other.tfrecord, val.record-?????-of-00003" in told(as_file(records))


@pytest.mark.parametrize("name", ["val.record-00001-of-00004", "vla.record-00001-of-*", "vla.record-00001-of-00003"])
def test_what_is_not_there_is_told(records: Path, web: Web, name: str) -> None:
    assert told(as_file(records / name)) == f"file://{told(records / name)}"
    assert "no such file or folder (did you mean 'val.record-" in told(as_file(records / name))
    assert re.fullmatch(r"http://127.0.0.1:\d+/set/\S+: no such file or folder.*", told(web.address(f"set/{name}")))


def test_a_pattern_means_files(records: Path) -> None:
    assert "set-*: no such file or folder" in told(as_file(records.parent / "set-*"))
    assert "se*: no such file or folder" in told(as_file(records.parent / "se*"))


@pytest.mark.parametrize("name", ["", "/instances.json"])
def test_of_addresses_only_records_are_read(tmp_path: Path, name: str) -> None:
    assert re.search("of addresses nothing else is read|only TFRecords are read", told(as_file(f"{tmp_path}{name}")))
    with pytest.raises(DatasetError, match="only TFRecords are read; images with a JSON have to be local"):
        open_dataset(as_file(tmp_path / "x.record"), annotations=Path("x.json"))


@pytest.mark.parametrize("status", [401, 403])
def test_refused_access_is_told_without_secrets(records: Path, web: Web, status: int) -> None:
    web.statuses["set/val.record-00001-of-00003"] = status
    address = web.address("set/val.record-00001-of-00003?X-Signature=abc", user="me:secret@")
    assert told(address) == (
        f"http://me:***@127.0.0.1:{web.server_port}/set/val.record-00001-of-00003?X-Signature=***: "
        "cannot be read: access is refused"
    )


def test_a_server_in_trouble_is_told_without_secrets(records: Path, web: Web) -> None:
    web.statuses["set/val.record-00001-of-00003"] = 500
    message = told(web.address("set/val.record-00001-of-00003?X-Signature=abc", user="me:secret@"))
    assert "cannot be read: 500, message='Internal Server Error'" in message
    assert "secret" not in message and "abc" not in message


def test_no_server_is_told() -> None:
    message = told(Address("http://127.0.0.1:1/val.record"))
    assert re.match(r"http://127.0.0.1:1/val.record: cannot be read: .*Connect", message) and "\n" not in message


def test_a_connection_that_always_breaks_is_told(records: Path, web: Web) -> None:
    web.breaks = 10**6
    message = told(web.address("set/val.record-00001-of-00003"))
    assert re.match(r"http://127.0.0.1:\d+/set/val.record-00001-of-00003: cannot be read: .+", message)
    assert len(web.asked) == 3


def test_a_server_without_ranges_or_sizes_is_told(records: Path, web: Web) -> None:
    name = "set/val.record-00001-of-00003"
    web.ranges = False
    with pytest.raises(DatasetError, match="the server sends whole files, not the range asked for"):
        read_range(web.address(name), 10, 20)
    web.sizes = False
    assert told(web.address(name)).endswith("cannot be read: the server does not tell the file's size")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("oci://bucket@space/x", "oci://bucket@space/x: oci:// needs ocifs: pip install ocifs"),
        ("s33://bucket/x", "s33://bucket/x: fsspec knows no protocol 's33' (did you mean 's3'?)"),
        ("http://me:***@host/x", "http://me:***@host/x: its password is not kept in files; name the set with "),
    ],
)
def test_an_address_of_no_use_is_told(url: str, message: str) -> None:
    assert told(Address(url)).startswith(message)


def test_without_fsspec_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    assert told(Address("s3://b/x")) == "s3://b/x: an address needs fsspec: pip install 'tuner[remote]'"


# From the command line


def run(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main(["evaluate", str(SHAPES / "detector.pb"), *arguments])
    return (code, *capsys.readouterr())


def test_evaluate_prints_the_same_of_an_address_and_of_a_path(
    tmp_path: Path, web: Web, capsys: pytest.CaptureFixture[str]
) -> None:
    path = web.folder / "e.record"
    whole = (SHAPES / "evaluation.record").read_bytes()
    end = 0
    for _ in range(25):
        end += 16 + int.from_bytes(whole[end : end + 8], "little")
    path.write_bytes(whole[:end])
    found = []
    for location in (path, as_file(path).url, web.address("e.record").url):
        code, out, _ = run(f"--dataset_location={location}", "--quiet", capsys=capsys)
        assert code == 0
        found.append([line for line in out.splitlines() if re.search("AP|images", line)])
    assert found[0] == found[1] == found[2] and len(found[0]) > 5


def test_settings_name_addresses_and_show_them_without_secrets(
    tmp_path: Path, web: Web, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.yaml").write_text(
        "model: {name: m}\nevaluation: {accuracy: {metric: {COCOmAP: {}}, dataloader: {dataset: {COCORecord: "
        f"{{root: '{web.address('gone.record', user='me:secret@').url}'}}}}}}}}}}\n"
    )
    code, out, err = run(f"--config={tmp_path}/a.yaml", "--quiet", capsys=capsys)
    assert (code, out) == (2, "")
    assert err == f"error: http://me:***@127.0.0.1:{web.server_port}/gone.record: no such file or folder\n"


@pytest.mark.parametrize("location", ["http://127.0.0.1:1/x", "s33://b/x", "zip://a::s3://b", "file:///x.json"])
def test_an_address_that_cannot_be_read_is_one_line_and_exit_code_2(
    location: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(f"--dataset_location={location}", "--quiet", capsys=capsys)
    assert (code, out, err.count("\n")) == (2, "", 1) and err.startswith(f"error: {location}: ")
