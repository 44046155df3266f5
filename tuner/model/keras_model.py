"""Keras files, `.keras` and `.h5`, traced once into a graph."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf

from tuner.errors import ModelError
from tuner.model.freezing import FrozenGraph, freeze_function
from tuner.model.tensorflow_error import first_line

# How Keras tells that a class of the model is not its own: in `.keras` files, in `.h5` files.
_UNKNOWN_CLASS = re.compile("Could not locate class|Unknown layer")
_WITHOUT_CLASSES = "export it with model.export(FOLDER): a SavedModel needs no classes"


def freeze_keras_model(path: Path) -> FrozenGraph:
    """The model in inference mode, its outputs named as the model names them (the keys of a dictionary output).

    Code inside the file (Lambda layers) is refused, and so is a model of which the file does not tell the inputs: a
    subclass of Model, or a Sequential one that was never built. Raises ModelError for what Keras cannot load.
    """
    try:
        model = tf.keras.models.load_model(path, compile=False, safe_mode=True)
        # A subclass may have no such attribute; a Sequential model that is not built raises.
        known = model.built and bool(getattr(model, "inputs", None))
        function, names = (trace_keras_model(model), _output_names(model)) if known else (None, [])
    except Exception as error:  # Keras has no error family: a file may make it raise anything at all.
        # Keras repeats the whole model around the cause: the last part says what is wrong.
        cause = first_line(str(error).rpartition("Exception encountered: ")[2].partition(" Full object config:")[0])
        if _UNKNOWN_CLASS.match(cause):
            # What follows is advice to whoever calls Keras.
            cause = f"{cause.partition('. ')[0]}; {_WITHOUT_CLASSES}"
        raise ModelError(f"Keras cannot load it: {cause}") from error
    if function is None:
        raise ModelError(
            f"a Keras model without defined inputs: build it with an Input layer before saving, or {_WITHOUT_CLASSES}"
        )
    results = function.structured_outputs
    return freeze_function(function, sorted(results) if isinstance(results, dict) else names)


def _output_names(model: tf.keras.Model) -> list[str]:
    """One for each output, those of the layers that make them."""
    if isinstance(model, tf.keras.Sequential):
        # It names no outputs; the same layers as a graph do.
        model = tf.keras.Model(model.inputs, model.outputs)
    return list(model.output_names)


def trace_keras_model(
    model: tf.keras.Model, arrange: Callable[[Any], Any] = lambda results: results
) -> tf.types.experimental.ConcreteFunction:
    """The model in inference mode as a function of its flat inputs, under their own names.

    arrange: what the function gives back of the model's results. Raises whatever Keras or a layer of the model raises.
    """
    # A Sequential model has one input, and no structure of its own before it was called.
    structure = model.inputs[0] if isinstance(model, tf.keras.Sequential) else model.input

    def infer(*images: tf.Tensor) -> Any:
        # Keras' own tree, not tf.nest: they order the keys of an OrderedDict differently.
        return arrange(model(tf.keras.tree.pack_sequence_as(structure, images), training=False))

    specs = [tf.TensorSpec(tensor.shape, tensor.dtype, name=tensor.name) for tensor in model.inputs]
    return tf.function(infer, autograph=False).get_concrete_function(*specs)
