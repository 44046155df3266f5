"""fetch-model and prepare-dataset, against a real server on this machine."""

import hashlib
import io
import json
import re
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tuner.cli import main, prepare_commands
from tuner.data.dataset import open_dataset
from tuner.download.archives import COCO_ANNOTATIONS, COCO_IMAGES, MODELS, Archive

NAME = "ssd_mobilenet_v1"
FOLDER = MODELS[NAME].folder


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of the folder `served`."""
    monkeypatch.setenv("no_proxy", "*")
    (tmp_path / "served").mkdir()
    http = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=tmp_path / "served"))
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}/"
    http.shutdown()
    http.server_close()
    thread.join()


def stand_in(archive: Archive, content: bytes) -> Archive:
    """Serves `content` in the place of a published archive."""
    Path("served", archive.file_name).write_bytes(content)
    return Archive(archive.address, len(content), hashlib.sha256(content).hexdigest(), archive.folder)


@pytest.fixture
def model(mirror: str, monkeypatch: pytest.MonkeyPatch) -> Archive:
    """A small archive in the place of a published detector's."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name in ("frozen_inference_graph.pb", "model.ckpt.meta", "saved_model/saved_model.pb"):
            member = tarfile.TarInfo(f"{FOLDER}/{name}")
            member.size = 5000
            tar.addfile(member, io.BytesIO(np.random.default_rng(0).bytes(5000)))
    archive = stand_in(MODELS[NAME], file.getvalue())
    monkeypatch.setattr(prepare_commands, "MODELS", {**MODELS, NAME: archive})
    return archive


@pytest.fixture
def coco(mirror: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small archives in the place of val2017's: three images with a masked object each."""
    images, instances = io.BytesIO(), io.BytesIO()
    table: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "person"}]}
    with zipfile.ZipFile(images, "w") as zipped:
        for number in (1, 2, 3):
            pixels = np.random.default_rng(number).integers(0, 256, (40, 50, 3), np.uint8)
            zipped.writestr(f"val2017/{number}.jpg", tf.io.encode_jpeg(pixels).numpy())
            table["images"].append({"id": number, "file_name": f"{number}.jpg", "height": 40, "width": 50})
            box = {"bbox": [1, 1, 8, 8], "segmentation": [[1, 1, 9, 1, 9, 9, 1, 9]]}
            table["annotations"].append({"id": number, "image_id": number, "category_id": 1, "area": 64, **box})
    with zipfile.ZipFile(instances, "w", zipfile.ZIP_STORED) as zipped:
        zipped.writestr("annotations/instances_val2017.json", json.dumps(table))
        zipped.writestr("annotations/captions_val2017.json", "{}")
    val2017 = stand_in(COCO_IMAGES["val2017"], images.getvalue())
    monkeypatch.setattr(prepare_commands, "COCO_IMAGES", {**COCO_IMAGES, "val2017": val2017})
    monkeypatch.setattr(prepare_commands, "COCO_ANNOTATIONS", stand_in(COCO_ANNOTATIONS, instances.getvalue()))


def fields(printed: str) -> dict[str, str]:
    """The rows of a table of facts, each in one piece."""
    rows: dict[str, str] = {}
    key = ""
    for line in printed.splitlines():
        found = re.fullmatch(r" (\S.*?)?  +(\S.*?) *", line)
        if found:
            key = found[1] or key
            rows[key] = rows.get(key, "") + found[2]
    return rows


def test_a_model_is_fetched_once(model: Archive, mirror: str, capsys: Any) -> None:
    assert main(["fetch-model", NAME, "--model_path", "models", "--mirror", mirror]) == 0
    out, err = capsys.readouterr()
    told = fields(out)
    assert (told["model"], told["state"]) == (f"models/{FOLDER}", "fetched")
    assert told["frozen graph"] == f"models/{FOLDER}/frozen_inference_graph.pb"
    assert {"checkpoint", "SavedModel"} <= told.keys()
    assert told["SHA-256"] == model.sha256
    assert [line.split()[0] for line in err.splitlines()] == ["download", "verify", "unpack"]
    Path("served", model.file_name).unlink()
    assert main(["fetch-model", "--model_name", NAME, "--model-path=models", "--mirror", mirror]) == 0
    out, err = capsys.readouterr()
    assert fields(out)["state"] == "was there, complete"
    assert err == ""
    assert [path.name for path in Path("models").iterdir()] == [FOLDER]


def test_fresh_fetches_again(model: Archive, mirror: str, capsys: Any) -> None:
    assert main(["fetch-model", NAME, "--mirror", mirror, "-q"]) == 0
    Path(FOLDER, "saved_model/saved_model.pb").unlink()
    assert main(["fetch-model", NAME, "--mirror", mirror, "-q"]) == 2
    assert "give --fresh to replace it" in capsys.readouterr().err
    assert main(["fetch-model", NAME, "--mirror", mirror, "-q", "--fresh"]) == 0
    assert Path(FOLDER, "saved_model/saved_model.pb").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fetch-model"], "expected one name; known are ssd_resnet50_v1, ssd_mobilenet_v1"),
        (["fetch-model", NAME, "--model_name", NAME], "expected one name"),
        (["fetch-model", "ssd_mobilenet"], "(did you mean 'ssd_mobilenet_v1'?)"),
        (["fetch-model", NAME, "--mirror", "file:///x"], "begins with http:// or https://"),
        (["prepare-dataset", "coco"], "--output"),
        (["prepare-dataset", "voc", "--output", "o"], "'voc'"),
        (["prepare-dataset", "coco", "--output", "o", "--images", "i"], "expected --images and --annotations"),
        (["prepare-dataset", "coco", "--output", "o", "--mirror", "http://x"], "--mirror is for --download"),
        (["prepare-dataset", "coco", "--output", "o", "--download", "--annotations", "a.json"], "brings its own"),
        (["prepare-dataset", "coco", "--output", "o", "--download", "--images", "i"], "val2017 and train2017"),
        (["prepare-dataset", "coco", "--output", "o", "--images", "i", "--annotations", "a.json"], "a.json: cannot be"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, capsys: Any) -> None:
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
    assert not Path("o").exists()


def test_a_wrong_archive_is_one_line(model: Archive, mirror: str, capsys: Any) -> None:
    served = Path("served", model.file_name)
    served.write_bytes(served.read_bytes()[:-1] + b"?")
    assert main(["fetch-model", NAME, "--mirror", mirror, "-q"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert model.sha256 in line and "SHA-256 is" in line
    assert [path.name for path in Path().iterdir()] == ["served"]


def test_a_published_set_becomes_records(coco: None, mirror: str, capsys: Any) -> None:
    arguments = ["prepare-dataset", "coco", "--download", "--dataset_location", "o", "--shards", "2"]
    assert main([*arguments, "--mirror", mirror]) == 0
    out, err = capsys.readouterr()
    told = fields(out)
    assert told["records"].startswith("o/val2017.record-?????-of-00002, ")
    assert told["objects"] == "3, with masks"
    assert [line.split()[0] for line in err.splitlines()] == [
        *(["download", "verify", "unpack"] * 2),
        *("read", "check", "convert"),
    ]
    dataset = open_dataset(Path("o"), masks=True)
    assert [entry.image_id for entry in dataset.entries] == [1, 2, 3]
    assert [entry.ground_truth.masks.areas_px.tolist() for entry in dataset.entries if entry.ground_truth.masks] == [
        [64.0]
    ] * 3
    for path in Path("served").iterdir():
        path.unlink()
    assert main([*arguments, "--mirror", mirror]) == 0
    assert fields(capsys.readouterr().out)["files"] == "2, of which 2 were there"


def test_the_images_say_where_to_download_to(coco: None, mirror: str, capsys: Any) -> None:
    given = ["--download", "--images", "data/val2017", "--output", "o", "--limit", "2", "--no-masks"]
    assert main(["prepare-dataset", "coco", *given, "--mirror", mirror, "-q"]) == 0
    out, err = capsys.readouterr()
    told = fields(out)
    assert told["records"].startswith("o/val2017.record, ")
    assert (told["images"], told["objects"], err) == ("2", "2, without masks", "")
    assert sorted(path.name for path in Path("data").iterdir()) == ["annotations", "val2017"]


def test_bad_images_are_left_out_where_asked(coco: None, mirror: str, capsys: Any) -> None:
    given = ["prepare-dataset", "coco", "--download", "--output", "o", "--mirror", mirror, "-q"]
    assert main([*given, "--limit", "1"]) == 0
    Path("o/val2017/2.jpg").write_bytes(b"\xff\xd8\xffno more")
    own = ["--images", "o/val2017", "--annotations", "o/annotations/instances_val2017.json", "--output", "own", "-q"]
    capsys.readouterr()
    assert main(["prepare-dataset", "coco", *own]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "(2.jpg): image does not decode" in line
    assert main(["prepare-dataset", "coco", *own, "--skip-bad-records"]) == 0
    assert fields(capsys.readouterr().out)["left out"].startswith("1 bad images; the first: ")
