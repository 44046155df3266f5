import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tuner.errors import TunerError
from tuner.export.output import check_output, export_model
from tuner.model.detection_model import DetectionModel, ModelFormat
from tuner.model.loading import load_model
from tuner.model.runner import ModelRunner

MakeDetector = Callable[..., DetectionModel]

IMAGE = np.random.default_rng(1).integers(0, 256, (1, 24, 32, 3), np.uint8)
FORMS = [("detector.pb", ModelFormat.FROZEN_GRAPH), ("detector", ModelFormat.SAVED_MODEL)]


@pytest.mark.parametrize(("name", "model_format"), FORMS)
def test_read_back_is_the_same_detector(
    tmp_path: Path, make_detector: MakeDetector, name: str, model_format: ModelFormat
) -> None:
    model = make_detector()

    export_model(model, tmp_path / "made" / "here" / name)

    read = load_model(tmp_path / "made" / "here" / name)
    assert read.format is model_format
    assert read.inputs == model.inputs
    assert read.outputs == model.outputs
    assert read.graph_def.node == model.graph_def.node
    assert [entry.name for entry in (tmp_path / "made" / "here").iterdir()] == [name]


def test_signature_says_what_the_frozen_graph_says(tmp_path: Path, make_detector: MakeDetector) -> None:
    model = make_detector()
    export_model(model, tmp_path / "detector")
    export_model(model, tmp_path / "detector.pb")

    serve = tf.saved_model.load(str(tmp_path / "detector")).signatures["serving_default"]
    served = serve(image_tensor=tf.constant(IMAGE))

    with ModelRunner(load_model(tmp_path / "detector.pb")) as runner:
        expected = runner.run(IMAGE)
    assert {f"{key}:0" for key in served} == set(expected)
    for key, value in served.items():
        np.testing.assert_array_equal(value.numpy(), expected[f"{key}:0"])


def test_signature_names_scopes_and_later_outputs(tmp_path: Path, make_detector: MakeDetector) -> None:
    model = make_detector(scope="net")
    top = DetectionModel(model.graph_def, model.inputs, ("net/top:0", "net/top:1"), model.source, model.format)

    export_model(top, tmp_path / "detector")

    serve = tf.saved_model.load(str(tmp_path / "detector")).signatures["serving_default"]
    served = serve(**{"net/image_tensor": tf.constant(IMAGE)})
    read = load_model(tmp_path / "detector")
    with ModelRunner(top) as before, ModelRunner(read) as after:
        scores, order = before.run(IMAGE).values()
        read_back = after.run(IMAGE)
    np.testing.assert_array_equal(served["net/top"].numpy(), scores)
    np.testing.assert_array_equal(served["net/top_output_1"].numpy(), order)
    np.testing.assert_array_equal(read_back["net/top_output_1:0"], order)


@pytest.mark.parametrize(("name", "model_format"), FORMS)
def test_older_export_is_replaced(
    tmp_path: Path, make_detector: MakeDetector, name: str, model_format: ModelFormat
) -> None:
    export_model(make_detector(seed=0), tmp_path / name)
    if model_format is ModelFormat.SAVED_MODEL:
        (tmp_path / name / "variables").mkdir()

    export_model(make_detector(seed=1), tmp_path / name)

    assert load_model(tmp_path / name).graph_def.node == make_detector(seed=1).graph_def.node
    assert not (tmp_path / name / "variables").exists()
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_linked_saved_model_is_replaced_where_it_lies(tmp_path: Path, make_detector: MakeDetector) -> None:
    export_model(make_detector(seed=0), tmp_path / "version_1")
    (tmp_path / "latest").symlink_to("version_1")

    export_model(make_detector(seed=1), tmp_path / "latest")

    assert (tmp_path / "latest").is_symlink()
    assert load_model(tmp_path / "version_1").graph_def.node == make_detector(seed=1).graph_def.node


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], check=False, capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize(("name", "model_format"), FORMS)
def test_full_disk_keeps_the_old_export(
    full_disk: Path, make_detector: MakeDetector, name: str, model_format: ModelFormat
) -> None:
    old = make_detector(seed=0)
    export_model(old, full_disk / name)

    with pytest.raises(TunerError) as raised:
        export_model(make_detector(seed=1, channels=4000), full_disk / name)

    message = str(raised.value)
    assert message.startswith(str(full_disk / name))
    assert message.endswith("cannot be written: No space left on device")
    assert "\n" not in message
    assert [entry.name for entry in full_disk.iterdir()] == [name]
    assert load_model(full_disk / name).graph_def.node == old.graph_def.node


def _make_places(root: Path) -> None:
    (root / "file").write_text("a file")
    (root / "folder.pb").mkdir()
    (root / "photos").mkdir()
    (root / "photos" / "cat.jpg").write_text("a photo")
    (root / "mixed").mkdir()
    (root / "mixed" / "saved_model.pb").write_text("a model")
    (root / "mixed" / "notes.txt").write_text("notes")
    (root / "unfinished" / "variables").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "old").mkdir()
    (root / "old" / "saved_model.pb").write_text("a model")
    (root / "old.pb").write_text("a graph")


REFUSED = [
    ("folder.pb", "is a folder"),
    ("file", "is a file"),
    ("photos", "cat.jpg"),
    ("mixed", "notes.txt"),
    ("unfinished", "variables"),
    ("file/detector.pb", "file is not a folder"),
    ("file/below/detector", "file is not a folder"),
    (f"{'long' * 100}.pb", "File name too long"),
]


@pytest.mark.parametrize(("name", "reason"), REFUSED)
def test_place_that_cannot_be_written(tmp_path: Path, make_detector: MakeDetector, name: str, reason: str) -> None:
    _make_places(tmp_path)
    before = sorted(map(str, tmp_path.rglob("*")))

    for attempt in (lambda: check_output(tmp_path / name), lambda: export_model(make_detector(), tmp_path / name)):
        with pytest.raises(TunerError) as raised:
            attempt()
        message = str(raised.value)
        assert message.startswith(f"{tmp_path / name}: ")
        assert reason in message
        assert "\n" not in message

    assert sorted(map(str, tmp_path.rglob("*"))) == before


@pytest.mark.parametrize("name", ["new.pb", "new", "deep/er/new.pb", "deep/er/new", "empty", "old", "old.pb"])
def test_place_that_can_be_written_is_left_alone(tmp_path: Path, name: str) -> None:
    _make_places(tmp_path)
    before = sorted(map(str, tmp_path.rglob("*")))

    check_output(tmp_path / name)

    assert sorted(map(str, tmp_path.rglob("*"))) == before


@pytest.mark.parametrize("name", ["detector.pb", "detector", "below/detector"])
def test_folder_that_cannot_be_written(name: str) -> None:
    # The one folder of a Linux machine in which nobody, not even root, may make a file.
    with pytest.raises(TunerError, match=f"/proc/{name}: cannot be written: "):
        check_output(Path("/proc") / name)


def test_relative_name_is_checked_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    check_output(Path("detector.pb"))

    Path("taken").write_text("a file")
    with pytest.raises(TunerError, match=r"^taken/detector.pb: cannot be written: .*taken is not a folder"):
        check_output(Path("taken/detector.pb"))
