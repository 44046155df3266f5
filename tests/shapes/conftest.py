"""The scripts of the embedded default, which live outside any package."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "datasets" / "shapes"


@pytest.fixture(scope="session")
def shapes_folder() -> Path:
    return FOLDER


@pytest.fixture
def scenes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return _import_script(monkeypatch, "scenes")


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return _import_script(monkeypatch, "network")


@pytest.fixture
def learning(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return _import_script(monkeypatch, "learning")


@pytest.fixture
def make_records(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return _import_script(monkeypatch, "make_records")


def _import_script(monkeypatch: pytest.MonkeyPatch, name: str) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module(name)
