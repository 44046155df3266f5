"""Running a frozen detector, or any network of one input, on images."""

import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.core.protobuf.rewriter_config_pb2 import RewriterConfig

from tuner.detections import Detections, View
from tuner.errors import ModelError
from tuner.masks import Masks, paste_masks
from tuner.memory import give_back_memory
from tuner.model.detection_model import DetectionModel
from tuner.model.endpoints import DETECTION_OUTPUTS, MASK_OUTPUT
from tuner.model.frozen_graph import import_graph
from tuner.model.graph_view import node_name
from tuner.model.tensorflow_error import first_line

# Unless this is set before TensorFlow's first device, all sessions share one pool of threads for the work inside
# operators, as wide as that device's (the one that decodes images), whatever number of threads they ask for.
os.environ.setdefault("TF_OVERRIDE_GLOBAL_THREADPOOL", "1")

# Without it XLA clusters nothing on a CPU, whatever a session asks for.
_XLA_ON_CPU = "--tf_xla_cpu_global_jit"
# NumPy's kinds of types that are no real numbers: text, truth, complex numbers.
_NO_NUMBERS = "OSUbc"


# Of smaller graphs it is not worth the time to give memory back.
LARGE_BYTES = 30_000_000


class ModelRunner:
    """A session over one model, built once and used for many images; a context manager that frees it.

    TensorFlow's graph optimisations stay as shipped (constant folding, fusing, oneDNN), but for one that only costs
    time: they are what a deployed model runs with. as_written turns off those that rewrite float arithmetic and so its
    last bits: for comparing graphs that compute the same in other words.
    intra_op_threads, inter_op_threads: 0 lets TensorFlow choose.
    xla: whatever XLA can take is compiled, in the first runs at each shape; on a CPU only where `allow_xla_on_cpu`
    comes in time, which a runner with `xla` calls. `xla_clusters` tells what came of it.
    keeps_graphs: for `trace(graphs=True)`; costs a copy of the graph.

    Raises ModelError when the graph cannot be built, or has not exactly one input.
    """

    def __init__(
        self,
        model: DetectionModel,
        intra_op_threads: int = 0,
        inter_op_threads: int = 0,
        *,
        as_written: bool = False,
        xla: bool = False,
        keeps_graphs: bool = False,
    ) -> None:
        if len(model.inputs) != 1:
            raise ModelError(
                f"{model.source}: needs one image input, has {len(model.inputs)}: {', '.join(model.inputs)}"
            )
        self._model = model
        self._has_run = self._closed = False
        self._is_large = model.size_bytes >= LARGE_BYTES
        config = tf.compat.v1.ConfigProto(
            intra_op_parallelism_threads=intra_op_threads,
            inter_op_parallelism_threads=inter_op_threads,
            # Graphs trained elsewhere may pin nodes to a GPU.
            allow_soft_placement=True,
        )
        config.graph_options.rewrite_options.disable_meta_optimizer = as_written
        # It takes the graph with all weights through MLIR and back, four times, which is most of a first run's time;
        # what comes out computes the same bits in the same time.
        config.graph_options.rewrite_options.disable_tfg_optimizer = RewriterConfig.ON
        # TensorFlow's int8 kernels keep what oneDNN made for them, in each thread, under the address of the weights'
        # scales: a thread that served another graph, whose memory this one has now, may run with that one's scales.
        config.use_per_session_threads = True
        config.experimental.disable_output_partition_graphs = not keeps_graphs
        if xla:
            allow_xla_on_cpu()
            config.graph_options.optimizer_options.global_jit_level = tf.compat.v1.OptimizerOptions.ON_2
        with tf.Graph().as_default() as graph:
            try:
                import_graph(model.graph_def)
                self._input = graph.get_tensor_by_name(model.inputs[0])
                self._session = tf.compat.v1.Session(graph=graph, config=config)
                self._run = self._session.make_callable(list(model.outputs), feed_list=[self._input])
                self._traced_run = self._session.make_callable(
                    list(model.outputs), feed_list=[self._input], accept_options=True
                )
            except (ValueError, KeyError, TypeError, tf.errors.OpError) as error:
                raise ModelError(f"{model.source}: cannot be run: {first_line(error)}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the session and its buffers; what is asked of it afterwards raises RuntimeError."""
        if self._closed:
            return
        self._closed = True
        self._session.close()
        # They hold the graph, with a copy of its weights.
        del self._session, self._run, self._traced_run, self._input
        self._give_back_memory()

    def _give_back_memory(self) -> None:
        if self._is_large:
            give_back_memory()

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        """What the input takes, None where a side is free: empty where even the rank is unknown."""
        shape = self._input.shape
        return () if shape.rank is None else tuple(shape.as_list())

    def run(self, images: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Every output of the model, by its tensor name as in `model.outputs`.

        images: [N, H, W, 3], or what else the input takes; cast to its dtype. Raises ModelError for a shape that the
        input does not take, or when TensorFlow fails.
        """
        feed = self.as_fed(images)
        try:
            values = self._run(feed)
        except (ValueError, TypeError, tf.errors.OpError) as error:
            raise ModelError(f"{self._model.source}: failed while running: {first_line(error)}") from error
        if not self._has_run:
            self._has_run = True
            self._give_back_memory()
        return dict(zip(self._model.outputs, values, strict=True))

    def trace(self, images: NDArray[Any], *, graphs: bool = False, gpu: bool = False) -> tf.compat.v1.RunMetadata:
        """The record of one run: `step_stats` with the times of every node that ran. Arguments and errors as `run`.

        graphs: also `partition_graphs`, one for each device: the graph as TensorFlow rewrote it and ran it, whose node
        names are those of the times; of a runner that keeps graphs. gpu: also what a GPU's streams computed and copied.
        """
        options = tf.compat.v1.RunOptions(
            trace_level=tf.compat.v1.RunOptions.FULL_TRACE if gpu else tf.compat.v1.RunOptions.SOFTWARE_TRACE,
            output_partition_graphs=graphs,
        )
        metadata = tf.compat.v1.RunMetadata()
        feed = self.as_fed(images)
        try:
            self._traced_run(feed, options=options, run_metadata=metadata)
        except (ValueError, TypeError, tf.errors.OpError) as error:
            raise ModelError(f"{self._model.source}: failed while running: {first_line(error)}") from error
        return metadata

    def xla_clusters(self, images: NDArray[Any]) -> int:
        """How many parts of the graph run as compiled by XLA, on these images. Arguments and errors as `run`."""
        devices = self.trace(images).step_stats.dev_stats
        nodes = (node for device in devices for node in device.node_stats)
        return len({node.node_name for node in nodes if " = _XlaRun(" in node.timeline_label})

    def fetch(
        self, tensors: Sequence[str], images: NDArray[Any], also_fed: Mapping[str, NDArray[Any]] | None = None
    ) -> list[NDArray[Any]]:
        """The values of any tensors of the graph, in the order asked for. Arguments and errors as `run`.

        also_fed: values of further tensors, by their names.
        """
        feed = self.as_fed(images)
        feeds = {self._input: feed, **(also_fed or {})}
        try:
            return list(self._session.run(list(tensors), feeds))
        except (ValueError, KeyError, TypeError, tf.errors.OpError) as error:
            raise ModelError(f"{self._model.source}: failed while running: {first_line(error)}") from error

    def detect(self, image: NDArray[Any], *, masks: bool = False, view: View | None = None) -> Detections:
        """The objects found in one image, with boxes in that image and the data set's category ids.

        image: what the model is fed, without the batch's axis: [H, W, 3] uint8, or what transforms make of it.
        view: where in the original image `image` lies; it is that image itself where not given.
        masks: with their masks, pasted into the original image.

        Raises EvaluationError for a class that the model's `reading` does not know.
        Raises ModelError for a model without the four detection outputs (five with masks), or with outputs that hold no
        real numbers, or of another shape than [1, N, 4], [1, N], [1, N], one number, and [1, N, h, w] of masks within
        their boxes.
        """
        needed = (*DETECTION_OUTPUTS, MASK_OUTPUT) if masks else DETECTION_OUTPUTS
        if any(f"{name}:0" not in self._model.outputs for name in needed):
            raise ModelError(
                f"{self._model.source}: no detection outputs{' with masks' if masks else ''}: "
                f"found {', '.join(self._model.outputs)}; need {', '.join(needed)}"
            )
        values = self.run(image[np.newaxis])
        self._check_numbers({name: values[f"{name}:0"] for name in needed})
        boxes, scores, classes, number = (values[f"{name}:0"] for name in DETECTION_OUTPUTS)
        shapes = (boxes.shape, scores.shape, classes.shape, number.size)
        slots = scores.shape[-1] if scores.ndim else 0
        if shapes != ((1, slots, 4), (1, slots), (1, slots), 1):
            raise ModelError(
                f"{self._model.source}: detection outputs of shapes {boxes.shape}, {scores.shape}, {classes.shape}, "
                f"{number.shape}; expected [1, N, 4], [1, N], [1, N] and [1]"
            )
        if not np.isfinite(number).all():
            raise ModelError(f"{self._model.source}: num_detections is {number.reshape(())}, not a number of objects")
        count = min(int(number.reshape(())), slots)
        view = view or View(*image.shape[:2], *image.shape[:2])
        reading = self._model.reading
        located = view.locate(boxes[0, :count].astype(np.float32), in_pixels=reading.boxes_in_pixels)
        return Detections(
            view.clip(located),
            scores[0, :count].astype(np.float32),
            reading.categories(np.rint(classes[0, :count]).astype(np.int64)),
            self._pasted(values[f"{MASK_OUTPUT}:0"], located, view) if masks else None,
        )

    def _check_numbers(self, found: Mapping[str, NDArray[Any]]) -> None:
        for name, values in found.items():
            if values.dtype.kind in _NO_NUMBERS:
                raise ModelError(f"{self._model.source}: {name} holds {tf.as_dtype(values.dtype).name}, not numbers")

    def _pasted(self, cropped: NDArray[Any], boxes: NDArray[np.float32], view: View) -> Masks:
        if cropped.ndim != 4 or cropped.shape[0] != 1 or cropped.shape[1] < len(boxes):
            raise ModelError(
                f"{self._model.source}: {MASK_OUTPUT} of shape {cropped.shape}; expected [1, N, h, w] with a mask for "
                f"each of {len(boxes)} boxes"
            )
        return paste_masks(cropped[0, : len(boxes)], boxes, view.height, view.width)

    def as_fed(self, images: NDArray[Any]) -> NDArray[Any]:
        """The images in the input's dtype. Raises ModelError for a shape or dtype that the input does not take."""
        if self._closed:
            raise RuntimeError(f"{self._model.source}: its runner is closed")
        _check_fed(f"{self._model.source}: input {self._input.name}", self._input.shape, self._input.dtype, images)
        return images.astype(self._input.dtype.as_numpy_dtype, copy=False)


def input_type(model: DetectionModel) -> str:
    """The name of the type that the model's input takes, such as uint8; empty where it is no placeholder."""
    node = model.graph.nodes[node_name(model.inputs[0])]
    return str(tf.as_dtype(node.attr["dtype"].type).name) if node.op == "Placeholder" else ""


def check_fed(model: DetectionModel, images: NDArray[Any], made_by: str) -> None:
    """Raise ModelError for images [N, H, W, 3] that the model's input does not take. made_by: how they came about."""
    node = model.graph.nodes[node_name(model.inputs[0])]
    if node.op == "Placeholder":
        shape = tf.TensorShape(node.attr["shape"].shape) if "shape" in node.attr else tf.TensorShape(None)
        dtype = tf.as_dtype(node.attr["dtype"].type)
        try:
            _check_fed(f"{model.source}: input {model.inputs[0]}", shape, dtype, images)
        except ModelError as error:
            raise ModelError(f"{error}; {made_by}") from None


def _check_fed(where: str, shape: tf.TensorShape, dtype: tf.DType, images: NDArray[Any]) -> None:
    if not shape.is_compatible_with(images.shape):
        raise ModelError(f"{where} takes the shape {shape}; an image batch of {images.shape} cannot be fed")
    if not (dtype.is_floating or dtype.is_integer):
        raise ModelError(f"{where} takes {dtype.name}, not an image's numbers")
    if dtype.is_integer and images.dtype.kind == "f":
        raise ModelError(f"{where} takes {dtype.name}; images of {images.dtype} would lose their fractions: use Cast")


def grey_image(model: DetectionModel) -> NDArray[np.uint8]:
    """A picture of [H, W, 3] to run a model on where none is given: of the input's size, else of 480 x 640."""
    shape = model.graph.shape(node_name(model.inputs[0]))
    sides = shape[1:] if len(shape) == 4 else (None, None, None)
    return np.full([side or other for side, other in zip(sides, (480, 640, 3), strict=True)], 127, np.uint8)


def allow_xla_on_cpu() -> None:
    """Let sessions of this process that ask for XLA compile for the CPU; sessions that do not ask for it run as ever.

    To be called before TensorFlow makes its devices, be it for a session or to decode an image:
    it reads the environment then.
    """
    flags = os.environ.get("TF_XLA_FLAGS", "")
    if _XLA_ON_CPU not in flags:
        os.environ["TF_XLA_FLAGS"] = f"{flags} {_XLA_ON_CPU}".strip()
