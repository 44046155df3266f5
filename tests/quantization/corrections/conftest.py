"""A chain of convolutions whose channels have weights and results of very different sizes."""

from typing import Any

import numpy as np
import pytest


@pytest.fixture
def uneven_chain(float_graph: Any) -> Any:
    """first (3x3) -> middle (depthwise or not, with Relu) -> last (3x3): a function of the middle one's op."""

    def build(middle: str = "Conv2D", activation: str | None = "Relu", *, bias: bool = True) -> Any:
        sketch = float_graph()
        sizes = np.exp2(sketch.random.uniform(-5, 5, 12)).astype(np.float32)
        weights = sketch.weights(3, 3, 8, 12) * sizes
        data = sketch.convolve(sketch.x, "first", weights=weights, bias=bias, activation=activation)
        data = sketch.convolve(data, "middle", middle, bias=bias, activation=activation)
        sketch.named(sketch.convolve(data, "last", bias=bias), "out")
        return sketch

    return build
