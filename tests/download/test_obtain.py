import fcntl
import io
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tuner.download.archives import COCO_ANNOTATIONS, COCO_IMAGES, MODELS
from tuner.download.fetch import Patience
from tuner.download.obtain import obtain
from tuner.errors import TunerError
from tuner.progress import Silent


@pytest.fixture(scope="module")
def packed() -> bytes:
    """An archive of folder/graph.pb."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        member = tarfile.TarInfo("folder/graph.pb")
        member.size = 1_500_000
        tar.addfile(member, io.BytesIO(np.random.default_rng(0).bytes(member.size)))
    return file.getvalue()


def test_an_archive_becomes_a_folder_once(serve: Any, packed: bytes, tmp_path: Path, patience: Patience) -> None:
    server = serve(packed)
    assert obtain(server.archive(), tmp_path, Silent(), patience=patience)
    assert not obtain(server.archive(), tmp_path, Silent(), patience=patience)
    assert len(server.seen) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert (tmp_path / "folder/graph.pb").stat().st_size == 1_500_000


def test_it_goes_on_from_wherever_it_was_stopped(serve: Any, packed: bytes, tmp_path: Path, patience: Patience) -> None:
    server = serve(packed, cuts=[1_000_000, 0, 0, 0])
    with pytest.raises(TunerError, match="was cut"):
        obtain(server.archive(), tmp_path, Silent(), patience=patience)
    assert obtain(server.archive(), tmp_path, Silent(), patience=patience)
    # Stopped between the download and the unpacking:
    (tmp_path / "folder/graph.pb").unlink()
    (tmp_path / "folder/.unpacked").unlink()
    (tmp_path / "folder").rmdir()
    (tmp_path / "file.tar.gz").write_bytes(packed)
    asked = len(server.seen)
    assert obtain(server.archive(), tmp_path, Silent(), patience=patience)
    assert len(server.seen) == asked


def test_a_folder_of_another_origin_is_left_alone(
    serve: Any, packed: bytes, tmp_path: Path, patience: Patience
) -> None:
    server = serve(packed)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/mine").touch()
    for fresh in (False, True):
        with pytest.raises(TunerError, match=r"folder: was not unpacked by this command: move it away, or choose"):
            obtain(server.archive(), tmp_path, Silent(), fresh=fresh, patience=patience)
    assert server.seen == []
    assert (tmp_path / "folder/mine").exists()


def test_a_folder_that_has_changed_is_replaced_where_asked(
    serve: Any, packed: bytes, tmp_path: Path, patience: Patience
) -> None:
    server = serve(packed)
    obtain(server.archive(), tmp_path, Silent(), patience=patience)
    (tmp_path / "folder/graph.pb").write_bytes(b"")
    with pytest.raises(TunerError, match=r"folder: is there, but was not unpacked from file.tar.gz .*--fresh"):
        obtain(server.archive(), tmp_path, Silent(), patience=patience)
    assert len(server.seen) == 1
    assert obtain(server.archive(), tmp_path, Silent(), fresh=True, patience=patience)
    assert (tmp_path / "folder/graph.pb").stat().st_size == 1_500_000


def test_what_a_killed_process_left_is_removed(serve: Any, packed: bytes, tmp_path: Path, patience: Patience) -> None:
    mine = [tmp_path / ".folder.mine", tmp_path / ".folder.12345678", tmp_path / ".other.12345678"]
    for path in mine:
        path.mkdir()
    (mine[1] / "mine").touch()
    (tmp_path / ".folder.a_cdefg8/folder").mkdir(parents=True)
    (tmp_path / ".folder.a_cdefg8/folder/graph.pb").touch()
    obtain(serve(packed).archive(), tmp_path, Silent(), patience=patience)
    assert sorted(tmp_path.iterdir()) == sorted([*mine, tmp_path / "folder"])


def test_another_process_may_be_quicker(serve: Any, packed: bytes, tmp_path: Path, patience: Patience) -> None:
    archive = serve(packed).archive()

    class Overtaken(Silent):
        """Another process has it all done when this one begins to unpack."""

        def stage(self, name: str) -> Any:
            if name == "unpack":
                obtain(archive, tmp_path, Silent(), patience=patience)
            return super().stage(name)

    assert not obtain(archive, tmp_path, Overtaken(), patience=patience)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_two_do_not_unpack_at_once(serve: Any, packed: bytes, tmp_path: Path, patience: Patience) -> None:
    path = tmp_path / "file.tar.gz"
    path.write_bytes(packed)
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(TunerError, match=r"file.tar.gz: another process is unpacking it"):
            obtain(serve(packed).archive(), tmp_path, Silent(), patience=patience)


def test_the_table_is_well_formed() -> None:
    archives = [*MODELS.values(), *COCO_IMAGES.values(), COCO_ANNOTATIONS]
    assert len(archives) == len({archive.sha256 for archive in archives}) == 9
    for archive in archives:
        assert re.fullmatch(r"[0-9a-f]{64}", archive.sha256)
        assert re.fullmatch(
            r"http://(download\.tensorflow|images\.cocodataset)\.org/\S+\.(tar\.gz|zip)", archive.address
        )
        assert archive.size_bytes > 10**7
    assert MODELS["ssd_mobilenet_v1"].at("https://mirror/x/").address == (
        "https://mirror/x/ssd_mobilenet_v1_coco_2018_01_28.tar.gz"
    )
