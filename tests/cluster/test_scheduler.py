"""Who is handed what, in which order results come, and what becomes of calls whose worker is lost."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest

from tests.cluster.fake_ray import HERE, FakeRay, Node, install, until
from tuner.cluster import scheduler as scheduling
from tuner.cluster.jobs import Call, Job
from tuner.cluster.pool import MOST_IDLE_DEATHS, Pool, PoolSettings
from tuner.cluster.recipe import Failure
from tuner.cluster.scheduler import MOST_DEATHS, QUEUED, Scheduler
from tuner.errors import ClusterError, DatasetError, EvaluationError

Start = Callable[..., Scheduler]

# Of a worker that works on one call at a time.
MOST_GIVEN = 1 + QUEUED


class Once(dict[int, Any]):
    """Results of a job, of which none may be counted twice."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[int] = []

    def __setitem__(self, index: int, found: Any) -> None:
        assert index not in self.taken, f"the result of call {index} was taken twice"
        self.taken.append(index)
        super().__setitem__(index, found)


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start a scheduler on made-up nodes."""
    with ExitStack() as running:

        def started(*nodes: Node, **settings: Any) -> Scheduler:
            install(monkeypatch, *nodes)
            return running.enter_context(closing(Scheduler(Pool(PoolSettings(cpus=1), HERE), **settings)))

        yield started


def job(calls: int, *, first: int = 0, **fields: Any) -> Job:
    made = [Call("find", (number,), f"call {number}") for number in range(first, first + calls)]
    return Job(made, results=Once(), **fields)


def doubled(argument: int) -> int:
    return 2 * argument


def pending(*nodes: Node) -> list[Any]:
    return [one.argument for node in nodes for one in node.pending]


def answer_until(is_so: Callable[[], Any], *nodes: Node) -> None:
    """Let nodes answer until something is so."""

    def step() -> Any:
        for node in nodes:
            answer(node)
        return is_so()

    until(step)


def answer(node: Node) -> None:
    """The call whose turn it is on each worker."""
    for actor in node.living:
        for reference in islice((one for one in actor.pending if not one.is_done), 1):
            reference.answer(doubled(reference.argument))


def answer_first(node: Node) -> None:
    """The call whose turn it is on the first of the workers that have one."""
    reference = node.pending[0]
    reference.answer(doubled(reference.argument))


def test_results_come_in_order_whoever_is_first(start: Start) -> None:
    slow, quick = Node("slow"), Node("quick", answers=doubled)
    scheduler = start(slow, quick)
    asked = scheduler.submit(job(20))
    results = scheduler.results(asked)
    until(lambda: len(quick.handed) == 20 - len(slow.pending))
    assert 1 <= len(slow.pending) <= MOST_GIVEN
    answer_until(lambda: len(asked.results) == 20, slow)
    assert list(results) == [2 * number for number in range(20)]
    assert sorted(slow.handed + quick.handed) == list(range(20))


def test_a_worker_has_no_more_than_the_next_call_before_it(start: Start) -> None:
    node = Node("one", cpus=3)
    start(node).submit(job(20))
    until(lambda: len(node.pending) == 3 * MOST_GIVEN)
    time.sleep(0.1)
    assert len(node.pending) == 3 * MOST_GIVEN


def test_what_may_be_asked_for_waits_for_what_is(start: Start) -> None:
    node = Node("one")
    scheduler = start(node)
    scheduler.submit(job(4, first=100, rank=1))
    until(lambda: pending(node) == [100])
    asked = scheduler.submit(job(3))
    until(lambda: len(node.pending) == MOST_GIVEN)
    node.answers = doubled
    answer(node)
    answer(node)
    assert list(scheduler.results(asked)) == [0, 2, 4]
    until(lambda: len(node.handed) == 7)
    assert node.handed == [100, 0, 1, 2, 101, 102, 103]


def test_a_lost_workers_calls_go_to_others_once(start: Start) -> None:
    doomed, other = Node("doomed"), Node("other")
    scheduler = start(doomed, other)
    asked = scheduler.submit(job(8))
    until(lambda: len(doomed.pending) == len(other.pending) == MOST_GIVEN)
    lost = pending(doomed)
    doomed.is_alive = False
    other.answers = doubled
    doomed.living[0].die()
    answer_until(lambda: len(asked.results) == 8, other)
    assert list(scheduler.results(asked)) == [2 * number for number in range(8)]
    assert set(lost) <= set(other.handed)


def test_several_lost_at_once(start: Start) -> None:
    nodes = [Node(f"node {number}", cpus=2) for number in range(3)]
    scheduler = start(*nodes)
    asked = scheduler.submit(job(30))
    until(lambda: all(len(node.pending) == 2 * MOST_GIVEN for node in nodes))
    for node in nodes[:2]:
        node.is_alive = False
        for actor in node.living:
            actor.die()
    nodes[2].answers = doubled
    answer_until(lambda: len(asked.results) == 30, nodes[2])
    assert list(scheduler.results(asked)) == [2 * number for number in range(30)]


def test_a_call_that_ends_its_workers_is_told_and_the_next_job_goes_on(start: Start) -> None:
    """All of its calls do, on all workers of the only node."""
    node = Node("one", cpus=2)
    scheduler = start(node)
    for _ in range(2 * MOST_IDLE_DEATHS):
        deadly = scheduler.submit(job(4))
        results = scheduler.results(deadly)
        for _ in range(MOST_DEATHS):
            until(lambda: len(node.living) == 2 and all(actor.pending for actor in node.living))
            for actor in node.living:
                actor.die()
        with pytest.raises(EvaluationError, match=rf"^call 0: {MOST_DEATHS} workers were lost with it; .*on one .*$"):
            next(results)
        # What is behind the call is not at fault, and dropped.
        until(lambda: len(node.living) == 2)
    node.answers = doubled
    for actor in node.living:
        actor.die()
    assert list(scheduler.results(scheduler.submit(job(3)))) == [0, 2, 4]


def test_one_death_counts_once_for_calls_that_were_worked_on_together(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node("one", cpus=4)
    install(monkeypatch, node)
    with closing(Scheduler(Pool(PoolSettings(cpus=4), HERE))) as scheduler:
        asked = scheduler.submit(job(8))
        for _ in range(MOST_DEATHS - 1):
            until(lambda: len(node.pending) == 4 + QUEUED)
            node.living[0].die()
        until(lambda: node.pending)
        node.answers = doubled
        for reference in node.pending:
            reference.answer(doubled(reference.argument))
        assert list(scheduler.results(asked)) == [2 * number for number in range(8)]


def test_a_node_whose_workers_die_with_what_others_do_is_not_used_any_more(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = Node("bad", is_deadly=True), Node("good")
    scheduler = start(bad, good)
    asked = scheduler.submit(job(200))
    answer_until(lambda: len(asked.results) == len(asked.calls), good)
    assert list(scheduler.results(asked)) == [2 * number for number in range(len(asked.calls))]
    assert f"bad, {bad.node_id[:6]}) is not used: {MOST_IDLE_DEATHS} workers were lost there" in caplog.text


def test_a_call_that_hangs_goes_to_another_worker(start: Start) -> None:
    hung, other = Node("hung"), Node("other", answers=doubled)
    # Long enough for whoever answers on a busy machine.
    scheduler = start(hung, other, hang_s=1.5)
    asked = scheduler.submit(job(6))
    results = scheduler.results(asked)
    assert list(results) == [0, 2, 4, 6, 8, 10]
    late = hung.actors[0].pending
    assert late
    for reference in late:
        reference.answer(-1)  # nobody takes it
    assert list(scheduler.results(scheduler.submit(job(2)))) == [0, 2]


def test_a_node_that_cannot_read_images_is_named_and_nothing_on_its_way_is_lost(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """Other calls are on the node when it is found out."""
    blind, other = Node("blind", cpus=2), Node("other")
    scheduler = start(blind, other)
    asked = scheduler.submit(job(12))
    until(lambda: len(blind.pending) == 2 * MOST_GIVEN and len(other.pending) == MOST_GIVEN)
    blind.pending[0].answer(Failure("DatasetError", "/data/1.jpg: no such file"))
    answer_until(lambda: len(asked.results) == 12, other)
    assert list(scheduler.results(asked)) == [2 * number for number in range(12)]
    assert "it cannot read images: /data/1.jpg: no such file" in caplog.text
    assert not blind.living


@pytest.mark.parametrize("nodes", [1, 3])
def test_an_image_that_nobody_can_read_is_told_in_its_turn(start: Start, nodes: int) -> None:
    def damaged(argument: int) -> Any:
        return Failure("DatasetError", "a.jpg: damaged") if argument == 2 else doubled(argument)

    machines = [Node(f"node {number}", answers=damaged) for number in range(nodes)]
    scheduler = start(*machines)
    results = scheduler.results(scheduler.submit(job(6)))
    assert list(islice(results, 2)) == [0, 2]
    with pytest.raises(DatasetError, match=r"^a.jpg: damaged$"):
        next(results)
    assert sum(node.handed.count(2) for node in machines) == min(nodes, 2)
    assert list(scheduler.results(scheduler.submit(job(2)))) == [0, 2]


def test_a_mistake_in_a_call_is_raised_in_its_turn(start: Start) -> None:
    from ray.exceptions import RayTaskError  # noqa: PLC0415 - Ray's own only here

    def mistaken(argument: int) -> Any:
        return RayTaskError("find", "traceback", ZeroDivisionError("none")) if argument == 1 else doubled(argument)

    scheduler = start(Node("one", answers=mistaken))
    results = scheduler.results(scheduler.submit(job(3)))
    assert next(results) == 0
    with pytest.raises(ZeroDivisionError, match="none"):
        next(results)


def test_what_is_cancelled_is_not_handed_out_and_its_results_are_dropped(start: Start) -> None:
    node = Node("one", cpus=2)
    scheduler = start(node)
    dropped = scheduler.submit(job(50))
    until(lambda: len(node.pending) == 2 * MOST_GIVEN)
    results = scheduler.results(dropped)
    next(iter(node.living)).pending[0].answer(0)
    assert next(results) == 0
    results.close()
    handed = len(node.handed)
    after = scheduler.submit(job(2, first=100))
    running = [one for actor in node.living for one in actor.pending if one.argument in range(1, 50)]
    assert running
    assert all(reference.is_cancelled for reference in running)
    answer_until(lambda: len(after.results) == 2, node)
    assert [one for one in node.handed[handed:] if one < 100] == []
    assert not dropped.results
    assert list(scheduler.results(after)) == [200, 202]


def test_what_is_alone_waits_for_its_node_and_keeps_it_free(start: Start) -> None:
    pinned, other = Node("driver", cpus=2), Node("other")
    scheduler = start(other, pinned)
    finding = scheduler.submit(job(7))
    timing = scheduler.submit(job(1, first=100, is_alone=True, after=finding))
    until(lambda: not finding.waiting or len(pinned.pending) == 2 * MOST_GIVEN)
    ahead = scheduler.submit(job(5000, first=200, rank=1))
    answer_until(lambda: not finding.waiting, pinned)
    assert 100 not in other.handed + pinned.handed
    before = len(pinned.pending)
    for _ in range(before):
        assert 100 not in pending(pinned) + pending(other)
        answer_first(pinned)
    until(lambda: pending(pinned) == [100])
    other.answers = doubled
    answer_until(lambda: not other.pending, other)
    until(lambda: len(ahead.results) > 10)
    assert pending(pinned) == [100]
    answer(pinned)
    assert list(scheduler.results(timing)) == [200]
    until(lambda: pinned.handed[-1] >= 200)
    assert list(scheduler.results(finding)) == [2 * number for number in range(7)]


def timed(number: int) -> Job:
    return Job([Call("find", (number,), "latency", beforehand="get_ready")], is_alone=True)


def test_what_is_alone_is_made_ready_while_its_node_still_works(start: Start) -> None:
    node = Node("driver", cpus=2)
    scheduler = start(node)
    finding = scheduler.submit(job(4))
    until(lambda: pending(node) == [0, 2, 1, 3])
    timing = scheduler.submit(timed(100))
    until(lambda: node.living[0].readying)
    node.living[0].readying[0].answer(None)
    time.sleep(0.1)
    assert [len(actor.readying) for actor in node.living] == [1, 0]
    assert 100 not in node.handed
    node.answers = doubled
    answer_until(lambda: not node.pending, node)
    assert list(scheduler.results(finding)) == [0, 2, 4, 6]
    assert list(scheduler.results(timing)) == [200]


def being_made_ready(start: Start) -> tuple[Node, Scheduler, Job, Job]:
    """A node that works on a call, and is made ready for what is to be alone; both jobs."""
    node = Node("driver")
    scheduler = start(node)
    finding = scheduler.submit(job(1))
    until(lambda: pending(node) == [0])
    timing = scheduler.submit(timed(100))
    until(lambda: node.living[0].readying)
    return node, scheduler, finding, timing


def test_what_is_alone_waits_until_it_is_made_ready(start: Start) -> None:
    node, scheduler, finding, timing = being_made_ready(start)
    node.answers = doubled
    answer_until(lambda: not node.pending, node)
    assert list(scheduler.results(finding)) == [0]
    time.sleep(0.1)
    assert 100 not in node.handed
    node.living[0].readying[0].answer(None)
    assert list(scheduler.results(timing)) == [200]


def test_an_idle_node_need_not_be_made_ready(start: Start) -> None:
    node = Node("driver", answers=doubled)
    scheduler = start(node)
    assert list(scheduler.results(scheduler.submit(timed(100)))) == [200]
    assert not node.living[0].readying


def test_who_dies_while_made_ready_is_not_asked_for_that_again(start: Start) -> None:
    node, scheduler, finding, timing = being_made_ready(start)
    node.answers = doubled
    node.living[0].die()
    assert list(scheduler.results(finding)) == [0]
    assert list(scheduler.results(timing)) == [200]
    assert len(node.actors) == 2
    assert not node.living[0].readying


def test_slots_elsewhere_are_those_of_nodes_that_are_not_pinned(start: Start) -> None:
    scheduler = start(Node("other", cpus=3), Node("driver", cpus=2))
    until(lambda: scheduler.workers == 5)
    assert scheduler.slots_elsewhere == 3


def test_latency_goes_on_elsewhere_when_its_node_is_lost(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    pinned, other = Node("driver"), Node("other")
    scheduler = start(other, pinned)
    assert scheduler.workers
    until(lambda: pinned.living and other.living)
    timing = scheduler.submit(job(1, is_alone=True))
    until(lambda: pending(pinned) == [0])
    pinned.is_alive = False
    pinned.living[0].die()
    until(lambda: pending(other) == [0])
    answer(other)
    assert list(scheduler.results(timing)) == [0]
    assert "the node that latency was taken on is lost" in caplog.text


def test_a_pinned_node_that_only_lost_a_worker_stays_pinned(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    pinned, other = Node("driver"), Node("other")
    scheduler = start(other, pinned)
    until(lambda: pinned.living and other.living)
    timing = scheduler.submit(job(1, is_alone=True))
    until(lambda: pending(pinned) == [0])
    pinned.living[0].die()
    until(lambda: len(pinned.actors) == 2 and pending(pinned) == [0])
    assert other.handed == []
    answer(pinned)
    assert list(scheduler.results(timing)) == [0]
    assert "latency" not in caplog.text


def test_workers_of_a_node_that_is_gone_are_not_counted(start: Start) -> None:
    """Nobody told them anything, so nobody noticed."""
    gone, other = Node("gone", cpus=4), Node("other", answers=doubled)
    scheduler = start(gone, other)
    until(lambda: scheduler.workers == 5)
    gone.is_alive = False
    until(lambda: scheduler.workers == 1)
    assert list(scheduler.results(scheduler.submit(job(9)))) == [2 * number for number in range(9)]
    assert gone.handed == []


def test_a_node_that_comes_in_mid_work_gets_some(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Node("first")
    fake = install(monkeypatch, first)
    with closing(Scheduler(Pool(PoolSettings(cpus=1), HERE))) as scheduler:
        asked = scheduler.submit(job(30))
        until(lambda: first.pending)
        second = Node("second", answers=doubled)
        fake.machines.append(second)
        until(lambda: len(second.handed) == 30 - len(first.pending))
        answer_until(lambda: len(asked.results) == 30, first)
        assert list(scheduler.results(asked)) == [2 * number for number in range(30)]


def test_nodes_unlike_the_driver_are_refused_and_named(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    strange = Node("strange", cpus=2, facts=replace(HERE, facts={"CPU instructions": "none"}))
    scheduler = start(strange, Node("good", answers=doubled))
    assert list(scheduler.results(scheduler.submit(job(5)))) == [0, 2, 4, 6, 8]
    assert strange.handed == []
    assert caplog.text.count("it is not like this machine (CPU instructions: none, here avx2)") == 1


def test_a_run_whose_nodes_are_all_refused_does_not_wait_long(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduling, "IMPATIENCE_S", 0.1)
    scheduler = start(Node("strange", facts=replace(HERE, facts={"CPU instructions": "none"})))
    with pytest.raises(ClusterError, match=r"^the cluster has no worker for this run: strange .* here avx2\)$"):
        _ = scheduler.workers


def in_mid_job_without_its_node(start: Start, *, patience_s: float) -> tuple[Node, Scheduler, Job]:
    """The only node is lost while it works."""
    node = Node("one")
    scheduler = start(node, patience_s=patience_s)
    asked = scheduler.submit(job(3))
    until(lambda: node.pending)
    node.is_alive = False
    node.living[0].die()
    return node, scheduler, asked


def test_a_run_without_nodes_waits_and_then_ends(start: Start) -> None:
    _, scheduler, asked = in_mid_job_without_its_node(start, patience_s=0.5)
    with pytest.raises(ClusterError, match=r"^the cluster has no worker for this run; see `ray status`$"):
        next(scheduler.results(asked))


def test_a_node_that_comes_back_in_time_goes_on(start: Start) -> None:
    node, scheduler, asked = in_mid_job_without_its_node(start, patience_s=30.0)
    time.sleep(0.1)
    node.answers, node.is_alive = doubled, True
    assert list(scheduler.results(asked)) == [0, 2, 4]


def test_a_fault_of_ray_ends_the_run_in_one_line(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = start(Node("one"))
    asked = scheduler.submit(job(3))

    def broken(self: FakeRay) -> Any:
        raise ConnectionError("first\nGCS is gone")

    monkeypatch.setattr(FakeRay, "nodes", broken)
    with pytest.raises(ClusterError, match=r"^the cluster is lost: GCS is gone$"):
        next(scheduler.results(asked))
