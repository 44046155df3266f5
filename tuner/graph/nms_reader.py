"""Multi-class non-max suppression in a graph, recognised by what its nodes compute from what."""

from collections.abc import Collection, Sequence
from typing import NoReturn, TypeVar

import numpy as np
import tensorflow as tf
from tensorflow.core.framework.node_def_pb2 import NodeDef

from tuner.graph.map_loop import MapLoop, NotRecognisedError, resolve
from tuner.graph.multi_class_nms import MultiClassNms, Suppression
from tuner.model.graph_view import GraphView, node_name, tensor_name

T = TypeVar("T")

# V4 and V5 have further results; V2 has no score threshold.
SUPPRESSIONS = ("NonMaxSuppressionV3", "NonMaxSuppressionV5")

# From a result of one image back to the concatenation over classes, the op types on the way: padded to the number of
# detections, cut to the valid ones, sorted again (with the scores of empty boxes set to -1), clipped to the window
# with empty boxes left out, sorted by score.
_PADDED = ("Pad", "Slice", "GatherV2", "GatherV2")
CLIPPED = ("ConcatV2", "Maximum", "Minimum", "Split")
INTO_WINDOW = ("ConcatV2", "Mul", "Split", "Sub")
_BOXES = (*_PADDED, "GatherV2", "GatherV2", *CLIPPED, "GatherV2")
_BOXES_OF_WINDOW = (*_PADDED, *INTO_WINDOW, "GatherV2", "GatherV2", *CLIPPED, "GatherV2")
_SCORES = (*_PADDED, "GatherV2", "Select", "GatherV2", "GatherV2")
_ATTRIBUTE = (*_PADDED, "GatherV2", "GatherV2", "GatherV2")
_WINDOW_AFTER = {_BOXES: False, _BOXES_OF_WINDOW: True}

# The operand through which a chain goes on, where it is not the first.
_DATA_OPERAND = {"Split": 1, "Select": 1, "SelectV2": 1, "Mul": 1}


class NmsReader:
    """Walks one loop from its results to its inputs; raises NotRecognisedError where it is not what it should be."""

    def __init__(self, graph: GraphView, loop: MapLoop, kernels: Sequence[NodeDef]) -> None:
        self.graph = graph
        self.loop = loop
        self.kernels = {kernel.name: kernel for kernel in kernels}

    def read(self) -> MultiClassNms:
        """The suppression, from its results on."""
        outputs: dict[str, str] = {}
        attributes: dict[str, str] = {}
        windows: list[str] = []
        relative = False
        sizes: list[int] = []
        order: list[NodeDef] | None = None
        for gather, written in self.loop.writes.items():
            if resolve(self.graph, written).op in ("Select", "SelectV2"):
                outputs["count"] = gather
                sizes.append(self._count_limit(written))
                continue
            ops, end, on_the_way = self._chain(written)
            if ops[:1] != _PADDED[:1]:
                self._refuse(gather, f"a result through {' '.join(ops)}")
            sizes.append(self._padded_size(on_the_way[0]))
            parts = self._parts(end)
            if ops in _WINDOW_AFTER:
                role, per_class = "boxes", [self._kernel_of_box(part, i) for i, part in enumerate(parts)]
                relative = _WINDOW_AFTER[ops]
                windows = self._windows(on_the_way)
            elif ops == _SCORES:
                role, per_class = "scores", [self._kernel_of_score(part) for part in parts]
            elif ops == _ATTRIBUTE and resolve(self.graph, parts[0]).op in ("Add", "AddV2"):
                role, per_class = "classes", [self._kernel_of_class(part, i) for i, part in enumerate(parts)]
            elif ops == _ATTRIBUTE:
                role = "attribute"
                sources = [self._attribute(part) for part in parts]
                per_class = [kernel for kernel, _ in sources]
                attributes[gather] = self._one({source for _, source in sources}, "sources of an attribute")
            else:
                self._refuse(gather, f"a result through {' '.join(ops)}")
            if role != "attribute":
                outputs[role] = gather
            order = order or per_class
            if [kernel.name for kernel in per_class] != [kernel.name for kernel in order]:
                self._refuse(gather, "classes in another order than in the other results")
        if order is None or "boxes" not in outputs or {kernel.name for kernel in order} != set(self.kernels):
            self._refuse(self.loop.scope, "no result that is boxes of every class")
        return MultiClassNms(
            scope=self.loop.scope,
            suppression=self._suppression(order),
            window=self._one(set(windows), "windows"),
            window_is_shared=False,
            clipped_first=False,
            max_total=self._one(set(sizes), "sizes"),
            relative_to_window=relative,
            boxes_out=outputs.get("boxes"),
            scores_out=outputs.get("scores"),
            classes_out=outputs.get("classes"),
            count_out=outputs.get("count"),
            attributes=attributes,
        )

    def _suppression(self, kernels: Sequence[NodeDef]) -> Suppression:
        for kernel in kernels:
            if kernel.op not in SUPPRESSIONS:
                self._refuse(kernel.name, f"{kernel.op}; expected {' or '.join(SUPPRESSIONS)}")
        if any(kernel.op == "NonMaxSuppressionV5" and self._number(kernel.input[5]) != 0 for kernel in kernels):
            self._refuse(kernels[0].name, "soft suppression")
        threshold = self._one({self._number(kernel.input[4]) for kernel in kernels}, "score thresholds")
        boxes = [self._column_of_boxes(kernel.input[0]) for kernel in kernels]
        scores = [self._scores_of(kernel.input[1], index) for index, kernel in enumerate(kernels)]
        return self._suppression_of(kernels, boxes, scores, threshold)

    def _suppression_of(
        self, kernels: Sequence[NodeDef], boxes: Sequence[tuple[str, int]], scores: Sequence[str], threshold: float
    ) -> Suppression:
        """boxes: for each class, the tensor with those of all and the place of its own. scores: their tensors."""
        indices = [index for _, index in boxes]
        shared = set(indices) == {0}
        if not shared and indices != list(range(len(kernels))):
            self._refuse(kernels[0].name, "boxes of classes in another order than their scores")
        box_source, box_valid = self._cut(self._one({name for name, _ in boxes}, "sources of boxes"), axes=3)
        score_source, score_valid = self._cut(self._one(set(scores), "sources of scores"), axes=2)
        if threshold < 0:
            self._refuse(kernels[0].name, f"a score threshold of {threshold:g}, below 0")
        return Suppression(
            boxes=box_source,
            scores=score_source,
            valid=self._one({box_valid, score_valid}, "counts of valid boxes"),
            classes=len(kernels),
            boxes_per_anchor=1 if shared else len(kernels),
            score_threshold=threshold,
            iou_threshold=self._one({self._number(kernel.input[3]) for kernel in kernels}, "overlap thresholds"),
            max_per_class=self._one({self._limit(kernel.input[2]) for kernel in kernels}, "limits per class"),
        )

    def _chain(self, tensor: str) -> tuple[tuple[str, ...], NodeDef, list[NodeDef]]:
        """Op types from a written row back to the concatenation over classes, that node, and the nodes between.

        With one class TensorFlow writes an Identity for the concatenation: the end is then the node before it.
        """
        way: list[NodeDef] = []
        node: NodeDef = resolve(self.graph, tensor)
        while len(way) <= len(_BOXES_OF_WINDOW):
            if node.op == "ConcatV2" and len(node.input) - 1 == len(self.kernels) and not self._is_of_corners(node):
                break
            if len(self.kernels) == 1 and tuple(n.op for n in way) in (*_WINDOW_AFTER, _SCORES, _ATTRIBUTE):
                break
            way.append(node)
            if not node.input:
                break
            node = resolve(self.graph, node.input[_DATA_OPERAND.get(node.op, 0)])
        return tuple(n.op.removesuffix("V2") if n.op == "SelectV2" else n.op for n in way), node, way

    def _is_of_corners(self, node: NodeDef) -> bool:
        return resolve(self.graph, node.input[0]).op in ("Maximum", "Mul")

    def _parts(self, end: NodeDef) -> list[str]:
        return list(end.input[:-1]) if end.op == "ConcatV2" and len(self.kernels) > 1 else [end.name]

    def _windows(self, way: Sequence[NodeDef]) -> list[str]:
        """The tensors outside that the corners of boxes are clipped with, and moved by."""
        found = []
        for node in way:
            if node.op in ("Maximum", "Minimum"):
                corner = resolve(self.graph, node.input[1])
                if corner.op != "Unpack":
                    self._refuse(node.name, "a window that is not one of the image")
                found.append(self._read(corner.input[0]))
        return found

    def _kernel_of_box(self, part: str, index: int) -> NodeDef:
        gather = self._expect(part, "GatherV2")
        kernel = self._kernel_of_selection(gather.input[1])
        if tensor_name(gather.input[0]) != tensor_name(kernel.input[0]):
            self._refuse(gather.name, f"boxes of class {index} from another tensor than was suppressed")
        return kernel

    def _kernel_of_score(self, part: str) -> NodeDef:
        select = self._expect(part, "Select", "SelectV2")
        scores = resolve(self.graph, select.input[1])
        if scores.op == "ConcatV2":
            kernel = self.kernels.get(node_name(scores.input[0]))
            if kernel is None or not scores.input[0].endswith(":1"):
                self._refuse(scores.name, "scores that are not those of the suppression")
            return kernel
        gather = self._expect(select.input[1], "GatherV2")
        kernel = self._kernel_of_selection(gather.input[1])
        if tensor_name(gather.input[0]) != tensor_name(kernel.input[1]):
            self._refuse(gather.name, "scores from another tensor than was suppressed")
        return kernel

    def _kernel_of_class(self, part: str, index: int) -> NodeDef:
        add = resolve(self.graph, part)
        zeros = self._expect(add.input[0], "ZerosLike")
        if self._number(add.input[1]) != index:
            self._refuse(add.name, f"class {self._number(add.input[1]):g} in the place of class {index}")
        return self._kernel_of_score(zeros.input[0])

    def _attribute(self, part: str) -> tuple[NodeDef, str]:
        gather = self._expect(part, "GatherV2")
        if gather.attr["Tparams"].type != tf.float32.as_datatype_enum:
            self._refuse(gather.name, "an attribute that is not float32")
        return self._kernel_of_selection(gather.input[1]), self._cut(gather.input[0], axes=2)[0]

    def _kernel_of_selection(self, tensor: str) -> NodeDef:
        """The kernel whose selected indices, padded with zeros, a tensor holds."""
        concat = self._expect(tensor, "ConcatV2")
        kernel = self.kernels.get(tensor_name(concat.input[0]))
        if kernel is None:
            self._refuse(concat.name, "indices that are not those of a suppression")
        return kernel

    def _column_of_boxes(self, tensor: str) -> tuple[str, int]:
        name, _, index = tensor_name(tensor).partition(":")
        node = self.graph.nodes[name]
        if node.op != "Unpack" or node.attr["axis"].i != 1:
            self._refuse(name, "boxes that are not one class of a tensor")
        return node.input[0], int(index or 0)

    def _scores_of(self, tensor: str, index: int) -> str:
        column = self._expect(self._expect(tensor, "Reshape").input[0], "Slice")
        begin = self.graph.constant(column.input[1])
        if begin is None or begin.tolist() != [0, index]:
            self._refuse(column.name, f"scores that are not those of class {index}")
        return str(column.input[0])

    def _cut(self, tensor: str, *, axes: int) -> tuple[str, str]:
        """The tensor outside of which a tensor is the first rows of each image, and the tensor of their counts.

        axes: of one image's part.
        """
        cut = self._expect(self._expect(tensor, "Reshape").input[0], "Slice")
        size = self._expect(cut.input[2], "Pack")
        rest = [self.graph.constant(part) for part in size.input[1:]]
        begin = self.graph.constant(cut.input[1])
        if len(size.input) != axes:
            self._refuse(cut.name, f"{len(size.input)} axes where {axes} are known")
        if begin is None or begin.any() or any(part is None or part != -1 for part in rest):
            self._refuse(cut.name, "other rows than the first valid ones")
        return self._read(cut.input[0]), self._read(size.input[0])

    def _count_limit(self, tensor: str) -> int:
        """The constant in Select(Minimum > Sum, Sum, Minimum): as many as there are, and no more than that."""
        select = resolve(self.graph, tensor)
        greater = self._expect(select.input[0], "Greater")
        if list(map(tensor_name, greater.input)) != [tensor_name(select.input[2]), tensor_name(select.input[1])]:
            self._refuse(select.name, "a count that is not the smaller of two")
        self._expect(select.input[1], "Sum")
        return self._limit(select.input[2])

    def _limit(self, tensor: str) -> int:
        """The constant of Minimum(constant, number of rows)."""
        minimum = self._expect(tensor, "Minimum")
        return int(self._number(minimum.input[0]))

    def _padded_size(self, pad: NodeDef) -> int:
        """The rows that Pad fills a result up to: its paddings are [[0, ...], [size - rows, ...]], packed."""
        sizes = self._expect(self._expect(pad.input[1], "Pack").input[1], "Pack")
        return int(self._number(self._expect(sizes.input[0], "Sub").input[0]))

    def _read(self, tensor: str) -> str:
        node = resolve(self.graph, tensor)
        if node.name not in self.loop.reads:
            self._refuse(node.name, f"{node.op} where one image's part of a tensor should be read")
        return self.loop.reads[node.name]

    def _expect(self, tensor: str, *ops: str) -> NodeDef:
        node = resolve(self.graph, tensor)
        if node.op not in ops:
            self._refuse(node.name, f"{node.op} where {ops[0]} should be")
        return node

    def _number(self, tensor: str) -> float:
        value = self.graph.constant(tensor)
        if value is None or value.size != 1:
            self._refuse(node_name(tensor), "not a constant number")
        return float(np.asarray(value).reshape(()))

    def _one(self, values: Collection[T], what: str) -> T:
        if len(values) != 1:
            self._refuse(self.loop.scope, f"{len(values)} different {what}")
        return next(iter(values))

    def _refuse(self, name: str, what: str) -> NoReturn:
        raise NotRecognisedError(f"{name}: {what}")
