"""A trained detector as one frozen graph with named inputs and outputs."""

import hashlib
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

import tensorflow as tf

from tuner.detections import AS_GIVEN, Reading
from tuner.model.graph_view import GraphView, node_name


class ModelFormat(StrEnum):
    """The form in which a detector lies on disk."""

    FROZEN_GRAPH = "frozen graph"
    CHECKPOINT = "TF1 checkpoint"
    SAVED_MODEL = "SavedModel"
    KERAS = "Keras"


@dataclass(frozen=True, eq=False)
class DetectionModel:
    """One frozen graph: no variables, pruned to what the outputs need.

    graph_def: immutable by convention, since protobuf cannot enforce it: whoever changes a graph copies it first
        and hands the copy to `with_graph`. Size and hash are computed once and rely on this.
    inputs, outputs: tensor names with their index, "image_tensor:0".
    source: the file or folder it was read from. format: what was found there.
    reading: what the numbers mean that it gives.
    """

    graph_def: tf.compat.v1.GraphDef = field(repr=False)
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    source: Path
    format: ModelFormat
    reading: Reading = AS_GIVEN

    def __getstate__(self) -> dict[str, Any]:
        # What is computed of it is larger than itself, and is computed again where it is needed.
        return {one.name: getattr(self, one.name) for one in fields(self)}

    def with_graph(self, graph_def: tf.compat.v1.GraphDef) -> "DetectionModel":
        """The same detector, computed by another graph that has the same inputs and outputs."""
        return replace(self, graph_def=graph_def)

    @cached_property
    def graph(self) -> GraphView:
        """The graph to ask questions of, with the model's outputs as what is read from outside."""
        return GraphView(self.graph_def, frozenset(map(node_name, self.outputs)))

    @cached_property
    def size_bytes(self) -> int:
        """Size of the serialised graph."""
        return int(self.graph_def.ByteSize())

    @cached_property
    def sha256(self) -> str:
        """Hex SHA-256 of the deterministic serialisation: equal graphs have equal hashes."""
        return hashlib.sha256(self.graph_def.SerializeToString(deterministic=True)).hexdigest()
