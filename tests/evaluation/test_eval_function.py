"""A user's eval_func in a whole run: it is a TensorFlow 2 program."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import tuner
from tuner.criterion import Status
from tuner.evaluation import workers


def test_it_reads_a_dataset_eagerly(float_graph: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "LATENCY_BUDGET_S", 0.01)
    made = float_graph(channels=3, size=(16, 16))
    made.named(made.convolve(made.convolve(made.x, "first", activation="Relu"), "second"), "out")
    (tmp_path / "float.pb").write_bytes(made.graph.as_graph_def().SerializeToString())
    images = np.random.default_rng(3).random((4, 16, 16, 3), np.float32)
    dataset = tf.data.Dataset.from_tensor_slices(images).batch(2)
    first: list[tf.Tensor] = []

    def agreement(graph_def: Any) -> float:
        """1 where the results are those of the first graph, the float one."""
        imported = tf.compat.v1.wrap_function(lambda: tf.import_graph_def(graph_def, name=""), [])
        graph = imported.prune(imported.graph.get_tensor_by_name("x:0"), imported.graph.get_tensor_by_name("out:0"))
        results = tf.concat([graph(batch) for batch in dataset], axis=0)
        if not first:
            first.append(results)
        return 1 - float(tf.norm(results - first[0]) / tf.norm(first[0]))

    result = tuner.tune(
        {
            "model": {"name": "m"},
            "quantization": {"int8_only": True, "calibration": {"sampling_size": 4}},
            "tuning": {"accuracy_criterion": {"relative": 0.1}},
        },
        tmp_path / "float.pb",
        tmp_path / "int8.pb",
        workspace=tmp_path / "workspace",
        eval_func=agreement,
        q_dataloader=[image[np.newaxis] for image in images],
    )
    assert (result.status, result.baseline.accuracy) == (Status.ACCEPTED, 1)
    assert result.best is not None and 0.9 <= result.best.measurement.accuracy < 1
