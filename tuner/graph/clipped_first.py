"""The suppression of the Object Detection API's releases of 2017 and 2018, which compares boxes that are clipped."""

from collections.abc import Collection, Sequence

from tensorflow.core.framework.node_def_pb2 import NodeDef

from tuner.graph.map_loop import resolve
from tuner.graph.multi_class_nms import MultiClassNms
from tuner.graph.nms_reader import CLIPPED, INTO_WINDOW, NmsReader
from tuner.model.graph_view import node_name, tensor_name

# From a result back to the concatenation over classes: filled up, cut to the greatest number, sorted by score.
_RESULT = ("Pad", "Slice", "Gather", "Gather")
# From the boxes that a kernel reads back to one class of a tensor: those outside of the window, which they are clipped
# to, are left out, and before that those of low scores. Their scores go the same way.
_BOXES = ("Gather", *CLIPPED, "Gather")
_MOVED_BOXES = (*INTO_WINDOW, *_BOXES)
_SCORES = ("Gather", "Gather")

_OPERANDS = {"Split": 1, "Mul": 1}


class ClippedFirstReader(NmsReader):
    """Walks one loop of this kind; raises NotRecognisedError where it is not what it should be."""

    def read(self) -> MultiClassNms:
        """The suppression, from its results on."""
        ways = {name: self._way(kernel.input[1], [_SCORES]) for name, kernel in self.kernels.items()}
        kernels = sorted(self.kernels.values(), key=lambda kernel: self._class_of(ways[kernel.name]))
        outputs: dict[str, str] = {}
        sizes: set[int] = set()
        for gather, written in self.loop.writes.items():
            node = resolve(self.graph, written)
            if node.op == "StridedSlice":
                sizes.add(self._cut_size(resolve(self.graph, self._expect(node.input[0], "Shape").input[0])))
                outputs["count"] = gather
                continue
            way = self._way(written, [_RESULT])
            sizes |= {self._padded_size(way[0]), self._cut_size(way[2])}
            self._expect(way[3].input[1], "TopKV2")
            parts = self._parts(resolve(self.graph, way[3].input[0]))
            if len(parts) != len(kernels):
                self._refuse(gather, f"{len(parts)} classes where {len(kernels)} are suppressed")
            roles = {self._role(part, index, kernels[index]) for index, part in enumerate(parts)}
            outputs[self._one(roles, "kinds of rows in one result")] = gather
        return self._with_inputs(kernels, [ways[kernel.name] for kernel in kernels], outputs, sizes)

    def _with_inputs(
        self,
        kernels: Sequence[NodeDef],
        score_ways: Sequence[Sequence[NodeDef]],
        outputs: dict[str, str],
        sizes: Collection[int],
    ) -> MultiClassNms:
        box_ways = [self._way(kernel.input[0], [_BOXES, _MOVED_BOXES]) for kernel in kernels]
        thresholds = [self._threshold_of(*ways) for ways in zip(box_ways, score_ways, strict=True)]
        for kernel, threshold in zip(kernels, thresholds, strict=True):
            if len(kernel.input) > 4 and self._number(kernel.input[4]) > threshold:
                self._refuse(kernel.name, "a second score threshold")
        window, is_shared = self._one({one for way in box_ways for one in self._windows_of(way)}, "windows")
        suppression = self._suppression_of(
            kernels,
            [self._column_of_boxes(way[-1].input[0]) for way in box_ways],
            [self._scores_of(way[-1].input[0], index) for index, way in enumerate(score_ways)],
            self._one(set(thresholds), "score thresholds"),
        )
        return MultiClassNms(
            scope=self.loop.scope,
            suppression=suppression,
            window=window,
            window_is_shared=is_shared,
            clipped_first=True,
            max_total=self._one(sizes, "sizes"),
            relative_to_window=self._one({len(way) == len(_MOVED_BOXES) for way in box_ways}, "kinds of coordinates"),
            boxes_out=outputs.get("boxes"),
            scores_out=outputs.get("scores"),
            classes_out=outputs.get("classes"),
            count_out=outputs.get("count"),
            attributes={},
        )

    def _way(self, tensor: str, expected: Sequence[Sequence[str]]) -> list[NodeDef]:
        """The nodes from a tensor back, of one of the sequences of ops that are expected."""
        way: list[NodeDef] = []
        node = resolve(self.graph, tensor)
        while True:
            way.append(node)
            ops = tuple("Gather" if step.op == "GatherV2" else step.op for step in way)
            if ops in expected:
                return way
            if not any(tuple(ops) == tuple(one[: len(ops)]) for one in expected):
                self._refuse(node.name, f"{node.op} where {expected[0][min(len(ops), len(expected[0])) - 1]} should be")
            node = resolve(self.graph, node.input[_OPERANDS.get(node.op, 0)])

    def _role(self, part: str, index: int, kernel: NodeDef) -> str:
        """What the rows of one class are: what the kernel selects of its boxes or of its scores, or the class."""
        node = resolve(self.graph, part)
        if node.op in ("Add", "AddV2"):
            if self._number(node.input[1]) != index:
                self._refuse(node.name, f"class {self._number(node.input[1]):g} in the place of class {index}")
            self._role(self._expect(node.input[0], "ZerosLike").input[0], index, kernel)
            return "classes"
        gather = self._expect(part, "GatherV2", "Gather")
        if node_name(gather.input[1]) != kernel.name:
            self._refuse(gather.name, f"rows that are not those selected of class {index}")
        for role, operand in (("boxes", 0), ("scores", 1)):
            if tensor_name(gather.input[0]) == tensor_name(kernel.input[operand]):
                return role
        self._refuse(gather.name, "rows of a tensor that is not suppressed")

    def _threshold_of(self, boxes: Sequence[NodeDef], scores: Sequence[NodeDef]) -> float:
        """The lowest score of one class, once boxes and scores are left out by the same rules."""
        by_area = next(step for step in boxes if step.op.startswith("Gather"))
        for box_step, score_step in ((by_area, scores[0]), (boxes[-1], scores[1])):
            if tensor_name(box_step.input[1]) != tensor_name(score_step.input[1]):
                self._refuse(box_step.name, "boxes left out by another rule than their scores")
        area, least = self._rule(by_area.input[1])
        compared, threshold = self._rule(scores[1].input[1])
        if least != 0 or resolve(self.graph, area).op not in ("Squeeze", "Mul", "Reshape"):
            self._refuse(by_area.name, "boxes left out by something else than their area")
        if resolve(self.graph, compared).name != resolve(self.graph, scores[1].input[0]).name:
            self._refuse(scores[1].name, "boxes left out by something else than their score")
        return threshold

    def _rule(self, tensor: str) -> tuple[str, float]:
        """x and c of the rows where x > c."""
        where = self._expect(self._expect(self._expect(tensor, "Cast").input[0], "Reshape").input[0], "Where")
        greater = self._expect(where.input[0], "Greater")
        return greater.input[0], self._number(greater.input[1])

    def _windows_of(self, way: Sequence[NodeDef]) -> list[tuple[str, bool]]:
        """The tensors outside that boxes are clipped with, and whether they are the same for all images."""
        found = []
        for node in way:
            if node.op in ("Maximum", "Minimum"):
                source = resolve(self.graph, self._expect(node.input[1], "Unpack").input[0])
                is_shared = source.op == "Enter" and source.attr["is_constant"].b
                found.append((source.input[0] if is_shared else self._read(source.name), is_shared))
        return found

    def _cut_size(self, gather: NodeDef) -> int:
        """The constant c of Gather(x, Range(0, Minimum(c, rows), 1))."""
        return self._limit(self._expect(gather.input[1], "Range").input[1])

    def _class_of(self, scores: Sequence[NodeDef]) -> int:
        column = self._expect(self._expect(scores[-1].input[0], "Reshape").input[0], "Slice")
        begin = self.graph.constant(column.input[1])
        return -1 if begin is None else int(begin.reshape(-1)[-1])
