"""Channel shuffles cost little when convolutions write their channels in the order in which they are needed."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import tensorflow as tf
from tensorflow.core.framework.node_def_pb2 import NodeDef

from tuner.model.graph_view import GraphView, tensor_name
from tuner.quantization.lowering.channel_flow import Channel, ChannelFlow, Channels, Order, Reader, trace_channels
from tuner.quantization.nodes import const_node, op_node

# What a channel is needed for: the set of channels it is read in, the reader whose result has the same order, and the
# class of the channel in that result. Channels with equal uses stay side by side.
Use = tuple[frozenset[Channel], str, int]
Uses = Mapping[Channel, set[Use]]


def fold_channel_shuffles(graph: GraphView) -> GraphView:
    """Drop shuffles, Reshape-Transpose-Reshape: each convolution writes side by side what is read together.

    A tensor that is read in parts is cut once, by a SplitV, and a reader of several parts has them joined by one
    ConcatV2. Convolutions and channelwise ops keep their names and get constants in the order of what they read; what
    needs the original order gets it by a GatherV2. Left alone: networks of tensors that need no fewer gathers than
    they have shuffles. Tensors of a changed network have their channels in another order than before.
    """
    flow = trace_channels(graph)
    if not flow.shuffles:
        return graph
    networks = _find_networks(flow)
    shuffles = Counter(networks[flow.channels[tensor][0][0]] for tensor in flow.shuffles)
    trial = _Rewrite.of(graph, flow, {tensor for tensor, network in networks.items() if network in shuffles})
    gathers = Counter(networks[tensor] for tensor in trial.gathered)
    kept = {tensor for tensor, network in networks.items() if gathers[network] < shuffles[network]}
    rewrite = _Rewrite.of(graph, flow, kept)
    return graph.replace(rewrite.removed, rewrite.added)


def _find_networks(flow: ChannelFlow) -> dict[str, str]:
    """For every tensor with channels of its own, one tensor that stands for all whose orders depend on each other."""
    parents = {tensor: tensor for channels in flow.channels.values() for tensor, _ in channels}

    def find(tensor: str) -> str:
        while parents[tensor] != tensor:
            parents[tensor] = parents[parents[tensor]]
            tensor = parents[tensor]
        return tensor

    bound = [{tensor for tensor, _ in channels} for channels in flow.channels.values()]
    bound += [
        {reader.node.name, flow.channels[tensor_name(reader.node.input[position])][0][0]}
        for reader in flow.readers
        if reader.order is Order.KEPT
        for position in reader.data
    ]
    for tensors in bound:
        first, *others = tensors
        for other in others:
            parents[find(other)] = find(first)
    return {tensor: find(tensor) for tensor in parents}


def _find_uses(flow: ChannelFlow, tensors: AbstractSet[str]) -> Uses:
    uses: dict[Channel, set[Use]] = defaultdict(set)
    for reader in reversed(flow.readers):
        for position, name in enumerate(reader.node.input):
            read = flow.channels.get(tensor_name(name))
            if read is None or read[0][0] not in tensors:
                continue
            together = frozenset(read)
            if reader.order is Order.KEPT and position in reader.data:
                classes = _classes(flow.channels[reader.node.name], uses)
                for channel, number in zip(read, classes, strict=True):
                    uses[channel].add((together, reader.node.name, number))
            else:
                for channel in read:
                    uses[channel].add((together, "", 0))
    return uses


def _classes(channels: Channels, uses: Uses) -> list[int]:
    """Number the different uses of `channels` in the order in which they come."""
    numbers: dict[frozenset[Use], int] = {}
    return [numbers.setdefault(frozenset(uses[channel]), len(numbers)) for channel in channels]


@dataclass(frozen=True)
class _Arranged:
    """A tensor of the new graph and the channels that it holds, in their new order."""

    tensor: str
    channels: Channels


@dataclass
class _Rewrite:
    """The new nodes for all that reads or makes some tensors, and the tensors that needed a gather."""

    graph: GraphView
    flow: ChannelFlow
    uses: Uses
    whole: dict[str, _Arranged] = field(default_factory=dict)
    parts: dict[str, list[_Arranged]] = field(default_factory=dict)
    joined: dict[frozenset[Channel], _Arranged] = field(default_factory=dict)
    in_order: dict[str, str] = field(default_factory=dict)
    gathered: list[str] = field(default_factory=list)
    removed: set[str] = field(default_factory=set)
    added: list[NodeDef] = field(default_factory=list)

    @classmethod
    def of(cls, graph: GraphView, flow: ChannelFlow, tensors: AbstractSet[str]) -> "_Rewrite":
        rewrite = cls(graph, flow, _find_uses(flow, tensors))
        for reader in flow.readers:
            rewrite._change(reader, tensors)
        return rewrite

    def _change(self, reader: Reader, tensors: AbstractSet[str]) -> None:
        node = NodeDef()
        node.CopyFrom(reader.node)
        order: list[int] | None = None
        for position, name in enumerate(map(tensor_name, reader.node.input)):
            channels = self.flow.channels.get(name)
            if channels is None or channels[0][0] not in tensors:
                continue
            if position in reader.data:
                read = self._read(name)
                places = {channel: place for place, channel in enumerate(channels)}
                order = [places[channel] for channel in read.channels]
                node.input[position] = read.tensor
            else:
                node.input[position] = self._in_original_order(name)

        changes = [(position, axis, order) for position, axis in reader.per_channel if order is not None]
        for output in tensors & set(reader.outputs):
            own = self.flow.channels[output]
            written = list(range(len(own)))
            if reader.order is Order.KEPT and order is not None:
                written = order
            elif reader.order is Order.FREE:
                classes = _classes(own, self.uses)
                written.sort(key=classes.__getitem__)
                changes.append((1, -1, written))
            self.whole[output] = _Arranged(output, tuple(own[place] for place in written))
        self._put_constants(node, changes)
        if node != reader.node:
            self.removed.add(node.name)
            self.added.append(node)

    def _put_constants(self, node: NodeDef, changes: Sequence[tuple[int, int, Sequence[int]]]) -> None:
        for position in {position for position, _, _ in changes}:
            before = value = np.asarray(self.graph.constant(node.input[position]))
            for _, axis, order in (change for change in changes if change[0] == position):
                value = value.take(order, axis)
            if not np.array_equal(value, before):
                name = f"{node.name}/reordered_{position}"
                node.input[position] = name
                self.added.append(const_node(name, value))

    def _read(self, tensor: str) -> _Arranged:
        """All channels of a tensor of the old graph, in whatever order they come."""
        channels = self.flow.channels[tensor]
        key = frozenset(channels)
        if key not in self.joined:
            sources = list(dict.fromkeys(name for name, _ in channels))
            if len(sources) == 1 and len(channels) == len(self.whole[sources[0]].channels):
                self.joined[key] = self.whole[sources[0]]
            else:
                self.joined[key] = self._join(tensor, sources)
        return self.joined[key]

    def _join(self, tensor: str, sources: Sequence[str]) -> _Arranged:
        channels = self.flow.channels[tensor]
        key = frozenset(channels)
        own_uses = {channel: {use for use in self.uses[channel] if use[0] == key} for channel in channels}
        ranks = dict(zip(channels, enumerate(_classes(channels, own_uses)), strict=True))
        parts = [part for source in sources for part in self._cut(source) if part.channels[0] in key]
        parts.sort(key=lambda part: min((ranks[channel][1], ranks[channel][0]) for channel in part.channels))
        pieces: list[_Arranged] = []
        for source, group in groupby(parts, key=lambda part: part.channels[0][0]):
            neighbours = list(group)
            pieces += [self.whole[source]] if neighbours == self.parts[source] else neighbours
        if len(pieces) == 1:
            return pieces[0]
        name = _node_for(tensor)
        if name == tensor:
            # What joined or picked these channels before has no reader any more: the new node has its name.
            self.removed.add(name)
        self._add("ConcatV2", name, [piece.tensor for piece in pieces], N=len(pieces), Tidx=tf.int32)
        return _Arranged(name, tuple(channel for piece in pieces for channel in piece.channels))

    def _cut(self, tensor: str) -> list[_Arranged]:
        """The parts of a tensor that are used differently. As many parts as uses: a gather sees to that if need be."""
        if tensor in self.parts:
            return self.parts[tensor]
        whole = self.whole[tensor]
        runs = self._runs(whole.channels)
        classes = dict(zip(whole.channels, _classes(whole.channels, self.uses), strict=True))
        if len(runs) > len(set(classes.values())):
            whole = self._gather(
                whole, tuple(sorted(whole.channels, key=classes.__getitem__)), f"{_node_for(tensor)}/grouped"
            )
            runs = self._runs(whole.channels)
        if len(runs) == 1:
            parts = [whole]
        else:
            name = f"{_node_for(tensor)}/parts"
            sizes = const_node(f"{name}/sizes", np.array([len(run) for run in runs], np.int32))
            self.added.append(sizes)
            self._add("SplitV", name, [whole.tensor, sizes.name], num_split=len(runs), Tlen=tf.int32)
            parts = [_Arranged(f"{name}:{index}" if index else name, run) for index, run in enumerate(runs)]
        self.parts[tensor] = parts
        return parts

    def _runs(self, channels: Channels) -> list[Channels]:
        pairs = groupby(zip(_classes(channels, self.uses), channels, strict=True), key=lambda pair: pair[0])
        return [tuple(channel for _, channel in run) for _, run in pairs]

    def _in_original_order(self, tensor: str) -> str:
        if tensor not in self.in_order:
            read, channels = self._read(tensor), self.flow.channels[tensor]
            if read.channels != channels:
                read = self._gather(read, channels, f"{_node_for(tensor)}/original_order")
            self.in_order[tensor] = read.tensor
        return self.in_order[tensor]

    def _gather(self, read: _Arranged, channels: Channels, name: str) -> _Arranged:
        places = {channel: place for place, channel in enumerate(read.channels)}
        indices = const_node(f"{name}/indices", np.array([places[channel] for channel in channels], np.int32))
        self.added.append(indices)
        self._add("GatherV2", name, [read.tensor, indices.name], Taxis=tf.int32, Tindices=tf.int32)
        self.gathered.append(channels[0][0])
        return _Arranged(name, channels)

    def _add(self, op: str, name: str, inputs: Sequence[str], **attributes: int | tf.DType) -> None:
        """A node that moves float32 channels: its last input is the axis."""
        axis = const_node(f"{name}/last_axis", np.int32(3))
        data_type = "Tparams" if op == "GatherV2" else "T"
        self.added += [axis, op_node(op, name, [*inputs, axis.name], **{data_type: tf.float32}, **attributes)]


def _node_for(tensor: str) -> str:
    """The name of a node that stands for a tensor, which may be a later output of its node."""
    name, _, index = tensor.partition(":")
    return f"{name}/output_{index}" if index else name
