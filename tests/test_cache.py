"""Results on disk: they come back as they were, or not at all."""

from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tuner.cache import Cache
from tuner.errors import TunerError

ARRAYS = {
    "lows:scope/a:0": np.arange(6, dtype=np.float32).reshape(2, 3),
    "counts": np.array([2**40, 1], np.int64),
    "empty": np.zeros((0, 4), np.int8),
}
CONTENT = {"a": [1, 2.5, None], "b": {"c": "text"}, "third": 1 / 3}


def only_file(folder: Path) -> Path:
    (file,) = (path for path in folder.rglob("*") if path.is_file())
    return file


def test_values_come_back(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    assert cache.read_json("kind", ["a", "b"]) is None
    cache.write_json("kind", ["a", "b"], CONTENT)
    assert cache.read_json("kind", ["a", "b"]) == CONTENT
    assert cache.read_json("kind", ["ab"]) is None
    assert cache.read_json("another", ["a", "b"]) is None
    assert only_file(tmp_path).parent.name == "kind"


def test_arrays_come_back(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    assert cache.read_arrays("kind", ["a"]) is None
    cache.write_arrays("kind", ["a"], ARRAYS)
    found = cache.read_arrays("kind", ["a"])
    assert found is not None and list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


def test_a_cache_that_does_not_read_still_writes(tmp_path: Path) -> None:
    Cache(tmp_path, reads=False).write_json("kind", ["a"], CONTENT)
    assert Cache(tmp_path, reads=False).read_json("kind", ["a"]) is None
    assert Cache(tmp_path).read_json("kind", ["a"]) == CONTENT


@pytest.mark.parametrize("arrays", [False, True])
def test_a_damaged_file_is_as_good_as_none(tmp_path: Path, arrays: bool) -> None:
    """Whichever byte is wrong, and wherever the file ends: what was kept, or nothing."""
    cache = Cache(tmp_path)
    if arrays:
        cache.write_arrays("kind", ["a"], ARRAYS)
    else:
        cache.write_json("kind", ["a"], CONTENT)
    path = only_file(tmp_path)
    content = path.read_bytes()
    damaged = [content[:end] for end in range(0, len(content), 3)]
    damaged += [content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :] for at in range(len(content))]
    damaged += [b"nothing of the kind", b"[]", b'{"sha256": 1}']
    lost = 0
    for bad in damaged:
        path.write_bytes(bad)
        found: Any = cache.read_arrays("kind", ["a"]) if arrays else cache.read_json("kind", ["a"])
        lost += found is None
        if found is not None and arrays:
            assert all(np.array_equal(found[name], array) for name, array in ARRAYS.items() if name in found)
        elif found is not None:
            assert found == CONTENT
    assert lost > len(damaged) / 2


@pytest.mark.parametrize("kind", ["kind", "another"])
def test_the_file_of_another_result_is_foreign(tmp_path: Path, kind: str) -> None:
    """Whole, but copied into the place of what this one depends on."""
    cache = Cache(tmp_path)
    cache.write_json("kind", ["a"], CONTENT)
    cache.write_arrays("kind", ["a"], ARRAYS)
    for path in list((tmp_path / "kind").iterdir()):
        (tmp_path / kind).mkdir(exist_ok=True)
        path.rename(tmp_path / kind / f"{sha256(b'b').hexdigest()}{path.suffix}")
    assert cache.read_json(kind, ["b"]) is None
    assert cache.read_arrays(kind, ["b"]) is None


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "kind").write_text("a file")
    with pytest.raises(TunerError, match="cannot be written"):
        Cache(tmp_path).write_json("kind", ["a"], CONTENT)
