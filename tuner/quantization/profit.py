"""Which operators gain nothing from int8 where they are: alone between float ops, they pay for two borders."""

import numpy as np

from tuner.model.detection_model import DetectionModel
from tuner.precision import PrecisionPlan
from tuner.quantization.lowering.codes import Codes, QuantizedConvolution, decide_codes
from tuner.quantization.ranges import Ranges

# Measured with two threads on a CPU with AVX512-VNNI (docs/kernels.md): what a call costs, and each thousand products.
FLOAT_CALL_US, FLOAT_US_PER_KILOPRODUCT = 45.0, 0.008
CONVOLUTION_CALL_US, MATMUL_CALL_US, INT8_US_PER_KILOPRODUCT = 50.0, 20.0, 0.0025
# Of a border: what an op costs, and each thousand values. Depthwise inputs are scaled by a Mul first.
QUANTIZE_US, QUANTIZE_US_PER_KILOVALUE = 25.0, 0.45
SCALE_US, SCALE_US_PER_KILOVALUE = 8.0, 0.2
DEQUANTIZE_US, DEQUANTIZE_US_PER_KILOVALUE = 22.0, 0.12


def find_unprofitable(prepared: DetectionModel, plan: PrecisionPlan, ranges: Ranges) -> dict[str, str]:
    """The int8 operators of a plan that would take less time in float, with the reason.

    Only an op alone is judged: nothing else reads its input as codes, and nothing reads its result as codes. An op
    between two int8 ops is worth it even when it gains nothing itself. ranges: with the shapes that were observed.
    """
    codes = decide_codes(prepared.graph, plan, ranges)
    found: dict[str, str] = {}
    for name, quantized in codes.kernels.items():
        if quantized.output is None and _has_its_own_border(codes, quantized):
            saved_us, border_us = _saved_us(quantized, ranges), _border_us(quantized, ranges)
            if saved_us is not None and border_us is not None and saved_us < border_us:
                found[name] = "alone between float ops, int8 would save less time than rounding takes"
    return found


def _has_its_own_border(codes: Codes, quantized: QuantizedConvolution) -> bool:
    tensor = quantized.convolution.input
    source = codes.regions.sources.get(tensor)
    readers = [kernel for kernel in codes.kernels.values() if kernel.convolution.input == tensor]
    moved = any(tensor in carrier.inputs for carrier in codes.regions.carriers.values())
    return source is not None and source.kernel is None and len(readers) == 1 and not moved


def _values(tensor: str, ranges: Ranges) -> float | None:
    """Thousands of values in a tensor, as observed."""
    shape = ranges[tensor].shape
    return float(np.prod(shape)) / 1000 if shape else None


def _saved_us(quantized: QuantizedConvolution, ranges: Ranges) -> float | None:
    convolution = quantized.convolution
    made = _values(convolution.output, ranges)
    if made is None:
        return None
    if convolution.is_depthwise:
        # Bound by memory and by what a call costs: as fast in float.
        return 0.0
    products = made * float(np.prod(convolution.weights.shape[:3]))
    call_us = MATMUL_CALL_US if quantized.is_matmul else CONVOLUTION_CALL_US
    return FLOAT_CALL_US - call_us + products * (FLOAT_US_PER_KILOPRODUCT - INT8_US_PER_KILOPRODUCT)


def _border_us(quantized: QuantizedConvolution, ranges: Ranges) -> float | None:
    read, made = _values(quantized.convolution.input, ranges), _values(quantized.convolution.output, ranges)
    if read is None or made is None:
        return None
    border_us = QUANTIZE_US + read * QUANTIZE_US_PER_KILOVALUE
    if not quantized.scale.is_uniform:
        border_us += SCALE_US + read * SCALE_US_PER_KILOVALUE
    # The matrix product writes floats itself.
    return border_us if quantized.is_matmul else border_us + DEQUANTIZE_US + made * DEQUANTIZE_US_PER_KILOVALUE
