"""Keras models in memory, written with the output names that scripts know."""

from collections import OrderedDict
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


@pytest.mark.parametrize("prefix", ["a b/", "^x", "9 ", "_x", "x:"])
def test_a_prefix_that_no_node_can_have(tmp_path: Path, prefix: str) -> None:
    with pytest.raises(ModelError, match="cannot be the name of a node"):
        save_keras_model_to_pb(tmp_path, "test.pb", single(), output_node_prefix=prefix)
    assert not list(tmp_path.iterdir())


def test_inputs_of_every_structure(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    first, second = tf.keras.Input((4,), name="first"), tf.keras.Input((4,), name="second")
    results = {"sum": first + second, "difference": first - second}
    for inputs in (
        {"z": first, "second": second},
        OrderedDict(z=first, second=second),
        [first, second],
        (first, {"a": second}),
    ):
        ordered = OrderedDict(results) if isinstance(inputs, OrderedDict) else results
        model = tf.keras.Model(inputs, ordered)
        # Keras tells once, when the model is made, that a key is not the name of its tensor.
        recwarn.clear()
        save_keras_model_to_pb(tmp_path, "test.pb", model, nr_outputs=2)
        assert not [str(warning.message) for warning in recwarn if "structure" in str(warning.message)]
        frozen = load_model(tmp_path / "test.pb", outputs=["output_node0", "output_node1"])
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            tf.import_graph_def(frozen.graph_def, name="")
            fed = {"first:0": np.full((1, 4), 5.0), "second:0": np.full((1, 4), 2.0)}
            found = [value[0, 0] for value in session.run(list(frozen.outputs), fed)]
        # In the order of model.outputs: by name in a dictionary, as it was made in an ordered one.
        assert found == ([7.0, 3.0] if ordered is not results else [3.0, 7.0])


def test_a_list_of_one_input(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    image = tf.keras.Input((4,), name="image")
    save_keras_model_to_pb(tmp_path, "test.pb", tf.keras.Model([image], image * 2))
    assert not [str(warning.message) for warning in recwarn if "structure" in str(warning.message)]
    assert load_model(tmp_path / "test.pb").inputs == ("image:0",)


def test_a_layer_that_fails_is_told_in_one_line(tmp_path: Path) -> None:
    class TrainedOnly(layers.Layer):  # type: ignore[misc]
        def call(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
            if training is False:
                raise RuntimeError("only for training\nand nothing else")
            return x

    image = tf.keras.Input((4,))
    model = tf.keras.Model(image, TrainedOnly()(image), name="net")
    with pytest.raises(ModelError) as error:
        save_keras_model_to_pb(tmp_path, "test.pb", model)
    assert str(error.value) == "Keras model 'net' cannot be traced: only for training"
