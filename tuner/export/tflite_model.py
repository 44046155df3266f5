"""A network as an int8 TFLite model, by TensorFlow's own converter."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf
from numpy.typing import NDArray

from tuner.errors import ModelError
from tuner.model.detection_model import DetectionModel
from tuner.model.frozen_graph import import_graph
from tuner.model.tensorflow_error import first_line

# How the converter names ops that have no form in TFLite: "'tf.Foo' op is neither a custom op nor a flex op", and
# "Flex ops: FlexFoo(tf.Foo(...))".
_REFUSED_OP = re.compile(r"'tf\.(\w+)' op is neither|\b(?:Flex|Custom) ops: (\w+)")


def to_tflite(network: DetectionModel, images: Sequence[NDArray[Any]]) -> bytes:
    """The TFLite model in int8, its ranges from `images`: each [1, H, W, 3], as the network takes them.

    Checked by running it on the first image. Raises ModelError naming the ops that TFLite does not have.
    """

    def wanted() -> Iterator[list[NDArray[Any]]]:
        return ([image] for image in images)

    try:
        function = tf.compat.v1.wrap_function(lambda: import_graph(network.graph_def), []).prune(
            list(network.inputs), list(network.outputs)
        )
        converter = tf.lite.TFLiteConverter.from_concrete_functions([function])
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = wanted
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        content = bytes(converter.convert())
    # The converter has error classes of its own, which it does not export.
    except Exception as error:
        refused = sorted({one or other for one, other in _REFUSED_OP.findall(str(error))})
        reason = f"cannot be converted to TFLite: {first_line(error)}"
        if refused:
            reason = f"TFLite has no form of {', '.join(refused)}"
        raise ModelError(f"{network.source}: {reason}") from error
    _run(content, images[0])
    return content


def _run(content: bytes, image: NDArray[Any]) -> list[NDArray[Any]]:
    try:
        interpreter = tf.lite.Interpreter(model_content=content)
        place = interpreter.get_input_details()[0]["index"]
        interpreter.resize_tensor_input(place, image.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(place, image)
        interpreter.invoke()
        return [interpreter.get_tensor(output["index"]) for output in interpreter.get_output_details()]
    except (ValueError, RuntimeError) as error:
        raise ModelError(f"the TFLite model cannot be run: {first_line(error)}") from error
