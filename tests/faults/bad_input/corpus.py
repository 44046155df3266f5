"""The corpus: every damaged file with the command that reads it. The same seed makes the same corpus."""

import io
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import tensorflow as tf
import yaml
from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from tests.faults.bad_input import originals
from tests.faults.bad_input.examples import (
    frame_all,
    many_damaged_frames,
    wrong_examples,
    wrong_frames,
    wrong_images,
)
from tests.faults.bad_input.graphs import CHANGES, wrong_graphs
from tests.faults.bad_input.mutations import (
    BYTES,
    REPLACED,
    json_texts,
    with_wrong_values,
    without_a_key,
    yaml_texts,
)

SEED = 9527
OUTPUT = "out/q.pb"
SUMMARIZE = ("summarize",)
QUANTIZE = ("quantize", originals.GRAPH, OUTPUT, "--mode", "eightbit")


@dataclass(frozen=True)
class Case:
    """One damaged input. kind: of what. changes: by path, the content in the file's place; None removes the file."""

    kind: str
    name: str
    changes: Mapping[str, bytes | None] = field(repr=False)
    command: Sequence[str]

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}: tuner {' '.join(self.command)}"


def evaluate(dataset: str, *more: str) -> tuple[str, ...]:
    return ("evaluate", originals.GRAPH, "--dataset_location", dataset, "--iters", "1", "--quiet", *more)


def tune(*settings: str) -> tuple[str, ...]:
    asked = ("tune", "--input_model", originals.GRAPH, "--output_model", OUTPUT, "--workspace", "workspace", "--quiet")
    return (*asked, *settings)


def corpus(folder: Path, seed: int = SEED) -> list[Case]:
    """All cases. folder: what `write_originals` wrote."""
    kinds: Mapping[str, Callable[[Path, Random], Iterator[Case]]] = {
        "GraphDef": _graphs,
        "SavedModel": _saved_models,
        "checkpoint": _checkpoints,
        "Keras": _keras,
        "TFRecord": _records,
        "JPEG": _images,
        "instances": _instances,
        "label map": _label_maps,
        "config": _configs,
        "plan": _plans,
    }
    return [case for kind, make in kinds.items() for case in make(folder, Random(f"{seed} {kind}"))]


def _graphs(folder: Path, random: Random) -> Iterator[Case]:
    content = (folder / originals.GRAPH).read_bytes()
    commands = [
        ("summarize", originals.GRAPH),
        evaluate(originals.RECORDS),
        (*QUANTIZE, "--plan", originals.PLAN),
        ("summarize", originals.GRAPH),
        tune("--config", originals.CONFIG),
    ]
    detections = [
        name for name in CHANGES if any(word in name for word in ("boxes", "scores", "classes", "detections"))
    ]
    for number, (name, changed) in enumerate(wrong_graphs(content, random)):
        command = evaluate(originals.RECORDS) if name in detections else commands[number % len(commands)]
        yield Case("GraphDef", name, {originals.GRAPH: changed}, command)
    for number, (name, changed) in enumerate(_damaged(content, random, 4)):
        yield Case("GraphDef", name, {originals.GRAPH: changed}, commands[number % len(commands)])


def _saved_models(folder: Path, random: Random) -> Iterator[Case]:
    for model in (originals.SAVED_MODEL, originals.FUNCTIONS):
        command = ("summarize", model)
        for path in sorted((folder / model).rglob("*.*")):
            if path.is_file():
                name = str(path.relative_to(folder))
                times = 2 if path.name == "saved_model.pb" else 1
                yield Case("SavedModel", f"{name} missing", {name: None}, command)
                for damage, content in _damaged(path.read_bytes(), random, times, replaced=2):
                    yield Case("SavedModel", f"{name} {damage}", {name: content}, command)
        pb = f"{model}/saved_model.pb"
        for name, change in _SAVED_MODEL_CHANGES.items():
            saved = SavedModel.FromString((folder / pb).read_bytes())
            change(saved)
            yield Case("SavedModel", f"{model}: {name}", {pb: saved.SerializeToString()}, command)


def _graph_of(saved: Any) -> Any:
    return saved.meta_graphs[0].graph_def


def _first_signature(saved: Any) -> Any:
    return saved.meta_graphs[0].signature_def["serving_default"]


def _each_name(saved: Any, name: str) -> None:
    for info in _first_signature(saved).outputs.values():
        info.name = name


_SAVED_MODEL_CHANGES: Mapping[str, Callable[[Any], None]] = {
    "no graphs": lambda saved: saved.ClearField("meta_graphs"),
    "two graphs": lambda saved: saved.meta_graphs.add().CopyFrom(saved.meta_graphs[0]),
    "no tags": lambda saved: saved.meta_graphs[0].meta_info_def.ClearField("tags"),
    "no signatures": lambda saved: saved.meta_graphs[0].ClearField("signature_def"),
    "no outputs": lambda saved: _first_signature(saved).ClearField("outputs"),
    "no inputs": lambda saved: _first_signature(saved).ClearField("inputs"),
    "outputs that are not there": lambda saved: _each_name(saved, "nowhere:0"),
    "outputs of no name": lambda saved: _each_name(saved, ""),
    "no nodes": lambda saved: _graph_of(saved).ClearField("node"),
    "no functions": lambda saved: _graph_of(saved).ClearField("library"),
    "no objects": lambda saved: saved.meta_graphs[0].ClearField("object_graph_def"),
    "objects that are nothing": lambda saved: saved.meta_graphs[0].object_graph_def.nodes.add(),
    "children that are not there": lambda saved: (
        saved.meta_graphs[0].object_graph_def.nodes.add().children.add(node_id=10**6, local_name="x")
    ),
    "no saver": lambda saved: saved.meta_graphs[0].ClearField("saver_def"),
    "a graph of a node without an op": lambda saved: _graph_of(saved).node.add(name="x"),
    "an op to come": lambda saved: _graph_of(saved).node.add(name="x", op="FromTheFuture"),
    "a version to come": lambda saved: setattr(_graph_of(saved).versions, "min_consumer", 10**6),
}


def _checkpoints(folder: Path, random: Random) -> Iterator[Case]:
    command = ("summarize", originals.CHECKPOINT)
    for path in sorted((folder / originals.CHECKPOINT).iterdir()):
        name = str(path.relative_to(folder))
        yield Case("checkpoint", f"{path.name} missing", {name: None}, command)
        for damage, content in _damaged(path.read_bytes(), random, 2 if path.suffix == ".meta" else 1, replaced=3):
            yield Case("checkpoint", f"{path.name} {damage}", {name: content}, command)
    named = f"{originals.CHECKPOINT}/checkpoint"
    for text in ('"../../secret"', '""', '"no end', '"' + "x" * 5000 + '"', '"a\\0b"'):
        yield Case("checkpoint", f"names {text[:20]}", {named: f"model_checkpoint_path: {text}\n".encode()}, command)
    meta = f"{originals.CHECKPOINT}/model.ckpt.meta"
    content = (folder / meta).read_bytes()
    for name, change in _META_CHANGES.items():
        graph = MetaGraphDef.FromString(content)
        change(graph)
        yield Case("checkpoint", name, {meta: graph.SerializeToString()}, command)
    graph_def = MetaGraphDef.FromString(content).graph_def.SerializeToString()
    for name, changed in wrong_graphs(graph_def, random, _CHANGES_OF_A_CHECKPOINT):
        graph = MetaGraphDef.FromString(content)
        graph.graph_def.ParseFromString(changed)
        yield Case("checkpoint", name, {meta: graph.SerializeToString()}, command)


_META_CHANGES: Mapping[str, Callable[[Any], None]] = {
    "no saver": lambda graph: graph.ClearField("saver_def"),
    "a saver of other names": lambda graph: setattr(graph.saver_def, "restore_op_name", "nowhere"),
    "a saver of no file": lambda graph: setattr(graph.saver_def, "filename_tensor_name", ""),
    "a saver of version 9": lambda graph: setattr(graph.saver_def, "version", 9),
    "no graph": lambda graph: graph.ClearField("graph_def"),
    "no collections": lambda graph: graph.ClearField("collection_def"),
    "a collection of nothing": lambda graph: graph.collection_def["variables"].bytes_list.value.append(b"\xff\xff"),
    "a collection of missing nodes": lambda graph: graph.collection_def["losses"].node_list.value.append("nowhere:0"),
}
_CHANGES_OF_A_CHECKPOINT = (
    "a constant of negative size",
    "a constant of huge size",
    "one value for a terabyte",
    "a cycle",
    "a missing node is read",
    "two nodes of one name",
    "an unknown op",
    "a version to come",
    "an input of huge size",
    "a node removed",
)


def _keras(folder: Path, random: Random) -> Iterator[Case]:
    for name in (originals.KERAS, originals.H5):
        for damage, content in _damaged((folder / name).read_bytes(), random, 2, replaced=3):
            yield Case("Keras", f"{name} {damage}", {name: content}, ("summarize", name))
    command = ("summarize", originals.KERAS)
    with zipfile.ZipFile(folder / originals.KERAS) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for missing in members:
        kept = {name: content for name, content in members.items() if name != missing}
        yield Case("Keras", f"{missing} missing", {originals.KERAS: _zipped(kept)}, command)
    settings = json.loads(members["config.json"])
    texts = [*json_texts(settings), *_dumped(with_wrong_values(settings, random, 22))]
    texts += _dumped(without_a_key(settings, random, 8))
    for name, content in texts:
        yield Case(
            "Keras", f"config.json: {name}", {originals.KERAS: _zipped({**members, "config.json": content})}, command
        )
    for name, damage in BYTES.items():
        weights = damage(members["model.weights.h5"], random)
        archive_bytes = _zipped({**members, "model.weights.h5": weights})
        yield Case("Keras", f"model.weights.h5 {name}", {originals.KERAS: archive_bytes}, command)


def _records(folder: Path, random: Random) -> Iterator[Case]:
    records = _read(folder)
    commands = [
        evaluate(originals.RECORDS),
        evaluate(originals.RECORDS, "--skip-bad-records"),
        (*QUANTIZE, "--plan", originals.PLAN),
        evaluate(originals.RECORDS),
    ]
    cases = [(name, frame_all([changed, *records[1:]])) for name, changed in wrong_examples(records[0], random)]
    cases += wrong_frames(records, random)
    cases += [(name, content) for name, content in REPLACED.items()]
    for number, (name, content) in enumerate(cases):
        yield Case("TFRecord", name, {originals.RECORDS: content}, commands[number % len(commands)])
    many = {originals.RECORDS: many_damaged_frames(records[0], 3000)}
    yield Case("TFRecord", "3,000 damaged frames", many, evaluate(originals.RECORDS, "--skip-bad-records"))
    yield Case(
        "TFRecord", "cut, in a run", {originals.RECORDS: frame_all(records)[:-9]}, tune("--config", originals.CONFIG)
    )


def _images(folder: Path, random: Random) -> Iterator[Case]:
    records = _read(folder)
    commands = [evaluate(originals.RECORDS), evaluate(originals.RECORDS, "--skip-bad-records")]
    for number, (name, changed) in enumerate(wrong_images(records[0], random)):
        content = frame_all([changed, *records[1:]])
        yield Case("JPEG", name, {originals.RECORDS: content}, commands[number % len(commands)])


def _instances(folder: Path, random: Random) -> Iterator[Case]:
    content = (folder / originals.INSTANCES).read_bytes()
    table = json.loads(content)
    # The first of each, so that a place is as often in one list as in another.
    small = {"images": table["images"], "annotations": table["annotations"][:3], "categories": table["categories"]}
    texts = [*json_texts(table), *_damaged(content, random, 1)]
    texts += _dumped(with_wrong_values(small, random, 66))
    texts += _dumped(without_a_key(small, random, 16))
    texts += _dumped((f"boxes are {box}", _with_box(table, box)) for box in _BOXES)
    texts += _dumped((f"a file called {name[:20]!r}", _with_file(table, name)) for name in _FILES)
    for number, (name, changed) in enumerate(texts):
        skip = ("--skip-bad-records",) if number % 3 == 2 else ()
        yield Case("instances", name, {originals.INSTANCES: changed}, evaluate(originals.INSTANCES, *skip))


_BOXES: Sequence[Any] = (
    [float("nan")] * 4,
    [float("inf"), 0, 1, 1],
    [0, 0, -1, 4],
    [30, 30, 30, 30],
    [1e308] * 4,
    [0, 0, 0, 0],
    [10**400] * 4,
    [True] * 4,
    ["1"] * 4,
    [1, 2, 3],
    [[1], 2, 3, 4],
)
_FILES = ("", ".", "..", "/dev/zero", "/etc/passwd", "x" * 5000, "a\0b", "\ud800.jpg", "images")


def _with_box(table: Mapping[str, Any], box: Any) -> dict[str, Any]:
    return {**table, "annotations": [{**one, "bbox": box} for one in table["annotations"]]}


def _with_file(table: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {**table, "images": [{**table["images"][0], "file_name": name}, *table["images"][1:]]}


def _label_maps(folder: Path, random: Random) -> Iterator[Case]:
    text = (folder / originals.LABELS).read_text()
    table = yaml.safe_load(text)
    texts = [*yaml_texts(text), *_damaged(text.encode(), random, 1)]
    texts += _as_yaml(with_wrong_values(table, random, 22))
    texts += [("one id for all", b"bolt: 1\nnut: 1\nring: 1\n"), ("ids of others", b"bolt: 7\nnut: 8\nring: 9\n")]
    for name, content in texts:
        command = ("evaluate", originals.GRAPH, "--config", originals.LABELLED, "--quiet")
        yield Case("label map", name, {originals.LABELS: content}, command)


def _configs(folder: Path, random: Random) -> Iterator[Case]:
    text = (folder / originals.CONFIG).read_text()
    table = yaml.safe_load(text)
    evaluated = ("evaluate", originals.GRAPH, "--config", originals.CONFIG, "--quiet")
    commands = [evaluated, evaluated, tune("--config", originals.CONFIG), (*QUANTIZE, "--config", originals.CONFIG)]
    texts = [*yaml_texts(text), *_damaged(text.encode(), random, 1)]
    texts += _as_yaml(with_wrong_values(table, random, 66))
    texts += _as_yaml(without_a_key(table, random, 12))
    for number, (name, content) in enumerate(texts):
        yield Case("config", name, {originals.CONFIG: content}, commands[number % len(commands)])


def _plans(folder: Path, random: Random) -> Iterator[Case]:
    text = (folder / originals.PLAN).read_text()
    table = yaml.safe_load(text)
    decisions = table["quantization"]["op_wise"]
    texts = [*yaml_texts(text), *_damaged(text.encode(), random, 1)]
    for name, changed in [*with_wrong_values(decisions, random, 44), *without_a_key(decisions, random, 12)]:
        texts += _as_yaml([(name, {**table, "quantization": {**table["quantization"], "op_wise": changed}})])
    for op in ("(a+)+$", "[", "(" * 500, "a{1000000}", "*", "", "nowhere", "stem:0", "a|" * 5000):
        changed = {**decisions, op: {"activation": {"dtype": ["fp32"]}}}
        texts += _as_yaml([(f"a rule for {op[:20]!r}", {**table, "quantization": {"op_wise": changed}})])
    for name, content in texts:
        yield Case("plan", name, {originals.PLAN: content}, (*QUANTIZE, "--plan", originals.PLAN))


def _damaged(content: bytes, random: Random, times: int, replaced: int = len(REPLACED)) -> Iterator[tuple[str, bytes]]:
    for name, damage in BYTES.items():
        for turn in range(times):
            yield f"{name}, {turn}" if times > 1 else name, damage(content, random)
    yield from list(REPLACED.items())[:replaced]


def _dumped(documents: Any) -> Iterator[tuple[str, bytes]]:
    return ((name, json.dumps(document).encode()) for name, document in documents)


def _as_yaml(documents: Any) -> Iterator[tuple[str, bytes]]:
    for name, document in documents:
        # Text that YAML cannot hold is written as JSON, which YAML reads.
        yield name, json.dumps(document).encode()


def _zipped(members: Mapping[str, bytes]) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return written.getvalue()


def _read(folder: Path) -> list[bytes]:
    return [record.numpy() for record in tf.data.TFRecordDataset(str(folder / originals.RECORDS))]
