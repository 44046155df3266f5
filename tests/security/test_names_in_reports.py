"""A real run whose category, files, model and ops have names that mean mischief: its reports show them, and no more."""

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import tuner
from tuner.cli import main
from tuner.report.result import TuningResult

tf1 = tf.compat.v1

MISCHIEF = "<script>alert(1)</script>\x1b[2J[red]"
FILE = "<img src=x onerror=alert(1)>"  # A path has no "/" in a part.
OP = "conv>b>hi"  # TensorFlow takes ">" in the name of an op, and no "<".
SIDE = 32


class Page(HTMLParser):
    """The tags and texts of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        (self.scripts if self.cdata_elem == "script" else self.texts).append(data)


def write_detector(path: Path) -> np.ndarray:
    """Four boxes in fixed places, scored by a convolution; returns them, [4, 4]."""
    random = np.random.default_rng(3)
    boxes = np.array([[0, 0, 0.5, 0.5], [0, 0.5, 0.5, 1], [0.5, 0, 1, 0.5], [0.5, 0.5, 1, 1]], np.float32)
    with tf.Graph().as_default() as graph:
        image = tf1.placeholder(tf.uint8, [1, SIDE, SIDE, 3], name="image_tensor")
        data = tf.cast(image, tf.float32) / 128.0 - 1.0
        for index, width in enumerate((16, 16, 4)):
            weights = random.normal(0, 0.2, (3, 3, data.shape[-1], width)).astype(np.float32)
            data = tf.nn.relu(tf1.nn.conv2d(data, weights, [1, 2, 2, 1], "SAME", name=f"{OP}_{index}"))
        tf.sigmoid(tf.reduce_mean(data, [1, 2]), name="detection_scores")
        tf.constant(boxes[np.newaxis], name="boxes")
        tf.identity(graph.get_tensor_by_name("boxes:0"), name="detection_boxes")
        tf.constant(np.ones((1, 4), np.float32), name="detection_classes")
        tf.constant(np.full(1, 4, np.float32), name="num_detections")
    path.write_bytes(graph.as_graph_def().SerializeToString())
    return boxes


def write_images(folder: Path, boxes: np.ndarray) -> Path:
    (folder / "images").mkdir()
    random = np.random.default_rng(4)
    images, annotations = [], []
    for number in range(1, 5):
        name = f"{number}{FILE}.jpg"
        pixels = random.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        (folder / "images" / name).write_bytes(tf.io.encode_jpeg(pixels).numpy())
        images.append({"id": number, "file_name": name, "height": SIDE, "width": SIDE})
        for ymin, xmin, ymax, xmax in (boxes * SIDE).tolist():
            box = [xmin, ymin, xmax - xmin, ymax - ymin]
            annotation = {"id": len(annotations) + 1, "image_id": number, "category_id": 1, "bbox": box, "area": 256.0}
            annotations.append({**annotation, "iscrowd": 0})
    table = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": MISCHIEF}]}
    (folder / "instances.json").write_text(json.dumps(table))
    return folder / "instances.json"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[TuningResult, Path]:
    folder = tmp_path_factory.mktemp("mischief") / FILE
    folder.mkdir()
    instances = write_images(folder, write_detector(folder / f"{FILE}.pb"))
    loader = {"dataset": {"COCORaw": {"root": str(instances)}}}
    settings = {
        "model": {"name": MISCHIEF, "framework": "tensorflow"},
        "quantization": {"int8_only": True, "calibration": {"sampling_size": 2, "dataloader": loader}},
        "evaluation": {
            "accuracy": {"metric": {"COCOmAP": {}}, "dataloader": loader},
            "performance": {"warmup": 1, "iteration": 2},
        },
        "tuning": {"accuracy_criterion": {"relative": 0.5}, "exit_policy": {"max_trials": 1}},
    }
    workspace = folder / "workspace"
    return tuner.tune(settings, folder / f"{FILE}.pb", folder / "q.pb", workspace=workspace), workspace


def check(text: str, scripts: int = 0) -> Page:
    """scripts: the page's own."""
    page = Page(text)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == scripts and not {"iframe", "object", "hi"}.intersection(tags)
    assert all((attributes.get("src") or "data:").startswith("data:") for _, attributes in page.tags)
    assert "alert" not in "".join(page.scripts)
    assert not [attributes for _, attributes in page.tags if any(name.startswith("on") for name in attributes)]
    return page


def test_the_report(run: tuple[TuningResult, Path]) -> None:
    text = (run[1] / "report.html").read_text()
    told = "".join(check(text, scripts=1).texts)
    for name in (MISCHIEF.partition("\x1b")[0], FILE, OP):
        assert name in told


def test_the_notebook(run: tuple[TuningResult, Path]) -> None:
    assert FILE in "".join(check(run[0]._repr_html_()).texts)


def test_the_terminal(run: tuple[TuningResult, Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = run[1].parent
    for command in (
        ["compare", str(folder / f"{FILE}.pb"), str(folder / "q.pb"), "--dataset_location", str(folder)],
        ["explain", str(run[1])],
    ):
        assert main([*command, *(["--quiet"] if command[0] == "compare" else [])]) == 0
        told = capsys.readouterr()
        assert "\x1b" not in told.out + told.err


def test_no_name_became_a_path(run: tuple[TuningResult, Path]) -> None:
    folder = run[1].parent
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [f"{FILE}.pb", "images", "instances.json", "q.pb", "workspace"]
    )
    assert not [path for path in run[1].rglob("*") if "script" in path.name or ">" in path.name]
