"""Accuracy-driven int8 quantisation of trained TensorFlow detectors."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuner.api import Quantization, QuantizedModel, tune
    from tuner.config import load_config
    from tuner.model.model_pipeline import Pipeline
    from tuner.report.result import TuningResult
    from tuner.report.running import RunningResult, StopTuning

__all__ = [
    "Pipeline",
    "Quantization",
    "QuantizedModel",
    "RunningResult",
    "StopTuning",
    "TuningResult",
    "load_config",
    "tune",
]

_HOMES = {
    "Pipeline": "tuner.model.model_pipeline",
    "Quantization": "tuner.api",
    "QuantizedModel": "tuner.api",
    "RunningResult": "tuner.report.running",
    "StopTuning": "tuner.report.running",
    "TuningResult": "tuner.report.result",
    "load_config": "tuner.config",
    "tune": "tuner.api",
}


def __getattr__(name: str) -> Any:
    """Import on first use: `import tuner` stays quick, and free of TensorFlow."""
    if name not in _HOMES:
        raise AttributeError(f"module 'tuner' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
