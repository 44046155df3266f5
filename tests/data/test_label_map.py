"""Files of names and numbers: what they hold, and what is said of entries that cannot be."""

from pathlib import Path

import pytest

from tuner.data.label_map import read_class_map, read_label_map
from tuner.errors import DatasetError

# Python reads it, and refuses to print it.
HUGE = "0x" + "f" * 5000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "map.yaml"


def test_names_are_text_whatever_yaml_takes_them_for(path: Path) -> None:
    path.write_text(f"person: 1\n2: 7\nyes: 3\n? {HUGE}\n: 4\n")
    assert list(read_label_map(path).values()) == [1, 7, 3, 4]
    assert set(map(type, read_label_map(path))) == {str}


@pytest.mark.parametrize("number", ["0", "-1", "true", "1.5", "x", "[]", str(2**63), HUGE])
def test_an_id_that_is_none(path: Path, number: str) -> None:
    path.write_text(f"person: {number}\n")
    with pytest.raises(DatasetError, match=r"map.yaml: person: got .{1,50}; expected an id"):
        read_label_map(path)


@pytest.mark.parametrize("entry", [f"? {HUGE}\n: 1", f"1: {HUGE}", "x: 1", "1: x"])
def test_a_class_that_is_none(path: Path, entry: str) -> None:
    path.write_text(entry)
    with pytest.raises(DatasetError, match=r"map.yaml: .{1,50}: got .{1,50}; expected `class number: category id`"):
        read_class_map(path)
