import gzip
import io
import random
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tuner.download.unpack import LARGEST_GROWTH, is_complete, unpack
from tuner.errors import TunerError

SUM = "5" * 64
NOISE = np.random.default_rng(0).bytes(200_000)
GOOD: dict[str, bytes | None] = {"top": None, "top/a.pb": NOISE, "top/saved_model/variables": None, "top/x/b": b"b"}
Pack = Callable[..., Path]


@pytest.fixture(params=["tar.gz", "zip"])
def pack(request: Any, tmp_path: Path) -> Pack:
    """Writes an archive of either kind: (name -> content, None for a folder)."""

    def write(members: dict[str, bytes | None]) -> Path:
        path = tmp_path / f"in.{request.param}"
        if request.param == "zip":
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
                for name, content in members.items():
                    zipped.writestr(name if content is not None else f"{name}/", content or b"")
        else:
            with tarfile.open(path, "w:gz") as tar:
                for name, content in members.items():
                    add(tar, name, content, tarfile.REGTYPE if content is not None else tarfile.DIRTYPE)
        return path

    return write


def add(tar: tarfile.TarFile, name: str, content: bytes | None, kind: bytes, link: str = "") -> None:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size, member.mode = kind, link, len(content or b""), 0o4777
    tar.addfile(member, io.BytesIO(content or b""))


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def only(folder: Path, *names: str) -> bool:
    """Whether nothing else is left behind."""
    return sorted(path.name for path in folder.iterdir()) == sorted(names)


def test_a_folder_is_unpacked_whole(pack: Pack, tmp_path: Path) -> None:
    archive = pack(GOOD)
    unpack(archive, tmp_path / "top", SUM)
    files = files_in(tmp_path / "top")
    assert files.pop(".unpacked")
    assert files == {"a.pb": NOISE, "x/b": b"b"}
    assert (tmp_path / "top/saved_model/variables").is_dir()
    assert not (tmp_path / "top/a.pb").stat().st_mode & stat.S_ISUID
    assert only(tmp_path, "top", archive.name)


def test_what_is_there_is_replaced(pack: Pack, tmp_path: Path) -> None:
    (tmp_path / "top").mkdir()
    (tmp_path / "top/old").touch()
    unpack(pack(GOOD), tmp_path / "top", SUM)
    assert not (tmp_path / "top/old").exists()


def test_completeness_is_seen(pack: Pack, tmp_path: Path) -> None:
    top = tmp_path / "top"
    assert not is_complete(top, SUM)
    unpack(pack(GOOD), top, SUM)
    assert is_complete(top, SUM)
    assert not is_complete(top, "6" * 64)
    (top / "x/b").write_bytes(b"")
    assert not is_complete(top, SUM)
    (top / "x/b").unlink()
    assert not is_complete(top, SUM)
    for nonsense in ("", "[]", "{}", '{"sha256": 1, "files": 2}', f'{{"sha256": "{SUM}", "files": 2}}'):
        (top / ".unpacked").write_text(nonsense)
        assert not is_complete(top, SUM)


def test_what_lies_beside_the_folder_is_left_out(pack: Pack, tmp_path: Path) -> None:
    archive = pack({**GOOD, "__MACOSX/a": b"x", "b": b"x"})
    unpack(archive, tmp_path / "top", SUM)
    assert only(tmp_path, "top", archive.name)
    with pytest.raises(TunerError, match="holds no files in other/"):
        unpack(archive, tmp_path / "other", SUM)


@pytest.mark.parametrize(
    "name", ["../out", "top/../../out", "/tmp/out", "top/..", "{outside}"], ids=lambda name: name.replace("/", "_")
)
def test_a_path_that_leads_out_is_refused(pack: Pack, tmp_path: Path, name: str) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    archive = pack({**GOOD, name.format(outside=tmp_path / "out"): b"out"})
    with pytest.raises(TunerError, match="leads out of the folder"):
        unpack(archive, inside / "top", SUM)
    assert only(inside)
    assert only(tmp_path, "inside", archive.name)


@pytest.mark.parametrize(
    ("kind", "link"),
    [
        (tarfile.SYMTYPE, "/etc"),
        (tarfile.SYMTYPE, "a.pb"),
        (tarfile.LNKTYPE, "top/a.pb"),
        (tarfile.FIFOTYPE, ""),
        (tarfile.CHRTYPE, ""),
        (tarfile.BLKTYPE, ""),
    ],
)
def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path, kind: bytes, link: str) -> None:
    archive = tmp_path / "in.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        add(tar, "top/a.pb", NOISE, tarfile.REGTYPE)
        add(tar, "top/link", None, kind, link)
        add(tar, "top/link/passwd", b"root", tarfile.REGTYPE)
    with pytest.raises(TunerError, match="'top/link' is a link or a device"):
        unpack(archive, tmp_path / "top", SUM)
    assert only(tmp_path, archive.name)


def test_links_in_a_zip_are_refused(tmp_path: Path) -> None:
    archive = tmp_path / "in.zip"
    link = zipfile.ZipInfo("top/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr(link, "/etc")
    with pytest.raises(TunerError, match="'top/link' is a link or a device"):
        unpack(archive, tmp_path / "top", SUM)
    assert only(tmp_path, archive.name)


def test_a_bomb_is_stopped_before_it_fills_the_disk(
    pack: Pack, tmp_path: Path, files_of_at_most: Callable[[int], None]
) -> None:
    archive = pack({"top/large": bytes(12_000_000)})
    # Were more than the limit and a chunk written, that would be the error.
    files_of_at_most(LARGEST_GROWTH * archive.stat().st_size + 2_000_000)
    with pytest.raises(TunerError, match=rf"unpacks to more than [\d,]+ bytes, {LARGEST_GROWTH} times its size"):
        unpack(archive, tmp_path / "top", SUM)
    assert only(tmp_path, archive.name)


def test_the_growth_of_all_files_together_counts(pack: Pack, tmp_path: Path) -> None:
    archive = pack({f"top/{index}": bytes(9_000) for index in range(200)})
    with pytest.raises(TunerError, match="unpacks to more than"):
        unpack(archive, tmp_path / "top", SUM)


def test_a_full_disk_leaves_what_was_there(pack: Pack, tmp_path: Path, files_of_at_most: Callable[[int], None]) -> None:
    archive = pack(GOOD)
    (tmp_path / "top").mkdir()
    (tmp_path / "top/old").touch()
    files_of_at_most(100_000)
    with pytest.raises(TunerError, match="top: cannot be written: File too large"):
        unpack(archive, tmp_path / "top", SUM)
    assert files_in(tmp_path / "top") == {"old": b""}
    assert only(tmp_path, "top", archive.name)


@pytest.mark.parametrize("name", ["top", "top/a.pb/b", "top/a\0b", f"top/{'n' * 300}"])
def test_names_that_no_file_can_have_are_one_line(pack: Pack, tmp_path: Path, name: str) -> None:
    try:
        archive = pack({"top/a.pb": NOISE, name: b"x"})
        unpack(archive, tmp_path / "top", SUM)
    except TunerError as error:
        assert "\n" not in str(error)
        assert not (tmp_path / "top").exists()
    else:
        assert "\0" in name  # that zip and tar end names at


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "in.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("top/a", b"a")
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(content)
    with pytest.raises(TunerError, match=r"in.zip: cannot be unpacked: .*encrypted"):
        unpack(archive, tmp_path / "top", SUM)


def test_a_damaged_lzma_member_is_one_line(tmp_path: Path) -> None:
    archive = tmp_path / "in.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_LZMA) as zipped:
        zipped.writestr("top/a", NOISE)
    content = bytearray(archive.read_bytes())
    # The properties of LZMA stand behind the name and four bytes of their version and size.
    content[content.index(b"top/a") + len(b"top/a") + 4] = 0xFF
    archive.write_bytes(content)
    with pytest.raises(TunerError, match=r"in.zip: cannot be unpacked: .*options"):
        unpack(archive, tmp_path / "top", SUM)
    assert only(tmp_path, archive.name)


def test_a_sparse_member_that_is_cut_is_one_line(tmp_path: Path) -> None:
    archive = tmp_path / "in.tar.gz"
    member = tarfile.TarInfo("top/a")
    member.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    # More of the map is to follow, and does not.
    header[482] = 1
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    archive.write_bytes(gzip.compress(header))
    with pytest.raises(TunerError, match=r"in.tar.gz: cannot be unpacked: index out of range"):
        unpack(archive, tmp_path / "top", SUM)
    assert only(tmp_path, archive.name)


def test_a_damaged_archive_is_one_line_or_whole(pack: Pack, tmp_path: Path) -> None:
    archive = pack({"top/a.pb": NOISE[:2000], "top/b": b"b" * 500})
    whole = archive.read_bytes()
    chance = random.Random(0)
    unpack(archive, tmp_path / "top", SUM)
    expected = files_in(tmp_path / "top")
    for _ in range(40):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            damaged[chance.randrange(len(whole))] = chance.randrange(256)
        archive.write_bytes(damaged[: chance.choice([len(whole), chance.randrange(len(whole))])])
        try:
            unpack(archive, tmp_path / "top", SUM)
        except TunerError as error:
            assert "\n" not in str(error)
        # Checksums of the archive's own are heeded: damage is told, or was where it does not matter.
        assert files_in(tmp_path / "top") == expected
        assert only(tmp_path, "top", archive.name)
