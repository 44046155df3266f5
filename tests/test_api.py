"""The Python entry points, on a model of three convolutions whose user brings images and accuracy."""

import hashlib
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import yaml

import tuner
from tuner.api import Quantization, QuantizedModel, tune
from tuner.config import parse_config
from tuner.criterion import Status
from tuner.errors import ConfigError, DatasetError, QuantizationError
from tuner.model.loading import load_model

tf1 = tf.compat.v1

SETTINGS: dict[str, Any] = {
    "model": {"name": "three", "framework": "tensorflow"},
    # Which of such small graphs is the fastest is chance.
    "quantization": {"int8_only": True, "calibration": {"sampling_size": 3}},
    "evaluation": {"accuracy": {}, "performance": {"warmup": 1, "iteration": 2}},
    "tuning": {"accuracy_criterion": {"relative": 0.1}},
}


def make_graph() -> tf.Graph:
    random = np.random.default_rng(5)
    with tf.Graph().as_default() as graph:
        data = tf1.placeholder(tf.float32, [None, None, None, 3], name="image")
        for name, (before, after) in {"first": (3, 8), "second": (8, 8), "third": (8, 4)}.items():
            weights = random.normal(0, 0.2, (3, 3, before, after)).astype(np.float32)
            data = tf.nn.relu(tf1.nn.conv2d(data, weights, [1, 1, 1, 1], "SAME", name=name))
        tf.identity(data, name="result")
    return graph


class Loader:
    """Batches of two images with their labels, as LPOT's loaders give them; counts what it gave."""

    def __init__(self) -> None:
        self.given = 0

    def __iter__(self) -> Iterator[Any]:
        for seed in range(10):
            self.given += 1
            yield np.random.default_rng(seed).normal(0, 1, (2, 12, 10, 3)).astype(np.float32), [0, 1]


def accuracy(graph_def: Any) -> float:
    return 0.9 if has_int8(graph_def) else 0.92


def has_int8(graph_def: Any) -> bool:
    return any(node.op == "_FusedQuantizedConv2D" for node in graph_def.node)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, in which workspaces are made; holds the model and the settings as files."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "three.pb").write_bytes(make_graph().as_graph_def().SerializeToString())
    (tmp_path / "conf.yaml").write_text(yaml.safe_dump(SETTINGS))
    return tmp_path


def test_the_names_of_the_package() -> None:
    assert (tuner.tune, tuner.Quantization, tuner.QuantizedModel) == (tune, Quantization, QuantizedModel)
    assert set(tuner.__all__) == set(tuner._HOMES)
    assert all(getattr(tuner, name).__name__ == name for name in tuner.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'Quantisation'"):
        tuner.Quantisation  # noqa: B018


def from_file() -> Any:
    return "conf.yaml"


def from_path() -> Any:
    return Path("conf.yaml")


def from_mapping() -> Any:
    return SETTINGS


def already_read() -> Any:
    return parse_config(SETTINGS, "test")


@pytest.mark.parametrize("settings", [from_file, from_path, from_mapping, already_read])
def test_tune_takes_settings_in_any_form(settings: Callable[[], Any]) -> None:
    loader = Loader()
    result = tune(settings(), "three.pb", "int8.pb", eval_func=accuracy, q_dataloader=loader)
    assert result.status is Status.ACCEPTED
    assert result.best is not None
    assert result.best.proposal.calibration_images == 3
    assert loader.given == 2
    assert has_int8(load_model(Path("int8.pb")).graph_def)
    assert Path("tuner_workspace/three/result.json").is_file()


def test_tune_goes_on_in_a_workspace_of_its_own(folder: Path) -> None:
    calls = []

    def counting(graph_def: Any) -> float:
        calls.append(graph_def)
        return accuracy(graph_def)

    for resume in (False, True):
        tune(
            SETTINGS,
            "three.pb",
            folder / "int8.pb",
            workspace=folder / "mine",
            storage=f"sqlite:///{folder / 'elsewhere.db'}",
            resume=resume,
            eval_func=counting,
            q_dataloader=Loader(),
        )
    assert len(calls) == 2
    assert (folder / "mine" / "plan.yaml").is_file()
    assert (folder / "elsewhere.db").is_file()
    assert not (folder / "mine" / "study.db").exists()
    assert not (folder / "tuner_workspace").exists()


def as_path() -> Any:
    return "three.pb"


def as_graph_def() -> Any:
    return make_graph().as_graph_def()


@pytest.mark.parametrize("model", [as_path, as_graph_def, make_graph])
def test_quantization_as_lpot_has_it(model: Callable[[], Any], folder: Path) -> None:
    q_model = Quantization("conf.yaml")(model(), q_dataloader=Loader(), eval_func=accuracy)
    assert isinstance(q_model, QuantizedModel)
    assert q_model.result.status is Status.ACCEPTED
    assert q_model.model.outputs == ("result:0",)
    assert has_int8(q_model.graph_def)
    q_model.save("saved.pb")
    q_model.save(folder / "saved_model")
    assert load_model(Path("saved.pb")).sha256 == q_model.model.sha256
    assert has_int8(load_model(folder / "saved_model").graph_def)


def test_objects_named_in_the_settings(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "extension_of_api.py").write_text(
        "import numpy as np\n"
        "def accuracy(graph_def):\n"
        "    return 0.5\n"
        "loader = [np.zeros((8, 8, 3), np.float32), np.ones((8, 8, 3), np.float32)]\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    settings = {
        **SETTINGS,
        "quantization": {"int8_only": True, "calibration": {"q_dataloader": "extension_of_api:loader"}},
        "evaluation": {**SETTINGS["evaluation"], "accuracy": {"eval_func": "extension_of_api:accuracy"}},
    }
    (folder / "named.yaml").write_text(yaml.safe_dump(settings))
    for config in ("named.yaml", settings):
        with pytest.raises(ConfigError, match=r"'extension_of_api:accuracy' is code, .*allow_code=True"):
            Quantization(config)("three.pb")
    assert "extension_of_api" not in sys.modules
    q_model = Quantization("named.yaml")("three.pb", allow_code=True)
    assert q_model.result.baseline.accuracy == 0.5
    assert q_model.result.best is not None
    assert q_model.result.best.proposal.calibration_images == 2


def test_best_effort_is_returned_and_said_to_be_so() -> None:
    settings = {
        **SETTINGS,
        "tuning": {"accuracy_criterion": {"relative": 1e-6}, "exit_policy": {"max_trials": 2}},
    }
    q_model = Quantization(settings)("three.pb", Loader(), accuracy)
    assert q_model.result.status is Status.BEST_EFFORT
    assert has_int8(q_model.graph_def)


def test_lower_is_better() -> None:
    settings = {
        **SETTINGS,
        "tuning": {"accuracy_criterion": {"absolute": 0.05, "higher_is_better": False}},
    }
    result = tune(
        settings,
        "three.pb",
        "int8.pb",
        eval_func=lambda graph_def: 0.34 if has_int8(graph_def) else 0.3,
        q_dataloader=Loader(),
    )
    assert result.status is Status.ACCEPTED
    assert result.relative_loss == pytest.approx(0.04 / 0.3)


def test_no_plan_could_be_measured() -> None:
    def only_float(graph_def: Any) -> float:
        if has_int8(graph_def):
            raise ValueError("no")
        return 0.5

    settings = {**SETTINGS, "tuning": {"exit_policy": {"max_trials": 2}}}
    with pytest.raises(QuantizationError, match="no plan could be measured: the limit of 2 trials is reached"):
        Quantization(settings)("three.pb", Loader(), only_float)


@pytest.mark.parametrize("model", [42, None, b"bytes", make_graph])
def test_what_is_no_model(model: Any) -> None:
    with pytest.raises(ConfigError, match=r"^model: got \w+; expected a path, a GraphDef or a Graph$"):
        Quantization(SETTINGS)(model, Loader(), accuracy)


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ([], "the calibration source gives no images"),
        (42, "q_dataloader: expected an iterable of images, got int"),
        ([np.zeros((8, 8), np.float32)], r"q_dataloader: item 0: got shape \[8, 8\] of float32"),
    ],
)
def test_what_is_no_loader(loader: Any, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        tune(SETTINGS, "three.pb", "int8.pb", eval_func=accuracy, q_dataloader=loader)
    assert not Path("int8.pb").exists()


def test_settings_that_cannot_be_honoured() -> None:
    with pytest.raises(ConfigError, match=r"^config: "):
        tune({**SETTINGS, "tunning": {}}, "three.pb", "int8.pb")


@pytest.mark.slow
def test_the_other_engine(folder: Path) -> None:
    settings = {
        **SETTINGS,
        "quantization": {**SETTINGS["quantization"], "engine": "inc"},
        "tuning": {"accuracy_criterion": {"relative": 0.1}, "exit_policy": {"max_trials": 2}},
    }
    result = tune(settings, "three.pb", "int8.pb", eval_func=accuracy, q_dataloader=Loader())
    assert result.best is not None
    assert result.status in (Status.ACCEPTED, Status.BEST_EFFORT)
    assert hashlib.sha256((folder / "int8.pb").read_bytes()).hexdigest() == result.best.graph_sha256
    load_model(folder / "int8.pb")


def test_callbacks_of_a_run() -> None:
    seen: list[tuple[int, bool]] = []

    def watch(trial: Any, running: tuner.RunningResult) -> None:
        seen.append((trial.number, running.passes))
        if len(seen) == 2:
            raise tuner.StopTuning("two are enough")

    settings = {**SETTINGS, "tuning": {"accuracy_criterion": {"relative": 0.001}}}
    result = tune(settings, "three.pb", "int8.pb", eval_func=accuracy, q_dataloader=Loader(), callbacks=[watch])
    assert seen[:2] == [(0, False), (1, False)]
    assert result.reason.startswith("stopped by a callback: two are enough")
    assert result.status is Status.BEST_EFFORT
    assert has_int8(load_model(Path("int8.pb")).graph_def)
    assert "best effort" in result._repr_html_()


def test_a_callback_that_fails_loses_no_trial() -> None:
    calls: list[Any] = []

    def counted(graph_def: Any) -> float:
        calls.append(graph_def)
        return accuracy(graph_def)

    def failing(trial: Any, running: tuner.RunningResult) -> None:
        raise KeyError("mine")

    run = partial(tune, SETTINGS, "three.pb", "int8.pb", eval_func=counted, q_dataloader=Loader())
    with pytest.raises(KeyError, match="mine"):
        run(callbacks=[failing])
    assert (len(calls), Path("int8.pb").exists()) == (2, False)
    result = run(resume=True)
    assert (result.status, len(result.trials), len(calls)) == (Status.ACCEPTED, 1, 2)
