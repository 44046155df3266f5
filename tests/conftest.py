"""Fixtures that every test folder may use."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def assets() -> Path:
    """Real detectors and images that lie beside the repository on some machines; tests skip where they do not."""
    folder = (Path(__file__).parents[1] / "../shared/assets").resolve()
    if not (folder / "PROVENANCE.md").is_file():
        pytest.skip("real detectors and images (../shared/assets) are not on this machine")
    return folder
