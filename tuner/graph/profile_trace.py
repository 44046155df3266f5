"""TensorFlow's record of a run read as events on one time axis, and as a trace for chrome://tracing and Perfetto."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from tensorflow.core.framework.step_stats_pb2 import NodeExecStats, StepStats

# What TensorFlow 2.21 (xplane_to_step_stats.cc) calls the devices of a GPU's record: one for each stream's kernels and
# one for each kind of its copies, and all of either once more.
_STREAM = re.compile(r"/stream:(\d+)$")
_COPIES = re.compile(r"/stream:\d+<(\w+)>$")
_REPEATED = re.compile(r"/(stream:all|memcpy)$")
_LABEL = re.compile(r"(?:\[.*?\] )?\S+ = (\w+)\(")
_COPIED_BYTES = re.compile(r"\bsize:(\d+)")


class Kind(Enum):
    """Where an event comes from: a node on a CPU, its launch on a GPU, a kernel, a copy, or something else of a GPU."""

    NODE = auto()
    LAUNCH = auto()
    KERNEL = auto()
    COPY = auto()
    OTHER = auto()


@dataclass(frozen=True, slots=True)
class Event:
    """Something that took time in a run.

    name: the node's. op: its type; of a copy the direction as TensorFlow names it, MemcpyH2D or MemcpyD2H; else "".
    start_us: on the clock of the machine. copied_bytes: of a copy, where the record tells it.
    """

    kind: Kind
    device: str
    name: str
    op: str
    start_us: float
    duration_us: float
    copied_bytes: int = 0


def read_events(stats: StepStats, ops: Mapping[str, str]) -> list[Event]:
    """The events of one run, those that TensorFlow tells twice but once.

    ops: the types of the nodes by their names, for kernels of a GPU, whose record may leave them out.
    """
    return [
        _event(device.device, node, ops)
        for device in stats.dev_stats
        if not _REPEATED.search(device.device)
        for node in device.node_stats
    ]


def chrome_trace(runs: Sequence[Sequence[Event]], stages: Mapping[str, str]) -> dict[str, Any]:
    """Runs as an object of the Trace Event Format, to be written as JSON; times in microseconds from the first event.

    Each device is a process, whose events lie side by side in as many threads as it takes; the runs are a process of
    their own. stages: of nodes by name, told with each event.
    """
    first_us = min((event.start_us for run in runs for event in run), default=0.0)
    by_device: dict[str, list[Event]] = defaultdict(list)
    for run in runs:
        for event in run:
            by_device[event.device].append(event)
    events: list[dict[str, Any]] = [_named("process_name", 0, 0, "runs"), _named("thread_name", 0, 0, "runs")]
    for number, run in enumerate(runs, 1):
        if run:
            start_us = min(event.start_us for event in run)
            end_us = max(event.start_us + event.duration_us for event in run)
            events.append(_complete((0, 0), f"run {number}", (start_us - first_us, end_us - start_us), {}))
    for pid, (device, of_device) in enumerate(sorted(by_device.items()), 1):
        events.append(_named("process_name", pid, 0, device))
        lanes = _lanes(of_device)
        events += [_named("thread_name", pid, lane, f"lane {lane}") for lane in range(max(lanes) + 1)]
        for event, lane in zip(of_device, lanes, strict=True):
            told = {"node": event.name, "stage": stages.get(event.name, ""), "bytes": event.copied_bytes}
            args = {key: value for key, value in told.items() if value}
            title = event.op or event.name
            events.append(_complete((pid, lane), title, (event.start_us - first_us, event.duration_us), args))
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _event(device: str, node: NodeExecStats, ops: Mapping[str, str]) -> Event:
    # A GPU's record has no nanoseconds.
    begun_us = node.all_start_nanos / 1000 if node.all_start_nanos else float(node.all_start_micros)
    if node.op_end_rel_nanos:
        start_us, end_us = node.op_start_rel_nanos / 1000, node.op_end_rel_nanos / 1000
    else:
        start_us, end_us = float(node.op_start_rel_micros), float(node.op_end_rel_micros)
    times = (begun_us + start_us, max(end_us - start_us, 0.0))
    if copies := _COPIES.search(device):
        size = _COPIED_BYTES.search(node.timeline_label)
        return Event(Kind.COPY, device, node.node_name, copies[1], *times, int(size[1]) if size else 0)
    if _STREAM.search(device):
        # A kernel is named after its node, as "node:Op".
        name, _, op = node.node_name.partition(":")
        return Event(Kind.KERNEL, device, name, op or ops.get(name, ""), *times)
    if "/stream:" in device or device.endswith("/sync"):
        return Event(Kind.OTHER, device, node.node_name, "", *times)
    label = _LABEL.match(node.timeline_label)
    op = label[1] if label else ops.get(node.node_name, "")
    return Event(Kind.LAUNCH if "device:GPU:" in device else Kind.NODE, device, node.node_name, op, *times)


def _lanes(events: Sequence[Event]) -> list[int]:
    """For each event the first thread that is free at its start: events of one thread must not overlap."""
    lanes = [0] * len(events)
    free_us: list[float] = []
    for index in sorted(range(len(events)), key=lambda index: events[index].start_us):
        start_us = events[index].start_us
        lane = next((lane for lane, free in enumerate(free_us) if free <= start_us), len(free_us))
        free_us[lane : lane + 1] = [start_us + events[index].duration_us]
        lanes[index] = lane
    return lanes


def _complete(place: tuple[int, int], name: str, times_us: tuple[float, float], args: Mapping[str, Any]) -> Any:
    """A complete event. place: process and thread. times_us: start and duration."""
    pid, tid = place
    ts, dur = (round(us, 3) for us in times_us)
    return {"ph": "X", "cat": "op", "pid": pid, "tid": tid, "name": name, "ts": ts, "dur": dur, "args": args}


def _named(what: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "pid": pid, "tid": tid, "name": what, "args": {"name": name}}
