import json
from pathlib import Path
from typing import Any

import pytest

from tuner.comparison.sides import Given, find_given
from tuner.errors import ConfigError


def workspace(folder: Path, **changes: Any) -> Path:
    found = {"best": {"output_model": "out/q.pb"}, "model": {"path": "in/f.pb"}, **changes}
    (folder / "result.json").write_text(json.dumps(found))
    return folder


def test_a_model_is_itself(tmp_path: Path) -> None:
    for path in (tmp_path / "q.pb", tmp_path):
        assert find_given(path) == Given(path, path, path)


def test_a_workspace_is_the_model_that_its_run_wrote(tmp_path: Path) -> None:
    given = find_given(workspace(tmp_path))
    assert given == Given(tmp_path, Path("out/q.pb"), Path("in/f.pb"), tmp_path / "plan.yaml")


@pytest.mark.parametrize(
    ("changes", "said"), [({"best": None}, "has written no model"), ({"model": 3}, "is no run's result: TypeError")]
)
def test_a_run_without_a_model(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        find_given(workspace(tmp_path, **changes))


def test_a_run_that_has_not_ended(tmp_path: Path) -> None:
    (tmp_path / "study.db").touch()
    with pytest.raises(ConfigError, match=r"has not ended: no result\.json"):
        find_given(tmp_path)
