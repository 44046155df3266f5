"""Keras models in memory, written with the output names that scripts know."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tuner.errors import ModelError
from tuner.graph.keras_export import save_keras_model_to_pb
from tuner.model.loading import load_model
from tuner.model.runner import ModelRunner

layers = tf.keras.layers
BATCH = np.random.default_rng(7).random((2, 8, 8, 3), np.float32)


def single() -> tf.keras.Model:
    model = tf.keras.Sequential([tf.keras.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.Dropout(0.5), layers.Flatten()])
    model.compile("sgd", "mse")
    return model


def several(as_dictionary: bool = False) -> tf.keras.Model:
    image = tf.keras.Input((8, 8, 3), name="photo")
    x = layers.BatchNormalization()(layers.Conv2D(4, 3)(image))
    boxes, scores = layers.Conv2D(8, 1)(x), layers.Conv2D(2, 1, activation="sigmoid")(x)
    return tf.keras.Model(image, {"scores": scores, "boxes": boxes} if as_dictionary else [boxes, scores, boxes])


@pytest.mark.parametrize(
    ("model", "count"), [(single(), 1), (several(), 3), (several(as_dictionary=True), 2)], ids=["one", "list", "dict"]
)
def test_the_graph_says_the_same(tmp_path: Path, model: tf.keras.Model, count: int) -> None:
    save_keras_model_to_pb(str(tmp_path / "models"), "test.pb", model, nr_outputs=count)
    names = [f"output_node{number}" for number in range(count)]
    frozen = load_model(tmp_path / "models/test.pb", outputs=names)
    assert {node.op for node in frozen.graph_def.node if node.name in names} == {"Identity"}
    assert frozen.inputs == (f"{model.inputs[0].name}:0",)
    expected = tf.keras.Model(model.inputs, list(model.outputs))(BATCH, training=False)
    expected = expected if isinstance(expected, list) else [expected]
    with ModelRunner(frozen) as runner:
        found = runner.run(BATCH)
    for name, tensor in zip(names, expected, strict=True):
        np.testing.assert_allclose(found[f"{name}:0"], tensor.numpy(), rtol=0, atol=1e-6)
    assert load_model(tmp_path / "models/test.pb").outputs == tuple(f"{name}:0" for name in names)


def test_another_prefix(tmp_path: Path) -> None:
    save_keras_model_to_pb(tmp_path, "test.pb", single(), output_node_prefix="result")
    assert load_model(tmp_path / "test.pb").outputs == ("result0:0",)


@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_another_number_of_outputs(tmp_path: Path, count: int) -> None:
    with pytest.raises(ModelError, match=f"has 3 outputs; nr_outputs says {count}"):
        save_keras_model_to_pb(tmp_path, "test.pb", several(), count)
    assert not list(tmp_path.iterdir())


def test_a_model_without_inputs(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no defined inputs"):
        save_keras_model_to_pb(tmp_path, "test.pb", tf.keras.Sequential([layers.Dense(2)]))


def test_a_name_that_is_taken(tmp_path: Path) -> None:
    image = tf.keras.Input((8, 8, 3), name="photo0")
    with pytest.raises(ModelError, match="has a node 'photo0' already"):
        save_keras_model_to_pb(
            tmp_path, "test.pb", tf.keras.Model(image, layers.Flatten()(image)), output_node_prefix="photo"
        )
