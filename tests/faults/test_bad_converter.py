"""Runs with the engine inc whose converter misbehaves: a package of that name, in the process that converts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tuner.config import parse_config
from tuner.criterion import Status
from tuner.job import TuningJob
from tuner.pipeline import tune
from tuner.report.result import TuningResult
from tuner.trial import FailedTrial

IMAGES = [np.random.default_rng(0).normal(0, 1, (8, 8, 3)).astype(np.float32)]

VENDOR = """
import ctypes, os, signal, sys, time

class Model:
    def __init__(self, graph_def):
        self.graph_def = graph_def

class StaticQuantConfig:
    def __init__(self, **settings):
        pass

    def set_local(self, op, config):
        pass

def quantize_model(model, config, images, calib_iteration):
    FAULT
"""

FAULTS = {
    "raise RuntimeError('no such pass')": "RuntimeError: no such pass",
    "return None": "returned no graph",
    "model.graph_def.node[-1].op = 'NoSuchOp'; return model": "ModelError: its int8 graph: cannot be run: Op type not "
    "registered 'NoSuchOp'",
    "time.sleep(600)": "not done after 12 s, ended",
    "held = [bytearray(b'x' * 2**20) for _ in range(3000)]": "took more than 1500 MiB of memory, ended",
    "ctypes.string_at(0)": "crashed with SIGSEGV",
    "os.abort()": "crashed with SIGABRT",
    "os.kill(os.getpid(), signal.SIGKILL)": "crashed with SIGKILL",
    "os._exit(0)": "returned no graph",
    "os._exit(5)": "ended with exit code 5",
    "sys.exit('no licence')": "no licence",
}

Run = Callable[..., TuningResult]


@pytest.fixture
def run(float_graph: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run with a converter of which `fault` is the body; (fault, max_trials)."""
    network = float_graph(channels=3)
    data = network.x
    for name in ("stem", "middle", "head"):
        data = network.convolve(data, name, bias=True, activation="Relu")
    network.named(data, "out")
    (tmp_path / "float.pb").write_bytes(network.model().graph_def.SerializeToString())

    def run_with(fault: str, max_trials: int = 1) -> TuningResult:
        package = tmp_path / "packages" / "neural_compressor"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "tensorflow.py").write_text(VENDOR.replace("FAULT", fault))
        monkeypatch.setenv("PYTHONPATH", str(package.parent), prepend=":")
        settings = {
            "model": {"name": "tiny", "inputs": "x", "outputs": "out"},
            "quantization": {
                "engine": "inc",
                "calibration": {"sampling_size": 1},
                "converter_timeout_s": 12 if "sleep" in fault else 600,
                "converter_memory_mb": 1500,
            },
            "tuning": {"exit_policy": {"max_trials": max_trials}},
        }
        config = parse_config(settings, "test")
        output, workspace = tmp_path / "int8.pb", tmp_path / "workspace"
        job = TuningJob(config, tmp_path / "float.pb", output, workspace, q_dataloader=IMAGES, eval_func=lambda _: 1.0)
        return tune(job)

    return run_with


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_the_trial_fails_with_its_cause(run: Run, fault: str) -> None:
    result = run(fault)
    (trial,) = result.trials
    assert isinstance(trial, FailedTrial)
    assert trial.cause.startswith(f"neural-compressor: {FAULTS[fault]}")
    assert result.status is Status.FAILED


@pytest.mark.slow
def test_three_crashes_end_the_run_with_advice(run: Run) -> None:
    result = run("ctypes.string_at(0)", max_trials=20)
    assert len(result.trials) == 3
    assert result.reason == (
        "3 plans in a row failed alike: neural-compressor: crashed with SIGSEGV; "
        "use the default engine: --engine lowering"
    )
