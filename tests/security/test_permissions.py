"""What a file from elsewhere may not do unless the user says so: by every command that reads such files."""

import inspect
import sys
from pathlib import Path

import pytest
import tensorflow as tf
import yaml

from tuner.cli import main
from tuner.cli.app import app

tf1 = tf.compat.v1
ROOT = Path(__file__).parents[2]
RECORDS = str(ROOT / "datasets/shapes/calibration.record")

# Each with a model m.pb, and for what settings name, settings.yaml.
ON_MODELS = {
    "tune": ["--input_model", "m.pb", "--output_model", "q.pb", "--dataset_location", RECORDS],
    "evaluate": ["m.pb", "--dataset_location", RECORDS],
    "benchmark": ["m.pb"],
    "profile": ["m.pb"],
    "compare": ["m.pb", "m.pb", "--dataset_location", RECORDS],
    "export": ["m.pb", "saved", "--format", "savedmodel"],
    "freeze": ["m.pb", "q.pb"],
    "transform": ["m.pb", "q.pb", "--transforms", "fold_constants"],
    "place": ["m.pb", "q.pb", "--device", "/device:CPU:0", "--op", "out"],
    "optimize": ["m.pb", "q.pb"],
    "summarize": ["m.pb"],
    "quantize": ["m.pb", "q.pb", "--mode", "weights"],
}
ON_SETTINGS = {
    "tune": ["--config", "s.yaml", "--input_model", "m.pb", "--output_model", "q.pb"],
    "evaluate": ["m.pb", "--config", "s.yaml"],
    "compare": ["m.pb", "m.pb", "--config", "s.yaml"],
    "quantize": ["m.pb", "q.pb", "--mode", "eightbit", "--plan", "s.yaml"],
    "export": ["m.pb", "q.onnx", "--format", "onnx", "--plan", "s.yaml"],
}


def options_of(command: str) -> set[str]:
    (found,) = (one for one in app.registered_commands if one.callback and one.callback.__name__ == command)
    return set(inspect.signature(found.callback).parameters)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model that reads a file, and settings, such as a pinned plan, that name code; both would leave a trace."""
    monkeypatch.chdir(tmp_path)
    with tf.Graph().as_default() as graph:
        x = tf1.placeholder(tf.float32, [1, 8, 8, 3], name="x")
        content = tf.raw_ops.ReadFile(filename="/etc/hostname", name="evil")
        tf.add(x, tf.cast(tf.strings.length(content), tf.float32), name="out")
    Path("m.pb").write_bytes(graph.as_graph_def().SerializeToString())
    Path("extension_from_elsewhere.py").write_text("open('ran', 'w').close()\naccuracy = len\nimages = []\n")
    settings = {
        "model": {"name": "m"},
        "quantization": {
            "calibration": {"q_dataloader": "extension_from_elsewhere:images"},
            "op_wise": {"conv": {"activation": {"dtype": ["fp32"]}}},
        },
        "evaluation": {"accuracy": {"eval_func": "extension_from_elsewhere:accuracy"}},
    }
    Path("s.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path


@pytest.mark.parametrize("command", ON_MODELS)
def test_a_model_that_reads_a_file(command: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, *ON_MODELS[command]]) == 2
    out, errors = capsys.readouterr()
    refusals = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(refusals) == 1 and errors.endswith(f"{refusals[0]}\n") and out == ""
    assert "m.pb: 1 ops reach files" in refusals[0] and "'evil' (ReadFile)" in refusals[0]
    assert "--allow-ops" in refusals[0]
    assert sorted(path.name for path in folder.iterdir() if path.name != "tuner_workspace") == [
        *("extension_from_elsewhere.py", "m.pb", "s.yaml")
    ]


def test_every_command_that_takes_a_model_can_be_told_to_trust_it() -> None:
    taking = {"model", "input_model", "a"}
    names = {one.callback.__name__ for one in app.registered_commands if one.callback}
    assert {name for name in names if options_of(name) & taking} == set(ON_MODELS)
    assert {name for name in names if "allow_ops" in options_of(name)} == set(ON_MODELS)
    assert {name for name in names if "allow_code" in options_of(name)} == set(ON_SETTINGS)


@pytest.mark.parametrize("command", ["summarize", "freeze"])
def test_a_trusted_model(command: str) -> None:
    assert main([command, *ON_MODELS[command], "--allow-ops"]) == 0


@pytest.mark.parametrize("command", ON_SETTINGS)
def test_settings_that_name_code(command: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, *ON_SETTINGS[command], "--allow-ops"]) == 2
    errors = capsys.readouterr().err
    refusals = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(refusals) == 1
    assert "'extension_from_elsewhere:" in refusals[0] and "is code, " in refusals[0] and "--allow-code" in refusals[0]
    assert not Path("ran").exists() and "extension_from_elsewhere" not in sys.modules
    assert not Path("q.pb").exists()


def test_settings_that_the_user_trusts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "m.pb", "--config", "s.yaml", "--allow-ops", "--allow-code"]) == 2
    assert Path("ran").exists()
    # The module was imported; its list of no images is what is wrong now.
    assert "is code" not in capsys.readouterr().err
    sys.modules.pop("extension_from_elsewhere", None)


def test_permissions_are_not_given_by_chance() -> None:
    for command in ON_MODELS:
        (found,) = (one for one in app.registered_commands if one.callback and one.callback.__name__ == command)
        given = inspect.signature(found.callback).parameters
        assert {given[name].default for name in ("allow_ops", "allow_code") if name in given} == {False}
