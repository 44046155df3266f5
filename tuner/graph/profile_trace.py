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
    start_ns: on the clock of the machine, whose count of nanoseconds is beyond what a float can tell apart.
    copied_bytes: of a copy, where the record tells it.
    """

    kind: Kind
    device: str
    name: str
    op: str
    start_ns: int
    duration_us: float
    copied_bytes: int = 0

    @property
    def end_ns(self) -> int:
        """On the same clock as `start_ns`."""
        return self.start_ns + round(self.duration_us * 1000)


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
    first_ns = min((event.start_ns for run in runs for event in run), default=0)
    by_device: dict[str, list[Event]] = defaultdict(list)
    for run in runs:
        for event in run:
            by_device[event.device].append(event)
    events: list[dict[str, Any]] = [_named("process_name", 0, 0, "runs"), _named("thread_name", 0, 0, "runs")]
    for number, run in enumerate(runs, 1):
        if run:
            start_ns, end_ns = min(event.start_ns for event in run), max(event.end_ns for event in run)
            times_us = ((start_ns - first_ns) / 1000, (end_ns - start_ns) / 1000)
            events.append(_complete((0, 0), f"run {number}", times_us, {}))
    for pid, (device, of_device) in enumerate(sorted(by_device.items()), 1):
        events.append(_named("process_name", pid, 0, device))
        lanes = _lanes(of_device)
        events += [_named("thread_name", pid, lane, f"lane {lane}") for lane in range(max(lanes) + 1)]
        for event, lane in zip(of_device, lanes, strict=True):
            told = {"node": event.name, "stage": stages.get(event.name, ""), "bytes": event.copied_bytes}
            args = {key: value for key, value in told.items() if value}
            title = event.op or event.name
            times_us = ((event.start_ns - first_ns) / 1000, event.duration_us)
            events.append(_complete((pid, lane), title, times_us, args))
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _event(device: str, node: NodeExecStats, ops: Mapping[str, str]) -> Event:
    # A GPU's record has no nanoseconds.
    begun_ns = node.all_start_nanos or node.all_start_micros * 1000
    if node.op_end_rel_nanos:
        start_ns, end_ns = node.op_start_rel_nanos, node.op_end_rel_nanos
    else:
        start_ns, end_ns = node.op_start_rel_micros * 1000, node.op_end_rel_micros * 1000
    times = (begun_ns + start_ns, max(end_ns - start_ns, 0) / 1000)
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
    free_ns: list[int] = []
    for index in sorted(range(len(events)), key=lambda index: events[index].start_ns):
        start_ns = events[index].start_ns
        lane = next((lane for lane, free in enumerate(free_ns) if free <= start_ns), len(free_ns))
        free_ns[lane : lane + 1] = [events[index].end_ns]
        lanes[index] = lane
    return lanes


def _complete(place: tuple[int, int], name: str, times_us: tuple[float, float], args: Mapping[str, Any]) -> Any:
    """A complete event. place: process and thread. times_us: start and duration."""
    pid, tid = place
    ts, dur = (round(us, 3) for us in times_us)
    return {"ph": "X", "cat": "op", "pid": pid, "tid": tid, "name": name, "ts": ts, "dur": dur, "args": args}


def _named(what: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "pid": pid, "tid": tid, "name": what, "args": {"name": name}}
