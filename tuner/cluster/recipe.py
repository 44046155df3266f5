"""Values that travel to workers: what graph to run, and on which images. Large parts lie in the object store."""

from dataclasses import dataclass, field
from typing import Any

from tuner import errors
from tuner.config.transforms import Step
from tuner.data.images import Entry
from tuner.engine import LoweringSource
from tuner.errors import TunerError
from tuner.evaluation.coco_map import IouType
from tuner.evaluation.workers import Found
from tuner.model.detection_model import DetectionModel
from tuner.trial import Proposal


@dataclass(frozen=True)
class Stored:
    """A value in the object store, fetched once by each node. key: tells values apart. reference: Ray's."""

    key: str
    reference: Any = field(repr=False)


@dataclass(frozen=True)
class Recipe:
    """A graph: given as it is, or made where it runs from what is lowered and a proposal. key: tells graphs apart."""

    key: str
    given: Stored | None = None
    source: Stored | None = None
    proposal: Proposal | None = None

    def make(self, given: DetectionModel | None, source: LoweringSource | None) -> DetectionModel:
        """The graph. given, source: what is stored, fetched. Raises QuantizationError as `LoweringSource.lower`."""
        if given is not None:
            return given
        if source is None or self.proposal is None:
            raise ValueError(f"{self.key}: a recipe has a graph, or what it is made from")
        return source.lower(self.proposal)


@dataclass(frozen=True)
class ImageChunk:
    """Some images of an evaluation, and what is asked of them."""

    entries: tuple[Entry, ...]
    steps: tuple[Step, ...]
    category_ids: frozenset[int]
    iou_types: tuple[IouType, ...]
    masks: bool


@dataclass(frozen=True, slots=True)
class FoundRange:
    """What a graph found in some images, and which graph it was. seconds: what that took, without making the graph."""

    graph_sha256: str
    found: list[Found]
    seconds: float


@dataclass(frozen=True, slots=True)
class Failure:
    """An error that a worker met. kind: the name of a class of `tuner.errors`. before: what was found before it."""

    kind: str
    message: str
    before: FoundRange | None = None

    @property
    def error(self) -> TunerError:
        """The error itself."""
        kind = getattr(errors, self.kind, TunerError)
        return kind(self.message) if issubclass(kind, TunerError) else TunerError(self.message)
