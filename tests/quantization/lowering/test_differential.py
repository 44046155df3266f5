"""The contract of the lowering on random graphs: the int8 graph computes what the simulation of its plan computes.

Every case is a small graph out of the supported patterns, a plan and images. Its int8 graph is run as it is written
and as TensorFlow's graph optimisers leave it, on one thread and on two, and held against the simulation. And the
simulation is held against the float graph, within the worst that 8 bits can do: an error bound that is carried along
with every op while the graph is made, and that knows nothing of how the lowering chooses scales.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tuner.model.runner import ModelRunner
from tuner.precision import FP32, INT8, Dtype, Granularity, OpPrecision, Output, PrecisionPlan, RangeAlgorithm, Scheme
from tuner.quantization.lowering.convolutions import FEWEST_MATMUL_WEIGHTS, find_convolutions
from tuner.quantization.lowering.kernels import KERNEL_OPS
from tuner.quantization.lowering.lower import lower
from tuner.quantization.lowering.regions import possible_sources
from tuner.quantization.ranges import TensorRange
from tuner.quantization.simulation import simulate

Array = NDArray[np.float32]
Function = Callable[..., Any]

# As a share of a step: what float32 leaves of equal codes.
SAME = 1e-3
# The share of a residual sum's values that the kernel, which multiplies and adds in one go, may round the other way.
TIES_OF_SUMS = 0.01
CHANNELS = (1, 3, 7, 16, 24, 58, 116)
PER_TENSOR = OpPrecision(Dtype.INT8, Granularity.PER_TENSOR)
EXACT = OpPrecision(output=Output.EXACT)
SYMMETRIC = OpPrecision(activation_scheme=Scheme.SYM)
MEAN = OpPrecision(activation_algorithm=RangeAlgorithm.MEAN)
ZERO_PADS = [[0, 0], [1, 2], [0, 1], [0, 0]]

ACTIVATIONS: dict[str, Function] = {
    "Relu": tf.nn.relu,
    "Relu6": tf.nn.relu6,
    "LeakyRelu": tf.nn.leaky_relu,
}
# Each with what it makes of an error in its input.
FLOAT_OPS: dict[str, tuple[Function, Function]] = {
    "Sigmoid": (tf.sigmoid, lambda error: error / 4),
    "Tanh": (tf.tanh, lambda error: error),
    "SiLU": (lambda x: x * tf.sigmoid(x), lambda error: error * 1.1),
    "hard-swish": (lambda x: x * tf.nn.relu6(x + 3) / 6, lambda error: error * 1.5),
    "LeakyRelu": (tf.nn.leaky_relu, lambda error: error),
    "Softmax": (tf.nn.softmax, lambda error: np.broadcast_to(error.max(-1, keepdims=True), error.shape)),
    "AvgPool": (lambda x: tf.nn.avg_pool2d(x, 2, 1, "SAME"),) * 2,
    "Mul": (lambda x: x * np.float32(-0.7), lambda error: error * 0.7),
    "ResizeBilinear": (lambda x: tf.raw_ops.ResizeBilinear(images=x, size=[4, 5]),) * 2,
}
MOVES: dict[str, Function] = {
    "Identity": tf.identity,
    "MaxPool": lambda x: tf.nn.max_pool2d(x, 2, 1, "SAME"),
    "MaxPool with stride": lambda x: tf.nn.max_pool2d(x, 3, 2, "SAME"),
    "Pad": lambda x: tf.pad(x, ZERO_PADS),
    "Pad of nothing": lambda x: tf.pad(x, [[0, 0]] * 4),
    "MirrorPad": lambda x: tf.pad(x, [[0, 0], [1, 0], [0, 1], [0, 0]], "SYMMETRIC"),
    "ResizeNearestNeighbor": lambda x: tf.raw_ops.ResizeNearestNeighbor(images=x, size=[5, 3]),
    "Slice": lambda x: tf.slice(x, [0, 0, x.shape[2] - 1, 0], [-1, x.shape[1], 1, -1]),
    "Slice of channels": lambda x: tf.slice(x, [0, 0, 0, x.shape[3] // 3], [-1, -1, -1, -(-x.shape[3] // 3)]),
    "StridedSlice": lambda x: x[:, ::2, -3:],
    "StridedSlice of channels": lambda x: x[..., ::-2],
    "StridedSlice of an image": lambda x: x[0][tf.newaxis],
    "Reshape": lambda x: tf.reshape(tf.reshape(x, [-1, x.shape[3]]), [-1, *x.shape[1:]]),
    "Reshape of columns to channels": lambda x: tf.reshape(x, [-1, x.shape[1], 1, x.shape[2] * x.shape[3]]),
    "SpaceToDepth": lambda x: tf.nn.space_to_depth(
        tf.pad(x, [[0, 0], [0, x.shape[1] % 2], [0, x.shape[2] % 2], [0, 0]]), 2
    ),
    "ExpandDims and Squeeze": lambda x: tf.squeeze(tf.expand_dims(x, 1), [1]),
}


@dataclass(frozen=True)
class Step:
    """One pattern that is added to a graph. source, other: which tensors it reads, counted from the newest one.

    gain: how much larger than its input the result of its convolution is. kind: of the pattern, where it has kinds.
    """

    pattern: str
    source: int = 0
    other: int = 0
    kind: str = ""
    side: int = 3
    stride: int = 1
    padding: str = "SAME"
    dilation: int = 1
    channels: int = 7
    bias: bool = True
    activation: str | None = None
    weights: str = "normal"
    gain: float = 1.0
    is_output: bool = False


@dataclass(frozen=True)
class Case:
    """A graph, the images that it is run on, and a plan: decisions for the convolutions in turn."""

    steps: tuple[Step, ...]
    seed: int = 0
    channels: int = 3
    size: tuple[int, int, int] = (1, 6, 7)
    images: str = "signed"
    image_peak: float = 1.0
    plan: tuple[OpPrecision, ...] = (INT8,)
    calibrated_on: float = 1.0


@dataclass
class Graph:
    """A float graph in the making, and for each of its tensors how its error follows from those that it is made of."""

    sketch: Any
    images: Array
    tensors: list[tf.Tensor] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    read: set[str] = field(default_factory=set)
    rules: list[tuple[tuple[str, ...], tuple[str, ...], Function]] = field(default_factory=list)

    def add(self, make: Function, *inputs: tf.Tensor, error: Function | None = None) -> Any:
        """The tensor or tensors that `make` makes. error: what it makes of errors, `make` itself unless given."""
        with self.sketch.graph.as_default():
            made = make(*inputs)
        outputs = made if isinstance(made, list) else [made]
        self.read.update(tensor.name for tensor in inputs)
        names = tuple(tensor.name for tensor in inputs)
        self.rules.append((names, tuple(tensor.name for tensor in outputs), error or make))
        return made

    def keep(self, *tensors: tf.Tensor) -> None:
        self.tensors.extend(tensors)

    def pick(self, index: int) -> tf.Tensor:
        return self.tensors[-1 - index % len(self.tensors)]


def convolve(graph: Graph, data: tf.Tensor, step: Step, op: str = "Conv2D", name: str | None = None) -> tf.Tensor:
    """A convolution with its bias and activation; where an image is too small for the padding, it is SAME."""
    random = graph.sketch.random
    name = name or f"conv_{len(graph.rules)}"
    height, width, channels = data.shape[1:]
    depthwise = op != "Conv2D"
    groups = 2 if step.kind == "grouped" and channels % 2 == 0 and not depthwise else 1
    out = 1 if depthwise else step.channels + step.channels % groups
    shape = (step.side, step.side, channels // groups, out)
    weights = random.normal(0, step.gain / np.sqrt(np.prod(shape[:3])), shape).astype(np.float32)
    if step.weights == "dead channel":
        weights[(..., 0, slice(None)) if depthwise else (..., 0)] = 0
    elif step.weights == "zero":
        weights[:] = 0
    elif step.weights == "mixed":
        axis = (1, 1, -1, 1) if depthwise else (1, 1, 1, -1)
        weights *= (10 ** random.uniform(-3, 3, channels if depthwise else out)).astype(np.float32).reshape(axis)

    padding: Any = step.padding
    reach = step.dilation * (step.side - 1) + 1
    if padding == "PAD":
        data = graph.add(lambda x: tf.pad(x, ZERO_PADS), data)
        height, width, padding = height + 3, width + 1, "VALID"
    if padding == "VALID" and min(height, width) < reach:
        padding = "SAME"
    # On a depthwise convolution TensorFlow 2.21 ends the process.
    if padding == "EXPLICIT" and (depthwise or min(height, width) < reach):
        padding = "SAME"
    stride = 1 if step.dilation > 1 else step.stride
    settings = {
        "strides": [1, stride, stride, 1],
        "padding": ZERO_PADS if padding == "EXPLICIT" else padding,
        "dilations": [1, step.dilation, step.dilation, 1],
    }

    def made(x: Any, filters: Any = weights) -> Any:
        if not depthwise:
            return tf.compat.v1.nn.conv2d(x, filters, **settings, name=name)
        return tf.raw_ops.DepthwiseConv2dNative(input=x, filter=filters, **settings, name=name)

    taps = weights.shape[0] * weights.shape[1] * (1 if depthwise else weights.shape[2])
    largest = np.abs(weights).max((0, 1)).reshape(-1) if depthwise else np.abs(weights).max((0, 1, 2))

    def error(spread: Array, peak: float, precision: OpPrecision) -> Array:
        if precision.dtype is not Dtype.INT8:
            return made(spread, np.abs(weights)).numpy()
        per_channel = largest if precision.weight_granularity is Granularity.PER_CHANNEL else largest.max()
        of_input = made(spread + peak / 254, np.abs(weights)).numpy()
        return of_input + taps * per_channel * peak / 254

    error.op = name  # type: ignore[attr-defined]
    return finish(graph, graph.add(made, data, error=error), step)


def rounded(error: Array) -> Array:
    return error


def added(*errors: Array) -> Array:
    return np.sum(errors, axis=0)


def side_by_side(*errors: Array) -> Array:
    return np.concatenate(errors, -1)


# The ops in which what is float can be rounded: at the end of a kernel, and where it is joined to codes.
ROUNDING = (rounded, added, side_by_side)


def residual(graph: Graph, data: tf.Tensor, step: Step) -> None:
    """Two convolutions, a shortcut round them and, unless `other` is 0, a convolution that reads the sum.

    kind: of the shortcut, and who else reads what is added.
    """
    shortcut, _, extra = step.kind.partition(" ")
    start = data
    if shortcut == "projection":
        start = convolve(graph, data, Step("conv", side=1, channels=data.shape[-1], activation=None))
    elif shortcut == "relu":
        start = data = convolve(graph, data, Step("conv", side=3, channels=data.shape[-1], activation="Relu"))
    inner = Step("conv", side=step.side, channels=data.shape[-1], bias=step.bias, gain=step.gain)
    before = start if extra == "alias" and shortcut != "projection" else data
    if extra == "alias":
        before = graph.add(tf.identity, before)
    result = convolve(graph, before, Step("conv", side=1, channels=7, activation="Relu"))
    result = convolve(graph, result, inner)
    pair = (start, result) if step.bias else (result, start)
    result = graph.add(tf.add, *pair, error=added)
    if step.activation is not None:
        result = graph.add(ACTIVATIONS[step.activation], result, error=rounded)
    if extra in ("read", "alias"):
        read = before if extra == "alias" else start
        joined = graph.add(lambda *x: tf.concat(x, -1), read, result, error=side_by_side)
        graph.keep(convolve(graph, joined, Step("conv", channels=3)))
    if extra == "output":
        graph.outputs.append(start.name)
    graph.keep(result)
    if step.other:
        graph.keep(convolve(graph, result, Step("conv", channels=step.channels, activation="Relu")))


def dilated(graph: Graph, data: tf.Tensor, step: Step) -> tf.Tensor:
    """A dilated convolution as TF1 writes it: SpaceToBatchND, a convolution, BatchToSpaceND."""
    pads = [[2, 2 + -size % 2] for size in data.shape[1:3]]
    crops = [[0, -size % 2] for size in data.shape[1:3]]
    data = graph.add(lambda x: tf.space_to_batch_nd(x, [2, 2], pads), data)
    op = "DepthwiseConv2dNative" if step.kind == "depthwise" else "Conv2D"
    data = convolve(graph, data, Step("conv", padding="VALID", channels=step.channels, bias=False), op)
    return graph.add(lambda x: tf.batch_to_space(x, [2, 2], crops), data)


def multiply(graph: Graph, data: tf.Tensor, step: Step) -> tf.Tensor:
    """A matrix product of pixels, or whole images, and weights, with as many of these as an int8 one must have."""
    rows, columns, channels = data.shape[1:]
    if step.kind == "flattened":
        rows, columns, channels = 1, 1, rows * columns * channels
    out = max(step.channels, -(-FEWEST_MATMUL_WEIGHTS // channels))
    shape = [-1, rows, columns, out]
    name, transposed = f"matmul_{len(graph.rules)}", step.kind == "transposed"
    weights = graph.sketch.random.normal(0, step.gain / np.sqrt(channels), (channels, out)).astype(np.float32)
    data = graph.add(lambda x: tf.reshape(x, [-1, channels]), data)

    def made(x: Any) -> Any:
        return tf.matmul(x, weights.T if transposed else weights, transpose_b=transposed, name=name)

    def error(spread: Array, peak: float, precision: OpPrecision) -> Array:
        if precision.dtype is not Dtype.INT8:
            return spread @ np.abs(weights)
        per_channel = precision.weight_granularity is Granularity.PER_CHANNEL
        largest = np.abs(weights).max(0 if per_channel else None)
        return (spread + peak / 254) @ np.abs(weights) + channels * largest * peak / 254

    error.op = name  # type: ignore[attr-defined]
    data = finish(graph, graph.add(made, data, error=error), step)
    return graph.add(lambda x: tf.reshape(x, shape), data)


def finish(graph: Graph, data: tf.Tensor, step: Step) -> tf.Tensor:
    """Bias and activation."""
    if step.bias:
        bias = graph.sketch.random.normal(0, max(step.gain, 1e-3), data.shape[-1]).astype(np.float32)
        data = graph.add(lambda x: tf.nn.bias_add(x, bias), data, error=rounded)
    if step.activation is not None:
        data = graph.add(ACTIVATIONS[step.activation], data, error=rounded)
    return data


def joined(graph: Graph, data: tf.Tensor, step: Step) -> tf.Tensor:
    parts = [other for other in graph.tensors if other.shape[:3] == data.shape[:3]]
    other = parts[step.other % len(parts)]
    return graph.add(lambda *x: tf.concat(x, -1), data, other, error=side_by_side)


def build(case: Case, float_graph: Any) -> Graph:
    sketch = float_graph(case.channels, case.seed, case.size[1:])
    graph = Graph(sketch, images_of(case, (*case.size, case.channels), sketch.random))
    graph.keep(sketch.x)
    for step in case.steps:
        data = graph.pick(step.source)
        if step.pattern == "conv":
            graph.keep(convolve(graph, data, step))
        elif step.pattern == "depthwise":
            graph.keep(convolve(graph, data, step, "DepthwiseConv2dNative"))
        elif step.pattern == "move":
            graph.keep(graph.add(MOVES[step.kind], data))
        elif step.pattern == "float":
            make, error = FLOAT_OPS[step.kind]
            graph.keep(graph.add(make, data, error=error))
        elif step.pattern == "concat":
            graph.keep(joined(graph, data, step))
        elif step.pattern == "split":
            first = 1 + step.other % max(data.shape[-1] - 1, 1)
            sizes: Any = [first, data.shape[-1] - first] if first < data.shape[-1] else [first]
            if step.kind == "equal" and data.shape[-1] % 2 == 0:
                sizes = 2
            graph.keep(*graph.add(lambda x, sizes=sizes: list(tf.split(x, sizes, 3)), data))
        elif step.pattern == "matmul":
            graph.keep(multiply(graph, data, step))
        elif step.pattern == "dilated":
            graph.keep(dilated(graph, data, step))
        else:
            residual(graph, data, step)
        if step.is_output:
            graph.outputs.append(graph.tensors[-1].name)
    leaves = [tensor.name for tensor in graph.tensors if tensor.name not in graph.read]
    # Outputs are named after nodes, so later results of a Split leave through another op.
    wanted = dict.fromkeys([*leaves, *graph.outputs])
    graph.outputs = [
        name if name.endswith(":0") else graph.add(tf.identity, sketch.graph.get_tensor_by_name(name)).name
        for name in wanted
        if name != sketch.x.name
    ]
    return graph


def images_of(case: Case, shape: tuple[int, ...], random: np.random.Generator) -> Array:
    values = random.normal(0, 1, shape)
    if case.images == "positive":
        values = np.abs(values)
    elif case.images == "lopsided":
        values = np.maximum(values, -0.1)
    elif case.images == "constant":
        values = np.full(shape, 0.7)
    elif case.images == "zero":
        values = np.zeros(shape)
    elif case.images == "dead channel":
        values[..., 0] = 0
    elif case.images == "mixed":
        values = values * 10 ** random.uniform(-3, 3, shape[-1])
    return (values * case.image_peak).astype(np.float32)


def bounds(graph: Graph, plan: PrecisionPlan, exact: dict[str, Array]) -> dict[str, Array]:
    """How far each tensor can be from the float graph's at most.

    Codes are never coarser than 127 steps of the tensor's largest magnitude where they were made, and a summand that is
    raised spans at most twice that. Float32 itself is off by a few parts of a million.
    """
    errors = {graph.tensors[0].name: np.zeros_like(exact[graph.tensors[0].name])}
    peaks = {graph.tensors[0].name: float(np.abs(graph.images).max())}
    for inputs, outputs, rule in graph.rules:
        values = [errors[name] for name in inputs]
        peak = max(peaks[name] for name in inputs)
        op = getattr(rule, "op", None)
        made = rule(*values) if op is None else rule(*values, peak, plan.get(op, FP32))
        for name, error in zip(outputs, made if isinstance(made, list) else [made], strict=True):
            own = float(np.abs(exact[name]).max())
            is_new = op is not None or rule in ROUNDING
            # Codes that are moved or joined have the scales that they were made with.
            peaks[name] = own if is_new and rule is not side_by_side else max(peak, own)
            errors[name] = np.asarray(error, np.float32) + (peaks[name] / 127 if is_new else 0) + 1e-4 * own
    return errors


def inner(values: Array) -> tuple[int, ...]:
    """All axes but the first and the last."""
    return tuple(range(1, values.ndim - 1))


@dataclass(frozen=True)
class Outcome:
    """What came of a case, each by output: [N, H, W, C]. kernels: how many int8 ones there are.

    zero_points: how many tensors have codes with one. rounded: how many float tensors are rounded to codes.
    """

    exact: Sequence[Array]
    simulated: Sequence[Array]
    written: Sequence[Array]
    on_two_threads: Sequence[Array]
    shipped: Sequence[Array]
    bounds: Sequence[Array] | None
    kernels: int
    sums: bool
    zero_points: int
    rounded: int


def run_case(case: Case, float_graph: Any) -> Outcome | None:
    graph = build(case, float_graph)
    model = graph.sketch.model(*(name.removesuffix(":0") for name in graph.outputs))
    convolutions, refused = find_convolutions(model.graph)
    assert not refused
    if not graph.outputs or not convolutions:
        return None
    plan = PrecisionPlan({op: case.plan[index % len(case.plan)] for index, op in enumerate(convolutions)})
    sources = possible_sources(model.graph, convolutions)
    full = [name if ":" in name else f"{name}:0" for name in sources]
    made = (tensor for _, outputs, _ in graph.rules for tensor in outputs)
    tensors = list(dict.fromkeys([graph.sketch.x.name, *made, *full]))

    def run(view: Any, names: Sequence[str], images: Array, threads: int = 2, as_written: bool = True) -> list[Array]:
        with ModelRunner(model.with_graph(view.graph_def), threads, threads, as_written=as_written) as runner:
            return runner.fetch(names, images)

    exact = dict(zip(tensors, run(model.graph, tensors, graph.images), strict=True))
    calibration = graph.images * np.float32(case.calibrated_on)
    observed = run(model.graph, full, calibration) if case.calibrated_on != 1 else [exact[name] for name in full]
    ranges = {
        name: TensorRange(values.min(inner(values)), values.max(inner(values)), shape=values.shape)
        for name, values in zip(sources, observed, strict=True)
    }
    int8, simulation = lower(model.graph, plan, ranges), simulate(model.graph, plan, ranges)
    is_bounded = case.calibrated_on == 1 and MEAN not in plan.values()
    limits = bounds(graph, plan, exact) if is_bounded else None
    kernels = [node for node in int8.graph_def.node if node.op in KERNEL_OPS]
    return Outcome(
        [exact[name] for name in graph.outputs],
        run(simulation, graph.outputs, graph.images),
        run(int8, graph.outputs, graph.images, 1),
        run(int8, graph.outputs, graph.images, 2),
        run(int8, graph.outputs, graph.images, 2, as_written=False),
        None if limits is None else [limits[name] for name in graph.outputs],
        len(kernels),
        any(b"Sum" in node.attr["fused_ops"].list.s for node in kernels),
        sum(node.op == "UniformQuantize" for node in int8.graph_def.node),
        sum(node.op in ("QuantizeV2", "UniformQuantize") for node in int8.graph_def.node),
    )


CONVOLUTION_FIELDS: dict[str, Any] = {
    "side": st.sampled_from([3, 1, 5]),
    "stride": st.sampled_from([1, 2]),
    "padding": st.sampled_from(["SAME", "VALID", "PAD", "EXPLICIT"]),
    "dilation": st.sampled_from([1, 1, 2]),
    "channels": st.sampled_from(CHANNELS),
    "bias": st.booleans(),
    "activation": st.sampled_from(["Relu", None, "Relu6", "LeakyRelu"]),
    "weights": st.sampled_from(["normal"] * 5 + ["dead channel", "zero", "mixed"]),
    "gain": st.sampled_from([1.0] * 6 + [1e-6, 1e6]),
}
PLACE: dict[str, Any] = {
    "source": st.sampled_from([0, 0, 0, 1, 2, 3]),
    "is_output": st.sampled_from([False, False, True]),
}


def steps_of(pattern: str, kinds: Sequence[str] = ("",), **fields: Any) -> st.SearchStrategy[Step]:
    return st.builds(Step, st.just(pattern), kind=st.sampled_from(kinds), **PLACE, **fields)


RESIDUALS = steps_of(
    "residual",
    [
        f"{shortcut}{extra}"
        for shortcut in ("identity", "projection", "relu")
        for extra in ("", "", " read", " alias", " output")
    ],
    other=st.integers(0, 3),
    side=st.sampled_from([1, 3]),
    channels=st.sampled_from(CHANNELS),
    bias=st.booleans(),
    gain=st.sampled_from([1.0, 0.1]),
    activation=st.sampled_from(["Relu", "Relu", "Relu6", None]),
)
KERNELS = st.one_of(
    steps_of("conv", ("", "", "grouped"), **CONVOLUTION_FIELDS),
    steps_of("depthwise", **CONVOLUTION_FIELDS),
    steps_of(
        "matmul",
        ("", "transposed", "flattened"),
        **{key: CONVOLUTION_FIELDS[key] for key in ("channels", "bias", "activation", "gain")},
    ),
    RESIDUALS,
    RESIDUALS,
    steps_of("dilated", ("", "depthwise"), channels=st.sampled_from(CHANNELS)),
)
BETWEEN = st.one_of(
    steps_of("move", tuple(MOVES)),
    steps_of("concat", other=st.integers(0, 5)),
    steps_of("split", ("", "equal"), other=st.integers(0, 20)),
    steps_of("float", tuple(FLOAT_OPS)),
)
# Codes travel where kernels stand on either side.
STEPS = st.tuples(KERNELS, st.lists(KERNELS | BETWEEN, min_size=1, max_size=4), KERNELS).map(
    lambda drawn: (drawn[0], *drawn[1], drawn[2])
)
DECISIONS = [INT8, INT8, INT8, FP32, PER_TENSOR, EXACT, MEAN, SYMMETRIC]
CASES = st.builds(
    Case,
    STEPS,
    seed=st.integers(0, 2**16),
    channels=st.sampled_from(CHANNELS),
    size=st.tuples(st.sampled_from([1, 2]), st.integers(1, 9), st.integers(1, 9)),
    images=st.sampled_from(
        ["signed"] * 4 + ["positive", "lopsided"] * 2 + ["constant", "zero", "dead channel", "mixed"]
    ),
    image_peak=st.sampled_from([1.0] * 4 + [1e-6, 1e6]),
    plan=st.just((INT8,)) | st.lists(st.sampled_from(DECISIONS), min_size=1, max_size=5).map(tuple),
    calibrated_on=st.sampled_from([1.0, 1.0, 1.0, 0.5]),
)


def check(case: Case, float_graph: Any) -> Outcome | None:
    """One case. A step is the largest that 8 bits can have: the tensor's largest magnitude over 127."""
    outcome = run_case(case, float_graph)
    if outcome is None:
        return None
    for index, simulated in enumerate(outcome.simulated):
        exact, written = outcome.exact[index], outcome.written[index]
        step = max(np.abs(exact).max(), np.abs(simulated).max()) / 127
        difference = np.abs(written - simulated)
        assert difference.max() <= step
        assert np.mean(difference > SAME * step) <= (TIES_OF_SUMS if outcome.sums else 0)
        np.testing.assert_array_equal(written, outcome.on_two_threads[index])
        assert np.abs(outcome.shipped[index] - simulated).max() <= step
        if outcome.bounds is not None:
            assert np.all(np.abs(simulated - exact) <= outcome.bounds[index])
    return outcome


@pytest.mark.parametrize(
    "reader",
    [
        Step("conv"),
        Step("conv", bias=False, activation="Relu"),
        Step("conv", side=1, activation="LeakyRelu"),
        Step("conv", side=1, stride=2),
        Step("conv", side=5, padding="VALID"),
        Step("conv", padding="EXPLICIT", activation="Relu6"),
        Step("conv", padding="PAD", stride=2),
        Step("conv", dilation=2),
        Step("conv", stride=2, kind="grouped", channels=24),
        Step("depthwise"),
        Step("depthwise", stride=2, weights="dead channel"),
        Step("depthwise", padding="PAD", dilation=2),
        Step("dilated", kind="depthwise"),
        Step("matmul", kind="transposed"),
        Step("residual", kind="projection"),
    ],
    ids=lambda step: f"{step.pattern}-{step.side}-{step.padding}-{step.stride}-{step.kind or step.dilation}",
)
def test_zero_points(reader: Step, float_graph: Any) -> None:
    for function, plan in {"SiLU": (INT8,), "hard-swish": (PER_TENSOR, INT8), "LeakyRelu": (EXACT,)}.items():
        steps = (Step("float", kind=function), reader, Step("conv", side=1, activation="Relu"))
        outcome = check(Case(steps, channels=16, image_peak=3, plan=plan), float_graph)
        assert outcome is not None
        assert outcome.zero_points >= 1
    outcome = check(Case(steps, channels=16, image_peak=3, plan=(SYMMETRIC,)), float_graph)
    assert outcome is not None
    assert outcome.zero_points == 0


@pytest.mark.parametrize("kind", MOVES)
def test_codes_move_with_their_scales(kind: str, float_graph: Any) -> None:
    """Between kernels nothing is rounded again, and of scales that differ by orders each channel keeps its own."""
    first = Step("conv", channels=16, activation="Relu", weights="mixed")
    steps = (first, Step("move", kind=kind), Step("conv", side=1), Step("depthwise", source=1))
    outcome = check(Case(steps, size=(2, 5, 6)), float_graph)
    assert outcome is not None
    assert outcome.rounded == 1


@pytest.mark.parametrize("kind", ["", "flattened"])
def test_codes_move_in_front_of_and_behind_a_matmul(kind: str, float_graph: Any) -> None:
    first = Step("conv", channels=16, activation="Relu", weights="mixed")
    steps = (first, Step("matmul", kind=kind, channels=64, activation="LeakyRelu"), Step("depthwise"))
    outcome = check(Case(steps, size=(2, 5, 6)), float_graph)
    assert outcome is not None
    assert outcome.rounded == 1


# The second Split reads a later result of the first one, which has other channels than the first result.
UNEVEN_SPLITS = Case(
    (Step("dilated", channels=3), Step("split"), Step("split", kind="equal"), Step("conv", channels=1)),
    channels=1,
    size=(1, 1, 1),
)

# The kernel of 1x1 weights, told to pad by itself, would make results of what lies in memory.
PAD_WITHOUT_REACH = Case(
    (Step("depthwise", side=1, stride=2, padding="PAD", channels=24, activation="Relu6", is_output=True),),
    seed=32065,
    channels=16,
    size=(1, 8, 7),
    images="dead channel",
)


@example(case=PAD_WITHOUT_REACH)
@example(case=UNEVEN_SPLITS)
@settings(max_examples=200, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(case=CASES)
def test_random_graphs(case: Case, float_graph: Any) -> None:
    check(case, float_graph)


@pytest.mark.slow
@settings(max_examples=2500, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
@given(case=CASES)
def test_many_random_graphs(case: Case, float_graph: Any) -> None:
    check(case, float_graph)
