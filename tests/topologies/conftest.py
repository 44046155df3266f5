"""The topologies of the Object Detection API's model zoo, as large as they are there."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.topologies.exports import export


@pytest.fixture(scope="session")
def od_graph() -> Callable[[str], Path]:
    """The folder of a topology's export, by its name: frozen graph, checkpoint and SavedModel with random weights.

    Made on demand, in one to three minutes, and kept outside of the repository.
    """
    return export
