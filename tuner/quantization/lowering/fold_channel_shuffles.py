"""Channel shuffles cost little when convolutions write their channels in the order in which they are needed."""

from collections import Counter
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import tensorflow as tf
from tensorflow.core.framework.node_def_pb2 import NodeDef

from tuner.model.graph_view import GraphView, tensor_name
from tuner.model.nodes import const_node, op_node
from tuner.quantization.lowering.channel_flow import ELEMENTWISE_OPS, ChannelFlow, Order, Reader, trace_channels
from tuner.quantization.lowering.channel_movers import Channel, Channels
from tuner.quantization.lowering.channel_uses import Uses, find_networks, find_uses, number_uses

# Measured: a GatherV2 of channels takes as long as 1.5 to 3.5 Transposes of a shuffle.
SHUFFLES_PER_GATHER = 4


def fold_channel_shuffles(graph: GraphView) -> GraphView:
    """Drop shuffles, Reshape-Transpose-Reshape: each convolution writes side by side what is read together.

    A tensor that is read in parts is cut once, by a SplitV, and a reader of several parts has them joined by one
    ConcatV2. Convolutions and channelwise ops keep their names and get constants in the order of what they read; what
    needs the original order gets it by a GatherV2. Left alone: networks of tensors with too few shuffles for the
    gathers that they need. Tensors of a changed network have their channels in another order than before.
    """
    flow = trace_channels(graph)
    if not flow.shuffles:
        return graph
    networks = find_networks(flow)
    shuffles = Counter(networks[flow.channels[tensor][0][0]] for tensor in flow.shuffles)
    trial = _Rewrite.of(graph, flow, {tensor for tensor, network in networks.items() if network in shuffles})
    gathers = Counter(networks[tensor] for tensor in trial.gathered)
    changed = {network for network in shuffles if gathers[network] * SHUFFLES_PER_GATHER < shuffles[network]}
    rewrite = _Rewrite.of(graph, flow, {tensor for tensor, network in networks.items() if network in changed})
    return graph.replace(rewrite.removed, rewrite.added)


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
    parts: dict[str, tuple[_Arranged, list[_Arranged]]] = field(default_factory=dict)
    joined: dict[frozenset[Channel], _Arranged] = field(default_factory=dict)
    in_order: dict[str, str] = field(default_factory=dict)
    gathered: list[str] = field(default_factory=list)
    removed: set[str] = field(default_factory=set)
    added: list[NodeDef] = field(default_factory=list)

    @classmethod
    def of(cls, graph: GraphView, flow: ChannelFlow, tensors: AbstractSet[str]) -> "_Rewrite":
        rewrite = cls(graph, flow, find_uses(flow, tensors))
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
                classes = number_uses(own, self.uses)
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
        ranks = dict(zip(channels, enumerate(number_uses(channels, own_uses)), strict=True))
        parts = [part for source in sources for part in self._cut(source)[1] if part.channels[0] in key]
        parts.sort(key=lambda part: min((ranks[channel][1], ranks[channel][0]) for channel in part.channels))
        pieces: list[_Arranged] = []
        for source, group in groupby(parts, key=lambda part: part.channels[0][0]):
            neighbours = list(group)
            pieces += [self.whole[source]] if neighbours == self.parts[source][1] else neighbours
        name = _node_for(tensor)
        if len(pieces) == 1:
            readers = {reader for together, reader, _ in self.uses[pieces[0].channels[0]] if together == key and reader}
            if ":" in pieces[0].tensor and any(self.graph.nodes[reader].op in ELEMENTWISE_OPS for reader in readers):
                return self._slice(pieces[0], f"{name}/part")
            return pieces[0]
        if name == tensor:
            # What joined or picked these channels before has no reader any more: the new node has its name.
            self.removed.add(name)
        self._add("ConcatV2", name, [piece.tensor for piece in pieces], N=len(pieces), Tidx=tf.int32)
        return _Arranged(name, tuple(channel for piece in pieces for channel in piece.channels))

    def _slice(self, part: _Arranged, name: str) -> _Arranged:
        """One part of a tensor, for an element-wise op.

        TensorFlow's arithmetic optimizer swaps MaxPool(Relu(x)) and forgets which output of a SplitV x is.
        """
        whole, parts = self.parts[part.channels[0][0]]
        start = sum(len(before.channels) for before in parts[: parts.index(part)])
        begin = const_node(f"{name}/begin", np.array([0, 0, 0, start], np.int32))
        size = const_node(f"{name}/size", np.array([-1, -1, -1, len(part.channels)], np.int32))
        slice_node = op_node("Slice", name, [whole.tensor, begin.name, size.name], T=tf.float32, Index=tf.int32)
        self.added += [begin, size, slice_node]
        return _Arranged(name, part.channels)

    def _cut(self, tensor: str) -> tuple[_Arranged, list[_Arranged]]:
        """A tensor and its parts that are used differently, each once: a gather brings that about if need be."""
        if tensor in self.parts:
            return self.parts[tensor]
        whole = self.whole[tensor]
        runs = self._runs(whole.channels)
        classes = dict(zip(whole.channels, number_uses(whole.channels, self.uses), strict=True))
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
        self.parts[tensor] = whole, parts
        return self.parts[tensor]

    def _runs(self, channels: Channels) -> list[Channels]:
        pairs = groupby(zip(number_uses(channels, self.uses), channels, strict=True), key=lambda pair: pair[0])
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
