"""A search that announces proposes what it proposes without."""

from functools import partial

import pytest

from tests.search.test_ahead import OPS, foresight_of, monotone, space_of
from tuner.config import Strategy
from tuner.search.announced import Announced
from tuner.search.strategy import make_search
from tuner.trial import Proposal

SPACE = space_of(OPS[:20])


def announcing(wanted: int) -> tuple[Announced, list[list[Proposal]]]:
    """A search, and what it announces from now on."""
    announced: list[list[Proposal]] = []
    make = partial(make_search, Strategy.GUIDED, SPACE, goes_on=False)
    foresight = foresight_of(OPS[:20])
    search = Announced(make, foresight, wanted=lambda: wanted, announce=lambda told: announced.append(list(told)))
    return search, announced


def run(wanted: int) -> tuple[list[Proposal], list[list[Proposal]], str]:
    """What is proposed, what was announced, and why it ended."""
    search, announced = announcing(wanted)
    proposals = []
    while (proposal := search.propose()) is not None:
        proposals.append(proposal)
        search.record(proposal, monotone(proposal))
    return proposals, announced, search.ending


@pytest.mark.parametrize("wanted", [1, 3])
def test_it_proposes_what_it_proposes_in_silence(wanted: int) -> None:
    proposals, announced, ending = run(wanted)
    in_silence, nothing, same_ending = run(0)
    assert (proposals, ending, nothing) == (in_silence, same_ending, [])
    # What is proposed at once, and again with what is likely to follow.
    assert announced[::2] == [[proposal] for proposal in proposals]
    for proposal, told in zip(proposals, announced[1::2], strict=True):
        assert told[0] == proposal
        assert len(told) == len(set(told)) <= wanted + 1


def test_what_is_foretold_is_followed() -> None:
    search, announced = announcing(2)
    foretold: Proposal | None = None
    hits = []
    before = 0
    while (proposal := search.propose()) is not None:
        if foretold is not None:
            hits.append(foretold == proposal)
        # Announced by itself it would drop what was foretold to follow it.
        assert len(announced) - before == (2 if foretold is None else 1)
        before = len(announced)
        search.foretell(monotone(proposal))
        foretold = announced[-1][0] if len(announced) > before else None
        before = len(announced)
        search.record(proposal, monotone(proposal))
    assert len(hits) >= 5
    assert all(hits)


def test_nothing_is_foretold_of_what_was_not_proposed() -> None:
    search, announced = announcing(2)
    proposal = search.propose()
    assert proposal is not None
    search.record(proposal, monotone(proposal))
    before = len(announced)
    search.foretell(monotone(proposal))
    search.propose()
    search.end()
    search.foretell(monotone(proposal))
    assert announced[before + 2 :] == [[]]


def test_most_of_what_follows_was_announced() -> None:
    proposals, announced, _ = run(3)
    hits = [proposal in told for proposal, told in zip(proposals[1:], announced[1::2], strict=False)]
    assert len(hits) >= 5
    # The first step off the path rests on what is asked for only then.
    assert sum(hits) >= len(hits) - 2
