"""Damaged records, full disks and clocks that jump: a run recovers, or is refused in one line, and is never wrong."""

import hashlib
import io
import json
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import yaml

from tuner import pipeline
from tuner.cache import Cache
from tuner.cli import main
from tuner.config import load_config
from tuner.data.images import decode_image
from tuner.errors import ConfigError, TunerError
from tuner.files import read_sealed
from tuner.job import TuningJob
from tuner.model.loading import load_model
from tuner.model.runner import ModelRunner
from tuner.progress import Silent
from tuner.study import open_study, read_study

tf1 = tf.compat.v1

SIDE, SLOTS = 64, 16
KINDS = {"ranges", "detections", "baseline", "damage", "latency", "costs", "changed", "times", "values"}


def make_detector() -> tf1.GraphDef:
    """Of its three convolutions, int8 ruins `deep`: one input channel is large, and counts for nothing.

    So all int8 fails, and the plan with `deep` in float passes, however long anything takes.
    """
    random_state = np.random.default_rng(11)

    def weights(*shape: int) -> Any:
        return (random_state.normal(0, 1, shape) / np.sqrt(np.prod(shape[:3]))).astype(np.float32)

    large = np.ones(16, np.float32)
    large[0] = 3000
    deep = weights(3, 3, 16, 16)
    deep[:, :, 0] = 1e-9
    with tf.Graph().as_default() as graph:
        image = tf1.placeholder(tf.uint8, [1, None, None, 3], name="image_tensor")
        data = tf.cast(image, tf.float32) / 127.5 - 1
        stem = tf1.nn.conv2d(data, 2 * weights(5, 5, 3, 16), [1, 8, 8, 1], "SAME", name="stem")
        data = large * tf.nn.relu6(tf.nn.bias_add(stem, weights(16)))
        data = tf.nn.relu(tf1.nn.conv2d(data, deep, [1, 1, 1, 1], "SAME", name="deep"))
        heads = tf1.nn.conv2d(data, weights(1, 1, 16, 7), [1, 1, 1, 1], "SAME", name="heads")
        offsets, logits = tf.reshape(heads[..., :4], [-1, 4]), tf.reshape(heads[..., 4:], [-1, 3])
        scores = tf.nn.softmax(4 * logits)
        best, cells = tf.math.top_k(tf.reduce_max(scores, -1), SLOTS)
        corners = np.stack(np.meshgrid(np.arange(8), np.arange(8), indexing="ij"), -1).reshape(-1, 2) / 8
        anchors = np.concatenate([corners, corners + 0.125], -1).astype(np.float32)
        boxes = tf.gather(tf.clip_by_value(anchors + 0.05 * tf.tanh(offsets), 0, 1), cells)
        tf.identity(boxes[tf.newaxis], name="detection_boxes")
        tf.identity(best[tf.newaxis], name="detection_scores")
        found = tf.gather(tf.argmax(scores, -1), cells) + 1
        tf.cast(found[tf.newaxis], tf.float32, name="detection_classes")
        tf.fill([1], float(SLOTS), name="num_detections")
    return graph.as_graph_def()


def write_inputs(folder: Path) -> None:
    """`float.pb`, `images/`, the `instances.json` that the detector itself annotated, and `settings.yaml`."""
    (folder / "float.pb").write_bytes(make_detector().SerializeToString())
    (folder / "images").mkdir()
    random_state = np.random.default_rng(12)
    images, annotations = [], []
    with ModelRunner(load_model(folder / "float.pb")) as runner:
        for image_id in range(1, 7):
            patches = random_state.integers(0, 256, (8, 8, 3)).astype(np.float32)
            encoded = tf.io.encode_jpeg(tf.cast(tf.image.resize(patches, (SIDE, SIDE)), tf.uint8)).numpy()
            name = f"{image_id}.jpg"
            (folder / "images" / name).write_bytes(encoded)
            images.append({"id": image_id, "file_name": name, "height": SIDE, "width": SIDE})
            found = runner.detect(decode_image(encoded, name))
            for box, category in zip(found.boxes.tolist(), found.category_ids.tolist(), strict=True):
                ymin, xmin, ymax, xmax = (side * SIDE for side in box)
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": category,
                        "bbox": [xmin, ymin, xmax - xmin, ymax - ymin],
                        "area": (xmax - xmin) * (ymax - ymin),
                        "iscrowd": 0,
                    }
                )
    table = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": f"kind {i}"} for i in (1, 2, 3)],
    }
    (folder / "instances.json").write_text(json.dumps(table))
    dataloader = {"dataset": {"COCORaw": {"root": str(folder / "instances.json")}}}
    settings = {
        "model": {"name": "tiny", "framework": "tensorflow"},
        "quantization": {"int8_only": True, "calibration": {"sampling_size": 4, "dataloader": dataloader}},
        "evaluation": {
            "accuracy": {"metric": {"COCOmAP": {}}, "dataloader": dataloader},
            "performance": {"warmup": 1, "iteration": 2},
        },
        "tuning": {"accuracy_criterion": {"relative": 0.3}, "exit_policy": {"timeout": 0, "max_trials": 8}},
    }
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings))


@dataclass(frozen=True)
class Stored:
    """A finished run, not to be touched. plan, graph_sha256: what it found, as any run that goes on from it must."""

    inputs: Path
    workspace: Path
    plan: str
    graph_sha256: str


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def refused(self) -> bool:
        """In one line, with exit code 2; everything else that is said is a warning."""
        lines = [line for line in self.err.splitlines() if line.strip()]
        if self.code != 2:
            return False
        assert lines and lines[-1].startswith("error: "), self.err
        assert all(line.startswith("warning: ") for line in lines[:-1]), self.err
        return True


def tuner(*arguments: object) -> Said:
    """A command as its user meets it; what is not told in a line leaves as an exception."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = main([str(argument) for argument in arguments])
    return Said(code, out.getvalue(), err.getvalue())


def tune(inputs: Path, workspace: Path, output: Path, *options: str) -> Said:
    return tuner(
        *("tune", "--input_model", inputs / "float.pb", "--config", inputs / "settings.yaml", "--quiet"),
        *("--workspace", workspace, "--output_model", output, *options),
    )


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def made(scratch: Path) -> Stored:
    write_inputs(scratch)
    assert tune(scratch, scratch / "run", scratch / "int8.pb").code == 0
    return Stored(scratch, scratch / "run", (scratch / "run/plan.yaml").read_text(), sha256(scratch / "int8.pb"))


@pytest.fixture(scope="session")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    return made(tmp_path_factory.mktemp("stored"))


@pytest.fixture
def copy(stored: Stored, tmp_path: Path) -> Path:
    """The workspace of that run, to be damaged."""
    return Path(shutil.copytree(stored.workspace, tmp_path / "workspace"))


def goes_on(stored: Stored, workspace: Path, output: Path, *options: str) -> str:
    """ "recovered" where a run in that workspace ends as the undisturbed one did, "refused" where it says why not."""
    said = tune(stored.inputs, workspace, output, *options)
    if said.refused:
        assert not output.exists()
        return "refused"
    assert said.code == 0, said.err
    assert sha256(output) == stored.graph_sha256
    assert (workspace / "plan.yaml").read_text() == stored.plan
    return "recovered"


def flipped(content: bytes, bit: int) -> bytes:
    return content[: bit // 8] + bytes([content[bit // 8] ^ 1 << bit % 8]) + content[bit // 8 + 1 :]


def cached_files(workspace: Path) -> list[Path]:
    return sorted(path for kind in KINDS if (workspace / kind).exists() for path in (workspace / kind).iterdir())


class Placed(Cache):
    """Reads the file of a path, whatever it is named by."""

    def read(self, path: Path) -> Any:
        object.__setattr__(self, "_file", lambda kind, dependencies, suffix: path)
        return self.read_json("", []) if path.suffix == ".json" else self.read_arrays("", [])


def same(found: Any, expected: Any) -> bool:
    if isinstance(expected, dict) and all(isinstance(value, np.ndarray) for value in expected.values()):
        return found.keys() == expected.keys() and all(
            (found[name].dtype, found[name].tobytes()) == (array.dtype, array.tobytes())
            for name, array in expected.items()
        )
    return bool(found == expected)


def test_a_run_leaves_every_kind_of_file(stored: Stored) -> None:
    files = {"study.db", "run.json", "result.json", "driver.json", "plan.yaml", "report.html"}
    assert {entry.name for entry in stored.workspace.iterdir()} == KINDS | files


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_damaged_cache_is_not_used(copy: Path, kind: str) -> None:
    chance = random.Random(kind)
    cache = Placed(copy)
    lost = tries = 0
    for path in (copy / kind).iterdir():
        content, expected = path.read_bytes(), cache.read(path)
        assert expected is not None
        bits = chance.sample(range(8 * len(content)), 100)
        ends = [0, 1, 22, 32, len(content) - 1, *chance.sample(range(len(content)), 15)]
        for damaged in [*(flipped(content, bit) for bit in bits), *(content[:end] for end in ends), content + b"\0"]:
            path.write_bytes(damaged)
            found = cache.read(path)
            assert found is None or same(found, expected)
            lost += found is None
            tries += 1
        # That of another run, under this name.
        path.write_bytes(content)
        other = path.with_name(f"{'0' * 64}{path.suffix}")
        path.rename(other)
        assert cache.read(other) is None
        path.symlink_to(other)
        assert same(cache.read(path), expected)
        path.unlink()
        path.mkdir()
        assert cache.read(path) is None
        path.rmdir()
        other.unlink()
    assert lost >= 0.9 * tries


def spoil(path: Path, how: str, chance: random.Random) -> None:
    content = path.read_bytes()
    if how == "flipped":
        path.write_bytes(flipped(content, chance.randrange(8 * len(content))))
    elif how == "truncated":
        path.write_bytes(content[: chance.randrange(len(content))])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "garbage":
        path.write_bytes(chance.randbytes(1000))
    elif how == "gone":
        path.unlink()
    elif how == "a link":
        path.unlink()
        path.symlink_to("/dev/null")
    elif how == "a folder":
        path.unlink()
        path.mkdir()


HOW = ["flipped", "truncated", "empty", "garbage", "gone", "a link"]


@pytest.mark.parametrize(
    "how", [pytest.param(how, marks=[] if how == "flipped" else [pytest.mark.slow]) for how in [*HOW, "a folder"]]
)
def test_a_run_whose_every_cache_is_damaged(stored: Stored, copy: Path, tmp_path: Path, how: str) -> None:
    for path in cached_files(copy):
        spoil(path, how, random.Random(how + path.parent.name))
    # A new run, so that all of them are read, and one that goes on.
    expected = "refused" if how == "a folder" else "recovered"
    assert goes_on(stored, copy, tmp_path / "new.pb") == expected
    if how != "a folder":
        assert not [path for path in cached_files(copy) if path.is_symlink()]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_runs_with_one_cache_damaged(stored: Stored, copy: Path, tmp_path: Path, seed: int) -> None:
    files, chance = cached_files(copy), random.Random(seed)
    spoil(files[seed % len(files)], chance.choice(HOW), chance)
    options = ["--resume"] if seed >= len(files) else []
    assert goes_on(stored, copy, tmp_path / "new.pb", *options) == "recovered"


def identity(url: str) -> Any:
    return read_study(url).identity


def study_state(url: str, identity: Any) -> Any:
    """What going on would build upon."""
    study = open_study(url, identity, resume=True)
    trials = [(trial, trial.proposal.idea) for trial in study.trials]
    assert 0 <= study.search_s < 1e4
    return study.baseline, trials


def judged_study(copy: Path, known: Any, expected: Any) -> str:
    """What became of a study that may be damaged: "whole", "left out" in part, or "refused"."""
    url = f"sqlite:///{copy / 'study.db'}"
    try:
        baseline, trials = study_state(url, known)
    except TunerError as error:
        assert str(error).startswith(url) and "\n" not in str(error)
        return "refused"
    assert baseline in (expected[0], None)
    assert all(trial in expected[1] for trial in trials), trials
    return "whole" if (baseline, trials) == expected else "left out"


@pytest.mark.parametrize("tries", [25, pytest.param(800, marks=pytest.mark.slow)])
def test_a_study_with_a_flipped_bit(copy: Path, tries: int) -> None:
    path, chance = copy / "study.db", random.Random(8)
    url = f"sqlite:///{path}"
    known = identity(url)
    expected = study_state(url, known)
    content = path.read_bytes()
    # Most of the file is empty pages; half of the tries hit the text of what was measured.
    used = [place for place, byte in enumerate(content) if byte]
    found = Counter()
    for attempt in range(tries):
        place = chance.choice(used) if attempt % 2 else chance.randrange(len(content))
        path.write_bytes(flipped(content, 8 * place + chance.randrange(8)))
        found[judged_study(copy, known, expected)] += 1
        (copy / "study.db-journal").unlink(missing_ok=True)
    assert found["refused"] and found["whole"]


def test_a_study_that_is_cut_off_or_no_study(copy: Path) -> None:
    path = copy / "study.db"
    known = identity(f"sqlite:///{path}")
    expected = study_state(f"sqlite:///{path}", known)
    content = path.read_bytes()
    for damaged in [*(content[:end] for end in range(1, len(content), 4001)), bytes(5000), b"SQLite format 3\0" * 300]:
        path.write_bytes(damaged)
        # SQLite takes a single byte for an empty file.
        assert judged_study(copy, known, expected) == ("refused" if len(damaged) > 1 else "left out")
    path.unlink()
    path.mkdir()
    assert judged_study(copy, known, expected) == "refused"


@pytest.mark.slow
def test_an_empty_study_begins_anew(stored: Stored, copy: Path, tmp_path: Path) -> None:
    (copy / "study.db").write_bytes(b"")
    assert goes_on(stored, copy, tmp_path / "new.pb", "--resume") == "recovered"


def change(path: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        assert database.execute(statement, values).rowcount


def test_a_measurement_that_was_changed_is_not_believed(
    stored: Stored, copy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """JSON as good as any other, in a database that is whole."""
    path = copy / "study.db"
    change(
        path,
        "UPDATE trial_user_attributes SET value_json = replace(value_json, '\"accuracy\": 1.0', '\"accuracy\": 0.1') "
        "WHERE key = 'measurement'",
    )
    change(
        path,
        "UPDATE study_user_attributes SET value_json = replace(value_json, '\"accuracy\": ', '\"accuracy\": 9') "
        "WHERE key = 'baseline'",
    )
    before = read_study(f"sqlite:///{path}")
    assert before.baseline is None
    said = tune(stored.inputs, copy, tmp_path / "new.pb", "--resume")
    assert said.code == 0
    assert "its record is damaged" in said.err
    assert sha256(tmp_path / "new.pb") == stored.graph_sha256
    after = read_study(f"sqlite:///{path}")
    assert (after.baseline.accuracy, after.trials[-1].measurement.accuracy) == (1, 1)


@pytest.mark.parametrize("revision", ["v2.6.0.a", "v99.0.0.a"])
def test_a_study_of_another_optuna(stored: Stored, copy: Path, tmp_path: Path, revision: str) -> None:
    change(copy / "study.db", "UPDATE alembic_version SET version_num = ?", revision)
    said = tune(stored.inputs, copy, tmp_path / "new.pb", "--resume")
    assert said.refused
    assert "no longer compatible with the table schema" in said.err
    assert ("storage upgrade" if revision == "v2.6.0.a" else "install -U optuna") in said.err
    said = tuner("report", copy)
    assert said.code == 0
    assert "study.db: cannot be read" in said.err


def test_a_study_that_another_process_locks(
    stored: Stored, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuner.study_storage.LOCKED_S", 0.2)
    with closing(sqlite3.connect(copy / "study.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        said = tune(stored.inputs, copy, tmp_path / "new.pb", "--resume")
    assert said.refused
    assert "database is locked" in said.err


def test_a_transaction_that_was_cut_off_is_undone(copy: Path) -> None:
    """Its journal lies beside the study, and half of what it did in it."""
    path = copy / "study.db"
    known = identity(f"sqlite:///{path}")
    expected = study_state(f"sqlite:///{path}", known)
    content = path.read_bytes()
    program = (
        f"import os, sqlite3\ndatabase = sqlite3.connect({str(path)!r}, isolation_level=None)\n"
        "database.execute('PRAGMA cache_size = 1')\ndatabase.execute('BEGIN')\n"
        "database.execute(\"UPDATE trial_user_attributes SET value_json = '0' || hex(randomblob(3000))\")\n"
        "os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    assert (copy / "study.db-journal").stat().st_size
    assert path.read_bytes() != content
    assert judged_study(copy, known, expected) == "whole"


def test_a_trial_without_its_end_was_cut_off_whatever_the_files_dates(
    stored: Stored, copy: Path, tmp_path: Path
) -> None:
    url = f"sqlite:///{copy / 'study.db'}"
    study = open_study(url, identity(url), resume=True)
    study.start(study.trials[0].proposal)
    future = datetime(2050, 1, 1).timestamp()
    for path in [copy, *copy.rglob("*")]:
        os.utime(path, (future, future))
    assert goes_on(stored, copy, tmp_path / "new.pb", "--resume") == "recovered"


def test_a_clock_that_is_set_back_or_forward(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = copy / "study.db"
    url = f"sqlite:///{path}"
    known = identity(url)
    spent_s = open_study(url, known, resume=True).search_s
    assert spent_s > 0
    change(path, "UPDATE trials SET datetime_start = '2037-01-01 00:00:00'")
    assert open_study(url, known, resume=True).search_s == spent_s
    change(path, "UPDATE trials SET datetime_start = '1999-01-01 00:00:00'")
    assert open_study(url, known, resume=True).search_s == spent_s
    assert list(read_study(url).ended_s.values()) == sorted(read_study(url).ended_s.values())
    # Trials from before the seconds of the search were kept have nothing but their dates.
    change(path, "DELETE FROM trial_user_attributes WHERE key IN ('search_s', 'sha256')")
    change(path, "UPDATE trials SET datetime_start = '2037-01-01 00:00:00'")
    study = open_study(url, known, resume=True)
    assert (study.search_s, len(study.trials)) == (0, 2)

    class Backwards(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            ticks.append(0)
            return datetime(2026, 1, 1) - timedelta(hours=len(ticks))

    ticks: list[int] = []
    monkeypatch.setattr("optuna.storages._rdb.storage.datetime", Backwards)
    trial = study.trials[-1]
    study.record(replace(trial, number=study.start(trial.proposal)))
    assert ticks
    assert 0 <= study.search_s < 100
    assert 0 <= open_study(url, known, resume=True).search_s < 100


@pytest.fixture
def closed_dashboard(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(self: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tuner.dashboard._Server.serve_forever", stop)


RECORDS = ["run.json", "result.json", "study.db", "driver.json", "plan.yaml", "report.html"]


@pytest.mark.usefixtures("closed_dashboard")
@pytest.mark.parametrize(
    ("name", "how"),
    [
        pytest.param(name, how, marks=[] if how == "truncated" and name in RECORDS[:2] else [pytest.mark.slow])
        for name in RECORDS
        for how in [*HOW, "a folder"]
    ],
)
def test_what_tells_of_a_run_whose_files_are_damaged(copy: Path, name: str, how: str) -> None:
    """Each command tells it as it was, tells what it leaves out, or refuses."""
    content = (copy / name).read_bytes()
    if not content and how in ("flipped", "truncated"):
        return
    explained = tuner("explain", copy, "--json").out
    for seed in range(10 if how in ("flipped", "truncated") else 1):
        spoil(copy / name, how, random.Random(f"{seed} {name}"))
        commands = [["explain", copy, "--json"], ["dashboard", copy, "--port", "0"], ["report", copy]]
        # A report takes a second, and reads what explain does.
        for command in commands if seed == 0 else commands[:2]:
            said = tuner(*command)
            assert said.refused or said.code == 0, said
            # What is left out is said to be, unless it looks as if it had not been written yet.
            if command[0] == "explain" and said.code == 0 and said.out != explained:
                assert name in ("result.json", "study.db")
                assert "left out" in said.err or how == "gone", (how, said)
        if how in ("flipped", "truncated"):
            (copy / name).write_bytes(content)


@pytest.mark.parametrize("name", ["run.json", "result.json"])
def test_a_flipped_bit_of_a_record_is_noticed(copy: Path, name: str) -> None:
    path, chance = copy / name, random.Random(name)
    content, expected = path.read_bytes(), read_sealed(path, 1)
    for bit in chance.sample(range(8 * len(content)), 400):
        path.write_bytes(flipped(content, bit))
        try:
            found = read_sealed(path, 1)
        except ConfigError as error:
            assert str(path) in str(error) and "\n" not in str(error)
        else:
            found.pop(next((key for key in found if key not in expected), ""), None)  # the checksum, its name flipped
            assert found == expected


@pytest.mark.parametrize("name", ["run.json", "result.json"])
def test_a_record_of_another_schema(copy: Path, name: str) -> None:
    path = copy / name
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 7}))
    said = tuner("explain", copy)
    assert said.refused == (name == "run.json")
    assert f"{name}: got schema 7; this version of tuner reads schema 1" in said.err
    if name == "result.json":
        assert tuner("compare", copy, copy).refused


@pytest.mark.parametrize("how", [*HOW, "a folder"])
def test_a_result_that_cannot_be_compared(copy: Path, how: str) -> None:
    spoil(copy / "result.json", how, random.Random(how))
    said = tuner("compare", copy, copy)
    assert said.refused


@pytest.mark.slow
@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize("how", [*HOW, "a folder"])
def test_a_run_goes_on_whatever_record_is_damaged(
    stored: Stored, copy: Path, tmp_path: Path, name: str, how: str
) -> None:
    if how in ("flipped", "truncated") and not (copy / name).stat().st_size:
        return
    spoil(copy / name, how, random.Random(how))
    outcome = goes_on_or_stops_late(stored, copy, tmp_path / "new.pb")
    assert outcome == "recovered" or how in ("a folder", "a link") or name == "study.db"


def goes_on_or_stops_late(stored: Stored, workspace: Path, output: Path) -> str:
    """As `goes_on`, but the graph may have been written before it was refused."""
    said = tune(stored.inputs, workspace, output, "--resume")
    if said.refused:
        assert not output.exists() or sha256(output) == stored.graph_sha256
        return "refused"
    assert said.code == 0
    assert sha256(output) == stored.graph_sha256
    return "recovered"


@contextmanager
def mounted(folder: Path, *arguments: str) -> Iterator[Path]:
    """A file system of its own, on a machine that lets tests have one."""
    folder.mkdir(exist_ok=True)
    if subprocess.run(["mount", *arguments, folder], check=False, capture_output=True).returncode:
        pytest.skip("no file systems can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def nothing_is_half_written(stored: Stored, disk: Path) -> None:
    """Each file that has its final name is whole, and no temporary one is left."""
    names = [path.name for path in disk.rglob("*")]
    assert not [name for name in names if name.startswith(".")], names
    for path in disk.rglob("*.pb"):
        assert sha256(path) == stored.graph_sha256
    for name in ("run.json", "result.json"):
        if (disk / "run" / name).exists():
            read_sealed(disk / "run" / name, 1)
    if (disk / "run/plan.yaml").exists():
        assert (disk / "run/plan.yaml").read_text() == stored.plan
    if (disk / "run/report.html").exists():
        assert (disk / "run/report.html").read_text().endswith("</html>\n")
    for path in cached_files(disk / "run"):
        assert Placed(disk).read(path) is not None


def full_at(stored: Stored, disk: Path, limit: str) -> str:
    """Run on a disk of that limit, then with room; returns what could not be done at first, "" where all could.

    limit: an option of tmpfs, "size=100k" or "nr_inodes=20".
    """
    with mounted(disk, "-t", "tmpfs", "-o", limit, "tmpfs"):
        said = tune(stored.inputs, disk / "run", disk / "out/int8.pb")
        refused = said.refused
        assert refused or said.code == 0, said
        nothing_is_half_written(stored, disk)
        subprocess.run(["mount", "-o", f"remount,{limit.partition('=')[0]}={10**8}", disk], check=True)
        again = tune(stored.inputs, disk / "run", disk / "out/int8.pb", "--resume")
        assert again.code == 0, (said, again)
        nothing_is_half_written(stored, disk)
        assert sha256(disk / "out/int8.pb") == stored.graph_sha256
    # Where it happened, without the name of a cache's file.
    return re.sub(r"[0-9a-f]{64}", "", said.err.splitlines()[-1]) if refused else ""


@pytest.mark.parametrize("limit", [pytest.param("size=60k", marks=pytest.mark.slow), "size=240k"])
def test_a_full_disk(stored: Stored, tmp_path: Path, limit: str) -> None:
    assert "No space left on device" in full_at(stored, tmp_path / "disk", limit) or limit == "size=60k"


@pytest.mark.slow
@pytest.mark.parametrize("limit", ["size", "nr_inodes"])
def test_a_disk_that_is_full_at_every_write(stored: Stored, tmp_path: Path, limit: str) -> None:
    """Sizes in pages, or numbers of files: between two that fail in the same place, all do."""
    found: dict[int, str] = {}

    def try_at(number: int) -> str:
        if number not in found:
            option = f"size={4 * number}k" if limit == "size" else f"nr_inodes={number}"
            found[number] = full_at(stored, tmp_path / "disk", option)
            print(option, found[number] or "completed", flush=True)
        return found[number]

    def between(low: int, high: int) -> None:
        if try_at(low) != try_at(high) and high - low > 1:
            middle = (low + high) // 2
            between(low, middle)
            between(middle, high)

    between(*((2, 128) if limit == "size" else (2, 40)))
    assert found[max(found)] == ""
    assert len(set(found.values())) > 4


def test_a_disk_that_cannot_be_written(stored: Stored, copy: Path, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "-t", "tmpfs", "tmpfs") as disk:
        shutil.copytree(copy, disk / "run")
        (disk / "out").mkdir()
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        for workspace, output in ((disk / "run", tmp_path / "new.pb"), (tmp_path / "other", disk / "out/new.pb")):
            said = tune(stored.inputs, workspace, output, "--resume")
            assert said.refused
            assert "Read-only file system" in said.err
        assert tuner("explain", disk / "run").code == 0
        said = tuner("report", disk / "run")
        assert said.refused
        assert "Read-only file system" in said.err


@contextmanager
def unprivileged(*folders: Path) -> Iterator[None]:
    """Go on as a user who owns nothing but these folders."""
    if os.geteuid():
        yield
        return
    for folder in folders:
        os.chown(folder, 65534, 65534)
        for path in folder.rglob("*"):
            os.chown(path, 65534, 65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_files_that_may_not_be_read(tmp_path: Path) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name) / "cache"
        Cache(folder).write_json("kind", ["a"], 1)
        Cache(folder).write_arrays("kind", ["a"], {"b": np.zeros(3)})
        for path in (folder / "kind").iterdir():
            path.chmod(0)
        with unprivileged(Path(name)):
            assert Cache(folder).read_json("kind", ["a"]) is None
            assert Cache(folder).read_arrays("kind", ["a"]) is None
            Cache(folder).write_json("kind", ["a"], 2)
            assert Cache(folder).read_json("kind", ["a"]) == 2
            (folder / "kind").chmod(0o500)
            with pytest.raises(TunerError, match="Permission denied"):
                Cache(folder).write_json("kind", ["a"], 3)
            assert Cache(folder).read_json("kind", ["a"]) == 2
            (folder / "kind").chmod(0o700)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*KINDS, "study.db", "run.json", "result.json", "."])
def test_a_run_that_may_not_read_what_is_there(stored: Stored, name: str) -> None:
    with TemporaryDirectory() as scratch:
        inputs = Path(shutil.copytree(stored.inputs, Path(scratch) / "inputs"))
        workspace, output = Path(scratch) / "workspace", Path(scratch) / "new.pb"
        shutil.copytree(stored.workspace, workspace)
        settings = (inputs / "settings.yaml").read_text()
        (inputs / "settings.yaml").write_text(settings.replace(str(stored.inputs), str(inputs)))
        with unprivileged(Path(scratch)):
            denied = cached_files(workspace) if name in KINDS else [workspace / name]
            for path in denied:
                if name not in KINDS or path.parent.name == name:
                    path.chmod(0o500 if name == "." else 0)
            said = tune(inputs, workspace, output, "--resume")
            workspace.chmod(0o700)
        if said.refused:
            assert name in ("study.db", "."), said
            return
        assert said.code == 0, said
        assert sha256(output) == stored.graph_sha256


class Deleting(Silent):
    """Deletes a workspace when a stage begins, or when it ends."""

    def __init__(self, workspace: Path, moment: str) -> None:
        self.workspace, self.moment, self.seen = workspace, moment, 0

    @contextmanager
    def stage(self, title: str) -> Iterator[Any]:
        begin, end = f"before {title}" == self.moment, f"after {title}" == self.moment
        if begin:
            shutil.rmtree(self.workspace)
        yield self
        if end:
            shutil.rmtree(self.workspace)
        self.seen += begin or end

    def note(self, text: str) -> None:
        pass


STAGES = ["baseline", "trial 1", "sensitivity", "timing", "trial 2", "export", "compare", "report"]
MOMENTS = [f"{when} {stage}" for stage in STAGES for when in ("before", "after")]


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["after calibrate", *MOMENTS])
def test_a_workspace_that_is_deleted_in_mid_run(stored: Stored, tmp_path: Path, moment: str) -> None:
    workspace, output = tmp_path / "run", tmp_path / "new.pb"
    deleting = Deleting(workspace, moment)
    job = TuningJob(load_config(stored.inputs / "settings.yaml"), stored.inputs / "float.pb", output, workspace)
    try:
        result = pipeline.tune(job, deleting)
    except TunerError as error:
        assert "\n" not in str(error)
        said = str(error)
    else:
        assert result.status.value == "accepted"
        assert sha256(output) == stored.graph_sha256
        said = "completed"
    print(moment, "->", said)
    assert deleting.seen or said != "completed"
    assert not output.exists() or sha256(output) == stored.graph_sha256
    assert goes_on(stored, workspace, tmp_path / "again.pb", "--resume") == "recovered"
