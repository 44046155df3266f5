"""What each channel is needed for, and which tensors must change the order of their channels together."""

from collections import defaultdict
from collections.abc import Mapping
from collections.abc import Set as AbstractSet

from tuner.model.graph_view import tensor_name
from tuner.quantization.lowering.channel_flow import ChannelFlow, Order
from tuner.quantization.lowering.channel_movers import Channel, Channels

# What a channel is needed for: the set of channels it is read in, the reader whose result has the same order, and the
# class of the channel in that result. Channels with equal uses stay side by side.
Use = tuple[frozenset[Channel], str, int]
Uses = Mapping[Channel, set[Use]]


def find_networks(flow: ChannelFlow) -> dict[str, str]:
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


def find_uses(flow: ChannelFlow, tensors: AbstractSet[str]) -> Uses:
    """What the channels are needed for that are in `tensors` to begin with; these must be whole networks."""
    uses: dict[Channel, set[Use]] = defaultdict(set)
    for reader in reversed(flow.readers):
        for position, name in enumerate(reader.node.input):
            read = flow.channels.get(tensor_name(name))
            if read is None or read[0][0] not in tensors:
                continue
            together = frozenset(read)
            if reader.order is Order.KEPT and position in reader.data:
                classes = number_uses(flow.channels[reader.node.name], uses)
                for channel, number in zip(read, classes, strict=True):
                    uses[channel].add((together, reader.node.name, number))
            else:
                for channel in read:
                    uses[channel].add((together, "", 0))
    return uses


def number_uses(channels: Channels, uses: Uses) -> list[int]:
    """Number the different uses of `channels` in the order in which they come."""
    numbers: dict[frozenset[Use], int] = {}
    return [numbers.setdefault(frozenset(uses[channel]), len(numbers)) for channel in channels]
