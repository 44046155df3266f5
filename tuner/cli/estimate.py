"""How much longer a search takes, from what was measured so far, and what that rests on. Numbers in, words out."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from tuner.progress import SearchBegan

# Fewer images say too little of how long one takes: the first waits for what is made on first use.
FEWEST_SEEN = 5


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a search is. Times are wall time in seconds.

    full_s: of the trials of this session that were evaluated in full. ended: trials of all sessions.
    trial_s: since the running trial began, None between two. seen, seen_s: images it has seen, and in what time.
    search_s: since the search began in this session.
    """

    full_s: Sequence[float]
    ended: int
    trial_s: float | None
    seen: int
    seen_s: float
    search_s: float


def time_left(search: SearchBegan, now: Standing) -> list[str]:
    """What is left of the running trial and of the search, a line each, with what it rests on; or that it is unknown.

    The stages after the search, which time and write the result, come on top.
    """
    each_s, source = (
        (median(now.full_s), "the trials so far") if now.full_s else (search.evaluation_s, "the float model's time")
    )
    trial_left_s, rests_on = 0.0, ""
    if now.trial_s is not None:
        trial_left_s, rests_on = max(0.0, each_s - now.trial_s), source
        if search.images and now.seen >= FEWEST_SEEN:
            trial_left_s = (search.images - now.seen) * now.seen_s / now.seen
            rests_on = "its images so far"
    trials_left = max(0, search.most_trials - now.ended - (now.trial_s is not None))
    by_trials_s = trial_left_s + trials_left * each_s
    told = []
    if now.trial_s is not None:
        told.append(
            f"this trial: about {duration(trial_left_s)} left, by {rests_on}" if each_s else "this trial: unknown"
        )
    most = f"{_trials(trials_left)}, by {source}"
    by_time_s = max(trial_left_s, search.timeout_s - search.earlier_s - now.search_s)
    if search.timeout_s and not (each_s and by_trials_s < by_time_s):
        told.append(f"search: at most {duration(by_time_s)} left, by its time limit")
    elif search.timeout_s:
        told.append(f"search: at most {duration(by_trials_s)} left: {most}")
    else:
        known = f"; at most {duration(by_trials_s)}: {most}" if each_s else ""
        told.append(f"search: unknown, it ends with a plan that passes{known}")
    return told


def duration(seconds: float) -> str:
    """A time in the two units that matter: "8 s", "3 min 20 s", "2 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _trials(count: int) -> str:
    return f"{count} more trial{'' if count == 1 else 's'}"
