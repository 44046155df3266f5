"""A worker by itself: graphs are made once, kept while they are used, and closed when others take their place."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from tuner.cluster import worker as working
from tuner.cluster.recipe import Failure, Recipe
from tuner.cluster.worker import GRAPHS_KEPT, Worker
from tuner.data.remote import NotThere
from tuner.errors import ModelError


class Runner:
    """A session that tells whether it is closed."""

    def __init__(self, model: Any, *threads: int) -> None:
        self.model, self.is_closed, self.runs = model, False, 0

    def run(self, image: Any) -> None:
        self.runs += 1

    def close(self) -> None:
        self.is_closed = True


class Recipes:
    """Makes a graph out of nothing. made: how often each was made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: dict[str, int] = {}
        self._lock = threading.Lock()
        monkeypatch.setattr(working, "ModelRunner", Runner)

        def make(recipe: Recipe, given: Any, source: Any) -> Any:
            with self._lock:
                self.made[recipe.key] = self.made.get(recipe.key, 0) + 1
            if recipe.key == "bad":
                raise ModelError("it cannot be made")
            return recipe.key

        monkeypatch.setattr(Recipe, "make", make)


def test_more_graphs_than_are_kept_are_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    recipes, worker = Recipes(monkeypatch), Worker(1, 0, 0)
    many = 3 * GRAPHS_KEPT
    together = threading.Barrier(many)

    def use(number: int) -> tuple[str, bool]:
        with worker._graph(Recipe(f"graph {number}")) as loaded:
            together.wait(20)
            return str(loaded.model), loaded.runner.is_closed

    with ThreadPoolExecutor(many) as pool:
        found = list(pool.map(use, range(many)))
    assert found == [(f"graph {number}", False) for number in range(many)]
    assert recipes.made == {f"graph {number}": 1 for number in range(many)}


def test_the_graph_that_was_not_used_for_longest_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    recipes, worker = Recipes(monkeypatch), Worker(1, 0, 0)
    runners = []
    for name in ["first", *(f"graph {number}" for number in range(GRAPHS_KEPT - 1)), "first", "last"]:
        with worker._graph(Recipe(name)) as loaded:
            runners.append(loaded.runner)
    assert [runner.is_closed for runner in runners] == [False, True, *[False] * (GRAPHS_KEPT - 2), False, False]
    assert set(recipes.made.values()) == {1}


def test_latency_is_taken_in_the_session_that_was_made_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    Recipes(monkeypatch)
    monkeypatch.setattr(working, "trial_latency", lambda runner, image: runner)
    worker, image, threads = Worker(1, 0, 0), np.zeros((1, 2, 2, 3)), (2, 0)
    worker.prepare_latency(Recipe("first"), image, threads)
    first: Any = worker.latency(Recipe("first"), image, threads)
    assert (first.model, first.runs, first.is_closed) == ("first", 1, False)
    unprepared: Any = worker.latency(Recipe("second"), image, threads)
    assert (unprepared.model, unprepared.runs, unprepared.is_closed) == ("second", 0, False)
    assert first.is_closed
    worker.prepare_latency(Recipe("bad"), image, threads)
    assert unprepared.is_closed
    failure = worker.latency(Recipe("bad"), image, threads)
    assert isinstance(failure, Failure)


def test_all_who_wait_for_a_graph_are_told_why_there_is_none_and_may_ask_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipes, worker = Recipes(monkeypatch), Worker(1, 0, 0)
    for _ in range(2):
        with pytest.raises(ModelError, match="cannot be made"), worker._graph(Recipe("bad")):
            pass
    assert recipes.made == {"bad": 2}


def test_an_error_of_a_room_travels_as_the_kind_that_all_rooms_know() -> None:
    def read() -> None:
        raise NotThere("file:///val.record: no such file")

    assert working._told(read) == Failure("DatasetError", "file:///val.record: no such file")
