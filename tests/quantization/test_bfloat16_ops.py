from typing import Any

from tuner.quantization.bfloat16_ops import STAYS_FLOAT, bfloat16_products, float_products, quantize_to_bfloat16
from tuner.quantization.quantize import prepare


def test_what_gains_is_bf16_and_the_rest_says_why(float_graph: Any) -> None:
    sketch = float_graph(channels=3, size=(24, 24))
    y = sketch.convolve(sketch.x, "image", out=64, bias=True)
    y = sketch.convolve(sketch.convolve(y, "wide", out=128, bias=True), "deep", out=128, bias=True)
    sketch.named(y, "out")
    prepared = prepare(sketch.model())
    made = quantize_to_bfloat16(prepared)
    assert (made.names, made.refused) == (("wide", "deep"), {"image": STAYS_FLOAT})
    assert float_products(prepared.graph) == ["image", "wide", "deep"]
    assert float_products(made.model.graph) == ["image"]
    assert sorted(bfloat16_products(made.model.graph)) == ["deep", "wide"]
