"""Several models in one process, run one after the other under names of their own."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tuner.detections import Detections
from tuner.errors import ModelError, did_you_mean
from tuner.model.detection_model import DetectionModel
from tuner.model.loading import load_model
from tuner.model.runner import ModelRunner


class Pipeline:
    """Named detectors and networks, each with its own graph and session; a context manager that frees them all.

    What one finds is fed to the next by the caller:

        with Pipeline({"people": "people.pb", "pose": "heatmaps.pb"}) as models:
            people = models.detect("people", image)
            heatmaps = models.run("pose", crop[np.newaxis])["heatmaps:0"]

    models: by name a path of any of the four formats, or a model that is loaded already, which may have other outputs
    than a file's own. intra_op_threads, inter_op_threads: of each session; 0 lets TensorFlow choose.

    Raises ModelError when one of them cannot be loaded or run, and none is given at all; nothing stays open then.
    """

    def __init__(
        self,
        models: Mapping[str, DetectionModel | Path | str],
        *,
        intra_op_threads: int = 0,
        inter_op_threads: int = 0,
        allow_ops: bool = False,
    ) -> None:
        if not models:
            raise ModelError("a pipeline of no models; expected a name and a model at least")
        self._runners: dict[str, ModelRunner] = {}
        self._closed = False
        with ExitStack() as opened:
            for name, model in models.items():
                loaded = model if isinstance(model, DetectionModel) else load_model(Path(model), allow_ops=allow_ops)
                runner = ModelRunner(loaded, intra_op_threads, inter_op_threads)
                self._runners[name] = opened.enter_context(runner)
            self._opened = opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free all sessions. A second time does nothing."""
        self._closed = True
        self._opened.close()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the models, in the order given."""
        return tuple(self._runners)

    def __getitem__(self, name: str) -> ModelRunner:
        """The runner of one model, for what else it can do. Raises ModelError for another name, or once closed."""
        if self._closed:
            raise ModelError(f"the pipeline of {', '.join(self.names)} is closed; {name!r} cannot be run any more")
        if name not in self._runners:
            known = ", ".join(self.names)
            raise ModelError(
                f"no model {name!r} in the pipeline; expected one of {known}{did_you_mean(name, self._runners)}"
            )
        return self._runners[name]

    def run(self, name: str, images: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Every output of one model by its tensor name, as `ModelRunner.run`. images: [N, H, W, 3].

        Raises ModelError for another name, once closed, and where the runner does.
        """
        return self[name].run(images)

    def detect(self, name: str, image: NDArray[np.uint8]) -> Detections:
        """What one detector finds in an image of [H, W, 3] uint8, as `ModelRunner.detect`. Errors as `run`."""
        return self[name].detect(image)
