"""Who does the work of a run: this process, or the workers of a cluster."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tuner.config import ComputeConfig
from tuner.engine import Engine
from tuner.errors import ConfigError
from tuner.evaluation.workers import EvaluationImages, ThisProcess, Workers
from tuner.model.detection_model import DetectionModel
from tuner.progress import Progress
from tuner.quantization.ranges import Observation, observe
from tuner.timing import apply_compute
from tuner.trial import Proposal

NEEDS_RAY = "--cluster: needs Ray, which the extra of that name brings: pip install 'tuner[cluster]'"


class Workforce(Workers, Protocol):
    """Does all that can be done beside each other, and what has to be alone."""

    def at_once(self, images: EvaluationImages | None) -> int:
        """How many plans, evaluated on these images, keep all workers busy."""

    def ahead(self, images: EvaluationImages | None) -> int:
        """How many plans it is worth to begin with before they are asked for."""

    def observe(
        self, model: DetectionModel, tensors: Sequence[str], images: Iterable[NDArray[np.generic]], /
    ) -> list[Observation]:
        """See `tuner.quantization.ranges.observe`."""

    def learn(self, engine: Engine) -> Engine:
        """The engine, of whose graphs it is then known how they are made."""

    def expect(self, proposals: Sequence[Proposal], images: EvaluationImages | None) -> None:
        """Plans that are likely to be evaluated next, the likeliest first: what can be done now is begun."""


class OneProcess(ThisProcess):
    """This process: one thing after another."""

    def at_once(self, images: EvaluationImages | None) -> int:
        """See `Workforce`."""
        return 1

    def ahead(self, images: EvaluationImages | None) -> int:
        """See `Workforce`."""
        return 0

    def observe(
        self, model: DetectionModel, tensors: Sequence[str], images: Iterable[NDArray[np.generic]], /
    ) -> list[Observation]:
        """See `Workforce`."""
        return observe(model, tensors, images)

    def learn(self, engine: Engine) -> Engine:
        """See `Workforce`."""
        return engine

    def expect(self, proposals: Sequence[Proposal], images: EvaluationImages | None) -> None:
        """See `Workforce`."""


def this_process(compute: ComputeConfig) -> OneProcess:
    """One with the threads and instances that settings ask for."""
    threads = apply_compute(compute)
    # Whoever asks for threads asks for one session of them.
    return OneProcess(*threads, instances=compute.num_of_instance or (1 if any(threads) else 0))


@contextmanager
def hired(cluster: str | None, compute: ComputeConfig, progress: Progress, *, cache_mb: int) -> Iterator[Workforce]:
    """Whoever is asked for, until the context is left. cluster: an address; None for this process.

    Raises ConfigError for what is no address or without Ray, ClusterError where there is no cluster.
    """
    if cluster is None:
        yield this_process(compute)
        return
    try:
        # Nobody else needs Ray, and it takes a second.
        from tuner.cluster.workforce import ClusterSettings, cluster_workforce  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise ConfigError(NEEDS_RAY) from None
    settings = ClusterSettings(*apply_compute(compute), cache_mb=cache_mb)
    with ExitStack() as stack:
        with progress.stage("cluster") as stage:
            workers = stack.enter_context(cluster_workforce(cluster, settings))
            stage.note(f"{cluster}: {workers.described}")
        yield workers
