"""A search that says, each time that it proposes, what it will probably propose next."""

from collections.abc import Callable, Sequence

from tuner.search.ahead import Remembered, likely_next
from tuner.search.space import Foresight, Outcome, Search
from tuner.trial import Proposal

# A search that is played ahead may ask for the costs of so many further plans for each that is wanted: it bisects.
COSTS_EACH = 4


class Announced:
    """Proposes what the search proposes, and announces that with what is likely to follow, the likeliest first.

    make: a search with a foresight, a new one each time, all alike. wanted: how many plans after the proposed one are
    of use just now. announce: is told them.
    """

    def __init__(
        self,
        make: Callable[[Foresight], Search],
        foresight: Foresight,
        *,
        wanted: Callable[[], int],
        announce: Callable[[Sequence[Proposal]], None],
    ) -> None:
        self._make, self._wanted, self._announce = make, wanted, announce
        self._foresight = Remembered(foresight)
        self._search = make(self._foresight.for_search)
        self._recorded: list[tuple[Proposal, Outcome]] = []
        self._proposed: Proposal | None = None
        # What was announced as the next one, when that was all but sure.
        self._foretold: Proposal | None = None

    def propose(self) -> Proposal | None:
        """The next plan to try; see `Search`."""
        self._proposed = proposal = self._search.propose()
        foretold, self._foretold = self._foretold, None
        wanted = self._wanted()
        if wanted and proposal is not None:
            if proposal != foretold:
                # At once, since to play ahead takes a while.
                self._announce([proposal])
            foresight = self._foresight.for_ahead(COSTS_EACH * wanted)
            following = likely_next(lambda: self._make(foresight), self._recorded, wanted + 1)
            self._announce([proposal, *(one for one in following if one != proposal)])
        return proposal

    def foretell(self, outcome: Outcome) -> None:
        """What will all but surely be recorded of the proposed plan: announce what follows then."""
        wanted = self._wanted()
        if wanted and self._proposed is not None:
            # Without any measurement: whoever foretells has more to do.
            foresight = self._foresight.for_ahead(0)
            known = [*self._recorded, (self._proposed, outcome)]
            following = likely_next(lambda: self._make(foresight), known, wanted)
            if following:
                self._foretold = following[0]
                self._announce(following)

    def end(self) -> None:
        """Announce that nothing follows."""
        self._proposed = None
        self._announce([])

    def record(self, proposal: Proposal, outcome: Outcome) -> None:
        """Say how a proposal went; see `Search`."""
        self._proposed = None
        self._recorded.append((proposal, outcome))
        self._search.record(proposal, outcome)

    @property
    def ending(self) -> str:
        """Why nothing is proposed any more, in words."""
        return self._search.ending
