import hashlib
import multiprocessing
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tuner.data.kept_ranges import FOLDER, SIZE, KeptRanges, kept_ranges
from tuner.errors import DatasetError

CONTENTS = [bytes([number]) * 1000 for number in range(100)]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def put_all(folder: Path) -> None:
    ranges = KeptRanges(folder, 10**6)
    for content in CONTENTS:
        ranges.put(sha256(content), content)


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def test_what_was_put_is_there(tmp_path: Path) -> None:
    put_all(tmp_path / "deep/kept")
    ranges = KeptRanges(tmp_path / "deep/kept", 10**6)
    assert [ranges.get(sha256(content)) for content in CONTENTS] == CONTENTS
    assert ranges.get(sha256(b"other")) is None
    assert (tmp_path / "deep/kept").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("damage", [b"", CONTENTS[7][:-1], CONTENTS[8]])
def test_a_damaged_file_is_not_believed_and_makes_way(tmp_path: Path, damage: bytes) -> None:
    put_all(tmp_path)
    name = sha256(CONTENTS[7])
    (tmp_path / name).write_bytes(damage)
    ranges = KeptRanges(tmp_path, 10**6)
    assert ranges.get(name) is None
    ranges.put(name, CONTENTS[7])
    assert ranges.get(name) == CONTENTS[7]


def test_what_fits_first_is_kept_and_no_more(tmp_path: Path) -> None:
    ranges = KeptRanges(tmp_path, 10_500)
    for content in CONTENTS:
        ranges.put(sha256(content), content)
    assert size_of(tmp_path) == 10_000
    assert [ranges.get(sha256(content)) for content in CONTENTS[:11]] == [*CONTENTS[:10], None]


def test_what_earlier_processes_left_makes_room_the_oldest_first(tmp_path: Path) -> None:
    put_all(tmp_path)
    (tmp_path / "half.0123").write_bytes(b"written by a process that was killed")
    os.utime(tmp_path / "half.0123", (1, 1))
    for age_s, content in enumerate(CONTENTS, start=100):
        os.utime(tmp_path / sha256(content), (time.time() - age_s,) * 2)
    ranges = KeptRanges(tmp_path, 100_000, began_s=time.time())
    assert ranges.get(sha256(CONTENTS[99])) == CONTENTS[99]  # the oldest; now it is in use
    ranges.put(sha256(b"new" * 1000), b"new" * 1000)
    assert ranges.get(sha256(b"new" * 1000)) == b"new" * 1000
    assert size_of(tmp_path) <= 100_000 and not (tmp_path / "half.0123").exists()
    gone = [content for content in CONTENTS if not (tmp_path / sha256(content)).exists()]
    assert gone and gone == CONTENTS[99 - len(gone) : 99]


def test_several_processes_and_threads_share_a_folder(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        waiting = pool.map_async(size_of, [tmp_path])
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(put_all, [tmp_path] * 4))
        waiting.get(60)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(map(sha256, CONTENTS))


def test_a_folder_that_cannot_be_written_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    put_all(tmp_path / "file/kept")
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}/file/kept: images are not kept: Not a directory"
    ]


def test_the_environment_says_where_and_how_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path / "here"))
    monkeypatch.setenv(SIZE, "1")
    kept_ranges().put(sha256(CONTENTS[0]), CONTENTS[0])
    kept_ranges().put(sha256(bytes(2**20)), bytes(2**20))
    assert [path.name for path in (tmp_path / "here").iterdir()] == [sha256(CONTENTS[0])]
    monkeypatch.setenv(SIZE, "0")
    kept_ranges().put(sha256(CONTENTS[1]), CONTENTS[1])
    assert len(list((tmp_path / "here").iterdir())) == 1
    monkeypatch.setenv(SIZE, "4G")
    with pytest.raises(DatasetError, match=r"^TUNER_REMOTE_CACHE_MB: got '4G'; expected a whole number of MiB"):
        kept_ranges()


def test_by_default_it_is_a_folder_of_this_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FOLDER, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv(SIZE, "3")
    kept_ranges().put(sha256(CONTENTS[0]), CONTENTS[0])
    assert (tmp_path / f"tuner-images-{os.getuid()}" / sha256(CONTENTS[0])).exists()


def test_a_link_in_its_place_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FOLDER, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv(SIZE, "5")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"tuner-images-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    kept_ranges().put(sha256(CONTENTS[0]), CONTENTS[0])
    assert list((tmp_path / "elsewhere").iterdir()) == []
