"""Batched suppression against the loop it replaces: the same rows, to the last bit, whatever the boxes."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from tests.graph.conftest import Nms
from tuner.graph import batched_nms
from tuner.graph.batched_nms import batch_multi_class_nms
from tuner.graph.map_loop import NotRecognisedError
from tuner.model.graph_view import GraphView

Make = Callable[[Nms], GraphView]
Feeds = dict[str, NDArray[Any]]

PLAIN = Nms()
VARIANTS = {
    "plain": PLAIN,
    "own boxes": replace(PLAIN, own_boxes=True),
    "one class": replace(PLAIN, classes=1),
    "relative": replace(PLAIN, relative=True),
    "attribute": replace(PLAIN, attribute=True),
    "by V3": replace(PLAIN, kernel=3),
    "strict": replace(PLAIN, score_threshold=0.7, iou_threshold=0.2),
    "more than there are": replace(PLAIN, max_per_class=50, max_total=80),
    "one of each": replace(PLAIN, max_per_class=1, max_total=2),
    "clipped first": replace(PLAIN, clipped_first=True),
    "clipped first, one class": replace(PLAIN, clipped_first=True, classes=1),
    "clipped first, own boxes": replace(PLAIN, clipped_first=True, own_boxes=True, relative=True),
    "clipped first, one window": replace(PLAIN, clipped_first=True, shared_window=True, classes=5),
}


def feeds(how: Nms, seed: int, anchors: int = 40, batch: int = 3) -> Feeds:
    """Clustered boxes, some empty or turned round, some outside of the window; scores with many ties."""
    rng = np.random.default_rng(seed)
    width = how.classes if how.own_boxes else 1
    corner = np.round(rng.uniform(-0.3, 1.1, (batch, anchors, width, 2)), 1)
    size = np.round(rng.uniform(-0.05, 0.5, (batch, anchors, width, 2)), 1)
    return {
        "boxes:0": np.concatenate([corner, corner + size], 3).astype(np.float32),
        "scores:0": np.round(rng.uniform(0, 1, (batch, anchors, how.classes)), 1 + seed % 2).astype(np.float32),
        "window:0": np.array([[0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9], [0, 0, 0.75, 1]], np.float32)[:batch],
        "valid:0": np.array([anchors, max(anchors - 7, 0), 2], np.int32)[:batch],
        "extra:0": rng.normal(size=(batch, anchors, 2)).astype(np.float32),
    }


def values(graph: GraphView, names: list[str], given: list[Feeds]) -> list[list[NDArray[Any]]]:
    with tf.Graph().as_default() as imported:
        tf.import_graph_def(graph.graph_def, name="")
        with tf.compat.v1.Session(graph=imported) as session:
            present = {node.name for node in graph.graph_def.node}
            return [
                session.run(
                    [f"{name}:0" for name in names], {k: v for k, v in feed.items() if k.partition(":")[0] in present}
                )
                for feed in given
            ]


def assert_equal(before: GraphView, after: GraphView, given: list[Feeds]) -> None:
    names = sorted(before.outputs)
    for feed, expected, found in zip(given, values(before, names, given), values(after, names, given), strict=True):
        for name, first, second in zip(names, expected, found, strict=True):
            assert first.dtype == second.dtype
            np.testing.assert_array_equal(first, second, f"{name} of {feed['scores:0'].shape}")


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("candidates", [1, 5])
def test_the_same_rows(nms_graph: Make, monkeypatch: pytest.MonkeyPatch, name: str, candidates: int) -> None:
    """With few candidates the first look is rarely enough, so that every pair is looked at."""
    monkeypatch.setattr(batched_nms, "CANDIDATES_PER_DETECTION", candidates)
    graph = nms_graph(VARIANTS[name])
    batched = batch_multi_class_nms(graph)
    kernels = [node.op for node in batched.graph_def.node if "NonMaxSuppression" in node.op]
    assert sorted(kernels) == ["CombinedNonMaxSuppression", "NonMaxSuppressionV4"]
    sizes = [(anchors, batch) for anchors in (3, 40, 150) for batch in (1, 3)]
    given = [feeds(VARIANTS[name], seed, *size) for size in sizes for seed in range(4)]
    assert_equal(graph, batched, given)


def test_all_scores_equal(nms_graph: Make) -> None:
    graph = nms_graph(PLAIN)
    given = feeds(PLAIN, 0, anchors=150)
    given["scores:0"][:] = 0.25
    assert_equal(graph, batch_multi_class_nms(graph), [given])


@pytest.mark.parametrize("name", ["plain", "own boxes", "clipped first"])
def test_boxes_of_infinite_area(nms_graph: Make, name: str) -> None:
    """Networks that run over give such boxes; the kernels do not agree on how far they overlap."""
    graph = nms_graph(VARIANTS[name])
    given = feeds(VARIANTS[name], 1)
    given["boxes:0"][:, ::3] *= np.float32(1e25)
    given["boxes:0"][:, ::5] = [-np.inf, -np.inf, np.inf, np.inf]
    assert_equal(graph, batch_multi_class_nms(graph), [given])


def test_nothing_over_the_threshold(nms_graph: Make) -> None:
    how = replace(PLAIN, score_threshold=0.5)
    graph = nms_graph(how)
    given = feeds(how, 0)
    given["scores:0"] *= 0.5
    batched = batch_multi_class_nms(graph)
    assert_equal(graph, batched, [given])
    count = next(name for name in graph.outputs if name.endswith("_3/TensorListStack") or "Stack_3" in name)
    assert values(batched, [count], [given])[0][0].tolist() == [0, 0, 0]


def test_results_nobody_reads_are_left_out(nms_graph: Make) -> None:
    graph = nms_graph(PLAIN)
    boxes = min(graph.outputs)
    one = GraphView(graph.graph_def, frozenset([boxes])).replace([], [])
    batched = batch_multi_class_nms(one)
    assert batched.outputs == {boxes}
    assert_equal(one, batched, [feeds(PLAIN, 1)])


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (replace(PLAIN, sigma=0.5), "soft suppression"),
        (replace(PLAIN, score_threshold=-1.0), "a score threshold of -1, below 0"),
        (replace(PLAIN, class_offset=1.0), "class 1 in the place of class 0"),
        (replace(PLAIN, pad=9), "2 different sizes"),
        (replace(PLAIN, pad=9, clipped_first=True), "2 different sizes"),
        (replace(PLAIN, class_offset=1.0, clipped_first=True), "class 1 in the place of class 0"),
        (replace(PLAIN, score_threshold=-1.0, clipped_first=True), "a score threshold of -1, below 0"),
    ],
)
def test_what_is_not_the_same_is_refused(nms_graph: Make, how: Nms, reason: str) -> None:
    with pytest.raises(NotRecognisedError, match=re.escape(reason)):
        batch_multi_class_nms(nms_graph(how))


def test_a_kernel_that_is_fed_something_else_is_refused(nms_graph: Make) -> None:
    graph = nms_graph(PLAIN)
    kernels = [node for node in graph.graph_def.node if node.op == "NonMaxSuppressionV5"]
    changed = type(kernels[0])()
    changed.CopyFrom(kernels[1])
    changed.input[1] = kernels[0].input[1]
    swapped = graph.replace([changed.name], [changed])
    with pytest.raises(NotRecognisedError, match="scores that are not those of class 1"):
        batch_multi_class_nms(swapped)


def test_a_graph_without_suppression_is_the_same_graph(nms_graph: Make) -> None:
    graph = nms_graph(PLAIN)
    scores = GraphView(graph.graph_def, frozenset(["scores"])).replace([], [])
    assert batch_multi_class_nms(scores) is scores
