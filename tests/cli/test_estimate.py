"""What is left of a search, in words."""

from dataclasses import replace

import pytest

from tuner.cli.estimate import Standing, duration, time_left
from tuner.progress import SearchBegan

SEARCH = SearchBegan(0.01, True, 100, 10, 0.0, 0, 0.0, evaluation_s=20.0)
NOW = Standing(full_s=(), ended=0, trial_s=None, seen=0, seen_s=0.0, search_s=0.0)


@pytest.mark.parametrize(
    ("search", "now", "expected"),
    [
        # Between two trials: ten of twenty seconds each.
        (
            {},
            {},
            ["search: unknown, it ends with a plan that passes; at most 3 min 20 s: 10 more trials, by the float"],
        ),
        ({}, {"trial_s": 5.0}, ["this trial: about 15 s left, by the float model's time", "3 min 15 s: 9 more trials"]),
        # The images tell more than the float model: 25 of 100 in 2 s.
        (
            {},
            {"trial_s": 3.0, "seen": 25, "seen_s": 2.0},
            ["about 6 s left, by its images so far", "at most 3 min 6 s"],
        ),
        ({}, {"trial_s": 3.0, "seen": 4, "seen_s": 2.0}, ["about 17 s left, by the float model's time", "unknown"]),
        # Trials tell more than either; their median.
        ({}, {"full_s": (4.0, 8.0, 90.0), "ended": 3}, ["at most 56 s: 7 more trials, by the trials so far"]),
        ({}, {"trial_s": 9.0, "full_s": (6.0,), "ended": 9}, ["about 0 s left", "at most 0 s: 0 more trials"]),
        # A limit of time, of which an earlier session took a part.
        ({"timeout_s": 60.0, "earlier_s": 10.0}, {"search_s": 20.0}, ["search: at most 30 s left, by its time limit"]),
        ({"timeout_s": 900.0}, {}, ["search: at most 3 min 20 s left: 10 more trials, by the float model's time"]),
        ({"timeout_s": 60.0}, {"search_s": 59.0, "trial_s": 2.0}, ["about 18 s left", "search: at most 18 s left"]),
        # Nothing was measured.
        (
            {"evaluation_s": 0.0},
            {"trial_s": 1.0},
            ["this trial: unknown", "search: unknown, it ends with a plan that pas"],
        ),
        ({"evaluation_s": 0.0, "timeout_s": 60.0}, {}, ["search: at most 1 min 0 s left, by its time limit"]),
    ],
)
def test_time_left(search: dict[str, float], now: dict[str, float], expected: list[str]) -> None:
    told = time_left(replace(SEARCH, **search), replace(NOW, **now))  # type: ignore[arg-type]
    assert len(told) == len(expected)
    for line, part in zip(told, expected, strict=True):
        assert part in line


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3599.7, "1 h 0 min"),
        (7500, "2 h 5 min"),
    ],
)
def test_duration(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected
