"""What ranges the tensors of a graph have."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from numpy.typing import NDArray

from tuner.model.graph_view import GraphView
from tuner.quantization.ranges import Ranges, TensorRange


@pytest.fixture(scope="session")
def observe(run: Callable[..., list[NDArray[Any]]]) -> Callable[..., Ranges]:
    """The ranges of tensors over the images of `x`: (graph, x, names of tensors)."""

    def observe_ranges(graph: GraphView, x: NDArray[Any], tensors: Iterable[str]) -> Ranges:
        names = sorted(set(tensors))
        values = run(graph, x, *names)
        return {
            name: TensorRange(value.min((1, 2)), value.max((1, 2)), shape=value.shape)
            for name, value in zip(names, values, strict=True)
        }

    return observe_ranges
