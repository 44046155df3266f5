import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tuner.errors import TunerError
from tuner.files import remove_leftovers, write_bytes, write_folder, write_text


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_folders_above_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c.bin"
    write_bytes(path, b"\x00content")
    assert path.read_bytes() == b"\x00content"
    assert names(path.parent) == ["c.bin"]


def test_text_is_utf8_and_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("old and longer than the new one")
    write_text(path, "größer\n")
    assert path.read_bytes() == "größer\n".encode()


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("untouched")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "target").read_text() == "untouched"
    assert (tmp_path / "link").read_text() == "new"


def fill_with(content: str) -> Any:
    def fill(folder: Path) -> None:
        folder.mkdir()
        (folder / "file").write_text(content)

    return fill


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    for content in ("first", "second"):
        write_folder(path, fill_with(content))
        assert (path / "file").read_text() == content
    assert names(tmp_path) == ["folder"]


def test_a_folder_that_cannot_be_put_in_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "folder"
    write_folder(path, fill_with("old"))
    rename = Path.rename

    def refuse_the_new(source: Path, target: Path) -> Any:
        if target == path and source.name == "folder":
            raise OSError(errno.EIO, "Input/output error")
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", refuse_the_new)
    with pytest.raises(TunerError, match="cannot be written: Input/output error"):
        write_folder(path, fill_with("new"))
    assert (path / "file").read_text() == "old"
    assert names(tmp_path) == ["folder"]


def test_a_folder_whose_making_fails_is_absent(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        folder.mkdir()
        (folder / "half").write_text("of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(TunerError, match="folder: cannot be written: No space left on device"):
        write_folder(tmp_path / "folder", fill)
    assert names(tmp_path) == []


@pytest.mark.parametrize("old", [None, b"old"])
def test_a_full_disk_leaves_the_old_file_or_none(
    old: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    if old is not None:
        path.write_bytes(old)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TunerError) as raised:
        write_bytes(path, b"new")
    assert str(raised.value) == f"{path}: cannot be written: No space left on device"
    assert names(tmp_path) == ([] if old is None else ["file"])
    assert old is None or path.read_bytes() == old


def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        folder.mkdir()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "folder", fill)
    assert names(tmp_path) == []


def test_what_killed_writes_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    ours = [tmp_path / ".file.a1b2c3_4", tmp_path / ".file.empty000"]
    others = [tmp_path / name for name in (".file.short", ".files.a1b2c3d4", ".file.a1b2c3d5", "file")]
    for folder in (*ours, *others):
        folder.mkdir()
    (ours[0] / "file").write_text("half")
    (others[2] / "somebody's").write_text("own")
    (tmp_path / ".file.linked00").symlink_to(ours[0])
    (tmp_path / ".file.a_file_0").write_text("")
    remove_leftovers(tmp_path, "file|another")
    assert set(names(tmp_path)) == {".file.linked00", ".file.a_file_0", *(folder.name for folder in others)}
    remove_leftovers(tmp_path / "absent", "file")


KILLED_AT_A_RENAME = """
import os, signal, sys
from pathlib import Path
from tuner.files import write_folder

def fill(folder):
    folder.mkdir()
    (folder / "file").write_text("new")

def killed(source, target, rename=Path.rename):
    if not int(sys.argv[2]) or target.name == "folder":
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(source, target)

Path.rename = killed
write_folder(Path(sys.argv[1]), fill)
"""


@pytest.mark.parametrize("renamed, content", [(0, "old"), (1, "new")])
def test_a_folder_is_never_lost_to_a_kill(renamed: int, content: str, tmp_path: Path) -> None:
    """Before the old one is moved aside, and between that and the new one's taking its place."""
    path = tmp_path / "folder"
    write_folder(path, fill_with("old"))
    killed = subprocess.run([sys.executable, "-c", KILLED_AT_A_RENAME, str(path), str(renamed)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert path.exists() == (not renamed)
    remove_leftovers(tmp_path, "folder")
    assert names(tmp_path) == ["folder"]
    assert (path / "file").read_text() == content


def test_a_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TunerError, match=r"cannot be written: (Not a directory|File exists)"):
        write_text(tmp_path / "file" / "below", "")


def test_a_file_never_replaces_a_folder(tmp_path: Path) -> None:
    write_folder(tmp_path / "folder", fill_with("kept"))
    with pytest.raises(TunerError, match="cannot be written"):
        write_text(tmp_path / "folder", "new")
    assert (tmp_path / "folder" / "file").read_text() == "kept"
