"""Ops pinned to a device, such as non-max suppression to the CPU while the network runs on a GPU."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from tuner.errors import ConfigError, ModelError
from tuner.model.detection_model import DetectionModel
from tuner.model.frozen_graph import copy_graph

_DEVICE = re.compile(r"(/job:[a-zA-Z]\w*)?(/replica:\d+)?(/task:\d+)?/(device:)?([A-Za-z][A-Za-z0-9_]*):(\d+)")


@dataclass(frozen=True)
class Placement:
    """A detector with ops on another device. pinned: how many ops there are of each type that was pinned."""

    model: DetectionModel
    pinned: dict[str, int]


def place_ops(
    model: DetectionModel,
    device: str,
    *,
    parts: Sequence[str] = (),
    types: Sequence[str] = (),
    regexes: Sequence[str] = (),
) -> Placement:
    """Pin the ops that any of the texts names to a device; the given model stays as it is.

    device: "/device:CPU:0", or "/job:worker/task:0/device:GPU:1". parts: found anywhere in an op's name or type, so
    that "NonMaxSuppression" means NonMaxSuppressionV5, too. types: the whole type. regexes: found in the name.
    Capitals count. Raises ConfigError for a bad device, a bad regular expression or no text at all, and ModelError,
    with the nearest types, where one of the texts names no op.
    """
    _check_device(device)
    nodes = model.graph_def.node
    matched = [(text, {node.name for node in nodes if text in node.name or text in node.op}) for text in parts]
    matched += [(text, {node.name for node in nodes if text == node.op}) for text in types]
    patterns = {text: _compiled(text) for text in regexes}
    matched += [(text, {node.name for node in nodes if patterns[text].search(node.name)}) for text in regexes]
    if not all(text for text, _ in matched) or not matched:
        raise ConfigError("no op to place: give a part of its name or type, its type or a regular expression")
    for text, found in matched:
        if not found:
            raise ModelError(f"{model.source}: no op is meant by {text!r}{_near_types(text, model)}")
    names = set[str]().union(*(found for _, found in matched))
    graph_def = copy_graph(model.graph_def)
    pinned: Counter[str] = Counter()
    for node in graph_def.node:
        if node.name in names:
            node.device = device
            pinned[node.op] += 1
    return Placement(model.with_graph(graph_def), dict(pinned.most_common()))


def _check_device(device: str) -> None:
    if not _DEVICE.fullmatch(device):
        raise ConfigError(f"device: got {device!r}; expected /device:TYPE:NUMBER, as /device:CPU:0 or /device:GPU:1")


def _near_types(text: str, model: DetectionModel) -> str:
    types = Counter(node.op for node in model.graph_def.node)
    lower = {name.lower(): name for name in types}
    near = [lower[name] for name in get_close_matches(text.lower(), lower, n=3)]
    near += [name for name in types if text.lower() in name.lower() and name not in near]
    if near:
        return f" (did you mean the type {', '.join(near[:3])}?)"
    return f"; the graph has ops of the types {', '.join(name for name, _ in types.most_common(8))} and others"


def _compiled(regex: str) -> re.Pattern[str]:
    try:
        return re.compile(regex)
    except re.error as error:
        raise ConfigError(f"regular expression {regex!r}: {error}") from error
