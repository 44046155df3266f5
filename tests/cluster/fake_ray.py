"""As much of Ray as a scheduler sees, with calls that tests answer: for what real nodes cannot be made to do."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, TaskCancelledError

from tuner.cluster import hired, pool, scheduler
from tuner.cluster.facts import NodeFacts

HERE = NodeFacts("driver", {"CPU instructions": "avx2"})


@dataclass(eq=False)
class Reference:
    """Of the result of a call. outcome: what it gives, or raises."""

    argument: Any = None
    outcome: Any = None
    is_done: bool = False
    is_cancelled: bool = False

    def answer(self, outcome: Any) -> None:
        if not self.is_done:
            self.outcome, self.is_done = outcome, True


@dataclass(eq=False)
class Actor:
    """A worker. pending: calls that it was handed, in order. readying: what it does beside them."""

    node: "Node"
    is_dead: bool = False
    pending: list[Reference] = field(default_factory=list)
    readying: list[Reference] = field(default_factory=list)

    @property
    def facts(self) -> Any:
        return SimpleNamespace(remote=lambda: Reference(None, self.node.facts, is_done=True))

    @property
    def find(self) -> Any:
        method = SimpleNamespace(remote=self._call)
        method.options = lambda **options: method
        return method

    @property
    def get_ready(self) -> Any:
        return SimpleNamespace(remote=self._get_ready)

    def _get_ready(self, argument: Any) -> Reference:
        self.readying.append(Reference(argument))
        return self.readying[-1]

    def _call(self, argument: Any) -> Reference:
        self.node.handed.append(argument)
        reference = Reference(argument)
        if self.node.is_deadly:
            self.die()
        if self.is_dead:
            reference.answer(ActorDiedError())
        elif self.node.answers is not None:
            reference.answer(self.node.answers(argument))
        else:
            self.pending.append(reference)
        return reference

    def die(self) -> None:
        self.is_dead = True
        for reference in self.pending + self.readying:
            reference.answer(ActorDiedError())


@dataclass(eq=False)
class Node:
    """A machine. answers: what its workers answer at once; without it tests answer. handed: arguments of all calls.

    is_deadly: its workers die with any call.
    """

    name: str
    cpus: int = 1
    facts: Any = HERE
    answers: Callable[[Any], Any] | None = None
    is_alive: bool = True
    is_deadly: bool = False
    actors: list[Actor] = field(default_factory=list)
    handed: list[Any] = field(default_factory=list)

    @property
    def node_id(self) -> str:
        return hashlib.sha224(self.name.encode()).hexdigest()

    @property
    def living(self) -> list[Actor]:
        return [actor for actor in self.actors if not actor.is_dead]

    @property
    def pending(self) -> list[Reference]:
        return [one for actor in self.living for one in actor.pending if not one.is_done]


class FakeRay:
    """Stands for the module `ray` in the pool and the scheduler."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.machines = list(nodes)

    def nodes(self) -> list[dict[str, Any]]:
        return [
            {
                "NodeID": one.node_id,
                "NodeName": one.name,
                "NodeManagerHostname": one.name,
                "Alive": one.is_alive,
                "Resources": {"CPU": float(one.cpus)},
            }
            for one in self.machines
        ]

    def remote(self, *, scheduling_strategy: Any, **options: Any) -> Callable[[type], Any]:
        node = next(one for one in self.machines if one.node_id == scheduling_strategy.node_id)

        def start(*arguments: Any) -> Actor:
            node.actors.append(Actor(node))
            return node.actors[-1]

        return lambda of_class: SimpleNamespace(remote=start)

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(get_node_id=lambda: Node("driver").node_id)

    def kill(self, actor: Actor, *, no_restart: bool) -> None:
        actor.die()

    def cancel(self, reference: Reference, *, force: bool) -> None:
        reference.is_cancelled = True
        reference.answer(TaskCancelledError())

    def wait(
        self, references: Sequence[Reference], *, num_returns: int = 1, timeout: float
    ) -> tuple[list[Reference], list[Reference]]:
        done = [one for one in references if one.is_done]
        if not done and timeout:
            time.sleep(0.001)
        return done, [one for one in references if not one.is_done]

    def get(self, reference: Reference, *, timeout: float | None = None) -> Any:
        assert reference.is_done
        if isinstance(reference.outcome, Exception):
            raise reference.outcome
        return reference.outcome


def install(monkeypatch: pytest.MonkeyPatch, *nodes: Node) -> FakeRay:
    """Let pool and scheduler see these nodes."""
    fake = FakeRay(nodes)
    for module in (hired, pool, scheduler):
        monkeypatch.setattr(module, "ray", fake)
    monkeypatch.setattr(pool, "NODES_EVERY_S", 0.0)
    return fake


def until(is_so: Callable[[], Any], within_s: float = 10.0) -> None:
    """Wait until something is so."""
    end = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.002)
