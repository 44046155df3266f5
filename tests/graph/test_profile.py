"""Where the time goes: on graphs whose parts are known, on a record of a GPU, and on real detectors."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework.graph_pb2 import GraphDef
from tensorflow.core.framework.step_stats_pb2 import StepStats

from tests.graph.conftest import Nms
from tuner.data.dataset import open_dataset
from tuner.errors import ModelError
from tuner.graph.profile import Profile, profile, read_profile
from tuner.graph.profile_stages import Stage, find_stages
from tuner.model.detection_model import DetectionModel
from tuner.model.loading import load_model

tf1 = tf.compat.v1
CPU, GPU = "/job:localhost/replica:0/task:0/device:CPU:0", "/job:localhost/replica:0/task:0/device:GPU:0"


def graph_of(*nodes: str) -> GraphDef:
    """A graph of "name Op input input ..." for each node."""
    graph = GraphDef()
    for node in nodes:
        name, op, *inputs = node.split()
        graph.node.add(name=name, op=op, input=inputs)
    return graph


def record(*events: tuple[str, str, str, int, int]) -> StepStats:
    """What TensorFlow tells of a run: device, node, label, start and duration in us; of a GPU only in whole us."""
    stats = StepStats()
    devices: dict[str, Any] = {}
    for device, name, label, start_us, duration_us in events:
        if device not in devices:
            devices[device] = stats.dev_stats.add(device=device)
        node = devices[device].node_stats.add(node_name=name, timeline_label=label, all_start_micros=start_us)
        node.op_end_rel_micros = node.all_end_rel_micros = duration_us
        if "/stream" not in device:
            node.all_start_nanos, node.op_end_rel_nanos = start_us * 1000, duration_us * 1000
    return stats


def check_trace(trace: dict[str, Any], runs: int) -> dict[str, list[dict[str, Any]]]:
    """Hold a trace against the Trace Event Format; returns the complete events by the name of their process."""
    events = json.loads(json.dumps(trace))["traceEvents"]
    names = {(e["pid"], e["tid"], e["name"]): e["args"]["name"] for e in events if e["ph"] == "M"}
    by_thread, by_process = defaultdict(list), defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            assert event["ts"] >= 0 and event["dur"] >= 0 and event["name"]
            assert (event["pid"], event["tid"], "thread_name") in names
            by_thread[event["pid"], event["tid"]].append(event)
            by_process[names[event["pid"], 0, "process_name"]].append(event)
    for of_thread in by_thread.values():
        of_thread.sort(key=lambda event: event["ts"])
        for event, following in pairwise(of_thread):
            assert event["ts"] + event["dur"] <= following["ts"] + 2e-3  # times are rounded to 1 ns
    assert len(by_process["runs"]) == runs
    return by_process


def test_stages_of_a_detector() -> None:
    stages = find_stages(
        [
            graph_of(
                "image _Arg",
                "mean Const",
                "scaled Sub image mean",
                "w Const",
                "first _FusedConv2D scaled w",
                "act Elu first",
                "boxes _MklNativeDepthwiseConv2dNative act w",
                "scores _FusedMatMul act w",
                "decoded Exp boxes",
                "overlap BatchMatMulV2 decoded decoded",
                "size Shape image",
                "anchors Range size",
                "nms NonMaxSuppressionV5 decoded scores anchors overlap",
            )
        ]
    )
    by_stage = {stage: [name for name, own in stages.items() if own is stage] for stage in Stage}
    assert by_stage == {
        Stage.PREPROCESSING: ["image", "scaled"],
        Stage.PRODUCTS: ["first", "boxes", "scores"],
        Stage.REST: ["mean", "w", "act"],
        Stage.POSTPROCESSING: ["decoded", "overlap", "size", "anchors", "nms"],
    }


def test_suppression_between_two_networks_belongs_to_the_network() -> None:
    """As in Faster R-CNN: boxes of the first network say where the second one looks."""
    graph = graph_of("x _Arg", "w Const", "a Conv2D x w", "nms NonMaxSuppressionV3 a", "b Conv2D nms w", "out Exp b")
    assert find_stages([graph])["nms"] is Stage.REST
    assert find_stages([graph])["out"] is Stage.POSTPROCESSING


def test_a_convolution_in_a_loop() -> None:
    graph = graph_of(
        *("x _Arg", "w Const", "enter Enter x", "merge Merge enter next", "switch Switch merge"),
        *("conv Conv2D switch w", "next NextIteration conv", "exit Exit switch", "out Exp exit"),
    )
    stages = find_stages([graph])
    assert (stages["conv"], stages["next"], stages["enter"]) == (Stage.PRODUCTS, Stage.REST, Stage.PREPROCESSING)
    assert (stages["exit"], stages["out"]) == (Stage.POSTPROCESSING, Stage.POSTPROCESSING)


def test_stages_go_on_over_the_border_of_two_devices() -> None:
    on_cpu = graph_of("x _Arg", "sent _Send x", "back _Recv", "out Exp back")
    on_gpu = graph_of("got _Recv", "w Const", "conv Conv2D got w", "returned _Send conv")
    for graph, names in ((on_cpu, {"sent": b"1", "back": b"2"}), (on_gpu, {"got": b"1", "returned": b"2"})):
        for node in graph.node:
            if node.name in names:
                node.attr["tensor_name"].s = names[node.name]
    stages = find_stages([on_cpu, on_gpu])
    assert [stages[name] for name in ("sent", "got")] == [Stage.PREPROCESSING] * 2
    assert [stages[name] for name in ("returned", "back", "out")] == [Stage.POSTPROCESSING] * 3


def test_a_graph_without_convolutions_is_all_rest() -> None:
    assert find_stages([graph_of("x _Arg", "y Exp x")]) == {"x": Stage.REST, "y": Stage.REST}


GRAPH = graph_of("x _Arg", "w Const", "conv _FusedConv2D x w", "nms NonMaxSuppressionV3 conv")


def on_gpu(start_us: int, kernel_us: int) -> StepStats:
    kernel = ("conv:_FusedConv2D", "volta_scudnn_128x64 regs:8", start_us + 25, kernel_us)
    to_gpu = ("edge_2_x", "MemcpyH2D kind_src:pinned kind_dst:device size:3000 dest:0 async:1", start_us + 12, 8)
    more = ("x", "MemcpyH2D kind_src:pinned kind_dst:device size:500 dest:0 async:1", start_us + 21, 2)
    back = ("edge_3_conv", "MemcpyD2H size:64 dest:0 async:1", start_us + 130, 5)
    return record(
        (CPU, "x", "x = _Arg()", start_us, 1),
        (CPU, "nms", "[cpu 0.1MB] nms = NonMaxSuppressionV3(conv)", start_us + 140, 40),
        (GPU, "conv", "conv = _FusedConv2D(x, w)", start_us + 10, 6),
        *(("/device:GPU:0/stream:14<MemcpyH2D>", *copy) for copy in (to_gpu, more)),
        *(("/device:GPU:0/memcpy", *copy) for copy in (to_gpu, more, back)),
        ("/device:GPU:0/stream:15<MemcpyD2H>", *back),
        ("/device:GPU:0/stream:13", *kernel),
        ("/device:GPU:0/stream:all", *kernel),
        ("/device:GPU:0/stream:", "Memset", "Memset", start_us + 24, 1),
        ("/device:GPU:0/sync", "cuStreamSynchronize", "ThreadId 7", start_us + 20, 110),
    )


def test_a_record_of_a_gpu() -> None:
    found = read_profile([on_gpu(1000, 100), on_gpu(2000, 120), on_gpu(3000, 140)], [GRAPH], 0.2)
    # The kernel counts, told once, and not its launch.
    assert [(node.name, node.op, node.calls, node.time_us, node.stage) for node in found.nodes] == [
        ("conv", "_FusedConv2D", 1, 120.0, Stage.PRODUCTS),
        ("nms", "NonMaxSuppressionV3", 1, 40.0, Stage.POSTPROCESSING),
        ("x", "_Arg", 1, 1.0, Stage.PREPROCESSING),
    ]
    copies = [(one.direction, one.copies, one.copied_bytes, one.time_us) for one in found.copies]
    assert copies == [("MemcpyD2H", 1, 64, 5.0), ("MemcpyH2D", 2, 3500, 10.0)]
    processes = check_trace(dict(found.trace), runs=3)
    assert {name: len(events) for name, events in processes.items()} == {
        "runs": 3,
        CPU: 6,
        GPU: 3,
        "/device:GPU:0/stream:14<MemcpyH2D>": 6,
        "/device:GPU:0/stream:15<MemcpyD2H>": 3,
        "/device:GPU:0/stream:13": 3,
        "/device:GPU:0/stream:": 3,
        "/device:GPU:0/sync": 3,
    }
    assert [(e["ts"], e["dur"]) for e in processes["runs"]] == [(0, 180), (1000, 180), (2000, 180)]
    (kernel, *_) = processes["/device:GPU:0/stream:13"]
    assert (kernel["name"], kernel["args"]["node"], kernel["ts"], kernel["dur"]) == ("_FusedConv2D", "conv", 25, 100)


def test_launches_count_where_no_kernel_is_told() -> None:
    found = read_profile([record((GPU, "conv", "conv = _FusedConv2D(x, w)", 5, 7))], [GRAPH], 1.0)
    assert [(node.name, node.time_us) for node in found.nodes] == [("conv", 7.0)]
    assert found.copies == ()


def test_times_are_medians_over_the_runs_and_sums_over_a_loops_turns() -> None:
    def run(start_us: int, *durations_us: int) -> StepStats:
        turns = [
            (CPU, "conv", "conv = Conv2D(x, w)", start_us + 100 * turn, us) for turn, us in enumerate(durations_us)
        ]
        return record(*turns, (CPU, "nms", "nms = NonMaxSuppressionV3(conv)", start_us + 50, 60))

    found = read_profile([run(1000, 10, 20), run(2000, 10, 30), run(3000, 10, 90)], [GRAPH], 1.0)
    assert [(node.name, node.calls, node.time_us) for node in found.nodes] == [("nms", 1, 60.0), ("conv", 2, 40.0)]
    assert found.ops == [("NonMaxSuppressionV3", 1, 60.0), ("Conv2D", 2, 40.0)]
    told = found.to_json()
    assert told["total_us"] == 100.0
    assert {name: stage["share"] for name, stage in told["stages"].items()} == {
        "pre-processing": 0.0,
        "convolutions and matrix products": 0.4,
        "rest of the network": 0.0,
        "post-processing": 0.6,
    }
    # The second turns begin while the other node is at work, so in another thread of the trace.
    events = check_trace(dict(found.trace), runs=3)[CPU]
    assert [event["tid"] for event in events] == [0, 1, 0] * 3


def test_a_real_run(detector: Callable[..., DetectionModel]) -> None:
    model = detector(Nms(classes=2))
    found = profile(model, np.full((1, 48, 64, 3), 90, np.uint8), runs=2, warmup=1)
    stages = {node.name: node.stage for node in found.nodes}
    assert [stage for name, stage in stages.items() if "NonMaxSuppression" in name.rpartition("/")[2]] == [
        Stage.POSTPROCESSING
    ] * 2
    assert {stage for name, stage in stages.items() if name.endswith("ResizeBilinear")} == {Stage.PREPROCESSING}
    assert [node.stage for node in found.nodes if "Conv2D" in node.op] == [Stage.PRODUCTS]
    assert found.latency_ms > 0 and found.runs == 2 and found.copies == ()
    check_trace(dict(found.trace), runs=2)


@pytest.mark.parametrize(("runs", "warmup"), [(0, 1), (1, -1)])
def test_too_few_runs(runs: int, warmup: int, detector: Callable[..., DetectionModel]) -> None:
    with pytest.raises(ModelError, match=f"runs, warmup: got {runs} and {warmup}; expected at least 1 and 0"):
        profile(detector(Nms()), np.zeros((1, 48, 64, 3), np.uint8), runs=runs, warmup=warmup)


REAL = {
    "detectors/yolo_fastestv2_bn.pb": "CombinedNonMaxSuppression",
    "od_api/ssd_mobilenet_v1_depth05/frozen_inference_graph.pb": "NonMaxSuppressionV5",
}


@pytest.mark.parametrize("name", REAL)
def test_real_detectors(assets: Path, name: str) -> None:
    """Their authors named the parts: what the structure tells must agree."""
    image = open_dataset(assets / "coco_val/instances.json", limit=1, cache_mb=0).first_image
    found: Profile = profile(load_model(assets / name), image[np.newaxis], runs=2, warmup=1)
    by_stage: dict[Stage, Counter[str]] = defaultdict(Counter)
    for node in found.nodes:
        by_stage[node.stage][node.name.partition("/")[0]] += 1
    assert {node.stage for node in found.nodes if node.op == REAL[name]} == {Stage.POSTPROCESSING}
    assert by_stage[Stage.POSTPROCESSING]["FeatureExtractor"] == by_stage[Stage.PREPROCESSING]["FeatureExtractor"] == 0
    assert by_stage[Stage.PRODUCTS]["Postprocessor"] == by_stage[Stage.PREPROCESSING]["Postprocessor"] == 0
    assert sum(found.stages_us.values()) == pytest.approx(found.total_us)
    check_trace(dict(found.trace), runs=2)
