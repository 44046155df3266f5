"""One model on one page: what it consists of, how much it computes, and what of it could be int8 or bf16."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tuner.errors import ModelError
from tuner.graph.summary import Flops, GraphFacts, count_flops, graph_facts
from tuner.model.detection_model import DetectionModel
from tuner.quantization.bfloat16_ops import bfloat16_products, float_products, quantize_to_bfloat16
from tuner.quantization.lowering.kernels import KERNEL_OPS
from tuner.quantization.quantize import find_quantizable_ops, prepare


@dataclass(frozen=True)
class Precisions:
    """Convolutions and matrix products by what they compute in, and what those in float could compute in.

    int8, bf16, fp32: how many there are now. int8_possible, bf16_possible: names of those in float that could be.
    int8_refused, bf16_refused: op name -> why not.
    """

    int8: int
    bf16: int
    fp32: int
    int8_possible: tuple[str, ...]
    int8_refused: Mapping[str, str]
    bf16_possible: tuple[str, ...]
    bf16_refused: Mapping[str, str]


@dataclass(frozen=True)
class Summary:
    """All that `tuner summarize` tells. flops: or, where the model does not run, why not."""

    facts: GraphFacts
    flops: Flops | str
    precisions: Precisions

    def to_json(self) -> dict[str, Any]:
        """The summary as a JSON object; sizes in bytes, one multiply-accumulate as 2 operations."""
        flops = self.flops
        return {
            **asdict(self.facts),
            "flops": None
            if isinstance(flops, str)
            else {
                "total": flops.total,
                "by_op": dict(flops.by_op),
                "input_shapes": [list(shape) for shape in flops.shapes],
                "uncounted": list(flops.uncounted),
            },
            "flops_unknown": flops if isinstance(flops, str) else None,
            "precisions": asdict(self.precisions),
        }


def summarize(model: DetectionModel, shape: Sequence[int] | None = None) -> Summary:
    """Look at a model from all sides; it is run once, on zeros.

    shape: of the first input, for the operations. Raises ModelError for a shape that the input does not take; a model
    that does not run here, for another reason, is summarised without operations.
    """
    return Summary(graph_facts(model), _flops(model, shape), _precisions(model))


def _flops(model: DetectionModel, shape: Sequence[int] | None) -> Flops | str:
    try:
        return count_flops(model, shape)
    except ModelError as error:
        if shape is not None:
            raise
        return str(error)


def _precisions(model: DetectionModel) -> Precisions:
    prepared = prepare(model)
    ops = find_quantizable_ops(prepared)
    bfloat16 = quantize_to_bfloat16(prepared)
    counts = Counter(node.op for node in model.graph_def.node)
    return Precisions(
        int8=sum(counts[op] for op in KERNEL_OPS),
        bf16=len(bfloat16_products(model.graph)),
        fp32=len(float_products(model.graph)),
        int8_possible=ops.names,
        int8_refused=dict(ops.refused),
        bf16_possible=bfloat16.names,
        bf16_refused=bfloat16.refused,
    )
