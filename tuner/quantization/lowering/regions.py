"""Which tensors travel as 8-bit codes: from where values are rounded, through what only moves them, to the kernels."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tuner.model.graph_view import GraphView, tensor_name
from tuner.quantization.lowering.convolutions import Convolution
from tuner.quantization.lowering.data_movement import Carrier, find_carrier


@dataclass(frozen=True)
class Source:
    """A tensor of the float graph that is rounded to codes. kernel: the op whose kernel does it, None for QuantizeV2.

    first_channel: the number of the tensor's first channel among the channels of all sources.
    """

    tensor: str
    kernel: str | None
    channels: int
    first_channel: int

    @property
    def span(self) -> slice:
        """The source's channels among those of all sources."""
        return slice(self.first_channel, self.first_channel + self.channels)


@dataclass(frozen=True)
class Regions:
    """The tensors of a float graph that exist as codes in the int8 graph.

    sources: by tensor. carriers: what moves codes, by node name, in the order of data flow.
    channels: for each tensor of codes the numbers of its channels among those of all sources: [channels] int64.
    group: [channels of all sources] int64, equal where channels end in one tensor and so have one code type.
    """

    sources: Mapping[str, Source]
    carriers: Mapping[str, Carrier]
    channels: Mapping[str, NDArray[np.int64]]
    group: NDArray[np.int64]


def find_regions(
    graph: GraphView, wanted: Iterable[str], kernels: Mapping[str, Convolution], channels: Mapping[str, int]
) -> Regions:
    """Find all code tensors behind those that kernels read. An op that moves data does it in codes where a kernel makes
    any of them.

    wanted: the tensors that kernels read. kernels: those that can make codes, by op name.
    channels: the number of channels of every tensor that may become a source.
    """
    producers = {kernel.output: name for name, kernel in kernels.items()}
    reachable = _reachable(graph, producers)
    order: list[str] = []  # code tensors, each after those that it is made of
    made_of: dict[str, Carrier | None] = {}
    pending = [(tensor, False) for tensor in wanted]
    while pending:
        tensor, is_ready = pending.pop()
        if is_ready:
            order.append(tensor)
        elif tensor not in made_of:
            made_of[tensor] = carrier = None if tensor in producers else reachable.get(tensor)
            pending.append((tensor, True))
            if carrier is not None:
                pending.extend((read, False) for read in carrier.inputs)

    sources: dict[str, Source] = {}
    carriers: dict[str, Carrier] = {}
    numbers: dict[str, NDArray[np.int64]] = {}
    total = 0
    for tensor in order:
        carrier = made_of[tensor]
        if carrier is None:
            sources[tensor] = source = Source(tensor, producers.get(tensor), channels[tensor], total)
            numbers[tensor] = np.arange(total, total + source.channels)
            total += source.channels
        else:
            carriers[carrier.node.name] = carrier
            joined = np.concatenate([numbers[read] for read in carrier.inputs])
            numbers.update(zip(carrier.outputs, carrier.parts(joined), strict=True))
    return Regions(sources, carriers, numbers, _groups(sources, carriers, numbers, total))


def possible_sources(graph: GraphView, kernels: Mapping[str, Convolution]) -> tuple[str, ...]:
    """Every tensor that could be a source under some plan, sorted: the tensors whose ranges have to be known."""
    producers: dict[str, str] = {}
    pending: list[str] = []
    for name, kernel in kernels.items():
        producers[kernel.output] = name
        pending.append(kernel.input)
        if kernel.without_sum is not None and kernel.summand is not None:
            producers[kernel.without_sum.output] = name
            pending.append(kernel.summand)
    # Under no plan do codes reach further than when every kernel makes them.
    reachable = _reachable(graph, producers)
    found = set(producers)
    while pending:
        tensor = pending.pop()
        if tensor not in found:
            found.add(tensor)
            carrier = reachable.get(tensor)
            if carrier is not None:
                pending.extend(carrier.inputs)
    return tuple(sorted(found))


def _reachable(graph: GraphView, producers: Mapping[str, str]) -> dict[str, Carrier]:
    """The carriers that a kernel's codes can reach, by each of their output tensors."""
    found: dict[str, Carrier] = {}
    pending = list(producers)
    while pending:
        tensor = pending.pop()
        for node in graph.consumers(tensor.partition(":")[0]):
            carrier = find_carrier(graph, tensor_name(node.name))
            if carrier is None or carrier.outputs[0] in found or tensor not in carrier.inputs:
                continue
            for output in carrier.outputs:
                if output not in producers:
                    found[output] = carrier
                    pending.append(output)
    return found


def _groups(
    sources: Mapping[str, Source],
    carriers: Mapping[str, Carrier],
    channels: Mapping[str, NDArray[np.int64]],
    total: int,
) -> NDArray[np.int64]:
    group = np.arange(total)
    for source in sources.values():
        group[source.span] = source.first_channel
    # A carrier gives all that it moves one type, so what it joins is one group from end to end.
    for carrier in carriers.values():
        met = np.unique(group[np.concatenate([channels[read] for read in carrier.inputs])])
        group[np.isin(group, met)] = met[0]
    return group
