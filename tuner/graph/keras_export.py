"""A Keras model in memory, written as a frozen graph with outputs of known names."""

from pathlib import Path

import tensorflow as tf

from tuner.errors import ModelError
from tuner.files import write_bytes
from tuner.graph.added_constant import check_node_name
from tuner.model.freezing import freeze_function
from tuner.model.keras_model import trace_keras_model
from tuner.model.tensorflow_error import first_line


def save_keras_model_to_pb(
    save_dir: str | Path,
    file_name: str,
    model: tf.keras.Model,
    nr_outputs: int = 1,
    output_node_prefix: str = "output_node",
) -> None:
    """Write a Keras model in inference mode to `save_dir/file_name`, a frozen graph.

    nr_outputs: how many outputs the model has; they become Identity nodes called `output_node_prefix` and their number
    from 0, in the order of `model.outputs`. The inputs keep the names of the model's.
    Raises ModelError for a model without defined inputs, another number of outputs, a name that the graph has already
    or that no node can have, or a model that cannot be traced or frozen; TunerError when the file cannot be written.
    """
    # A model that is not built may have no such attribute.
    if not getattr(model, "inputs", None):
        raise ModelError(f"Keras model {model.name!r} has no defined inputs: build it with an Input layer first")
    if nr_outputs != len(model.outputs):
        raise ModelError(f"Keras model {model.name!r} has {len(model.outputs)} outputs; nr_outputs says {nr_outputs}")
    names = [f"{output_node_prefix}{number}" for number in range(nr_outputs)]
    for name in names:
        check_node_name(name)
    try:
        function = trace_keras_model(model, tf.keras.tree.flatten)
    except Exception as error:  # Keras has no error family, and a layer's own code may raise anything.
        # Keras writes the cause in bold below the name of the layer, and the arguments after it.
        cause = str(error).partition("\x1b[1m")[2].partition("\x1b[0m")[0]
        raise ModelError(f"Keras model {model.name!r} cannot be traced: {first_line(cause or error)}") from error
    frozen = freeze_function(function, names)
    taken = [name for name, tensor in zip(names, frozen.outputs, strict=True) if tensor != f"{name}:0"]
    if taken:
        raise ModelError(f"Keras model {model.name!r} has a node {taken[0]!r} already; choose another prefix")
    write_bytes(Path(save_dir) / file_name, frozen.graph_def.SerializeToString(deterministic=True))
