"""The rule that limits how often a repeated event is logged."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from edge.core.log_limit import LogLimit

FIRST_S, CAP_S = 10.0, 80.0
FAILURES = st.lists(st.tuples(st.floats(0, 200), st.sampled_from("abcdef")), max_size=200)


@given(FAILURES)
def test_the_first_is_logged_at_once_and_every_failure_is_counted_once(failures: list[tuple[float, str]]) -> None:
    log_limit = LogLimit(FIRST_S, CAP_S)
    happened: Counter[str] = Counter()
    logged: Counter[str] = Counter()
    logged_s: dict[str, float] = {}
    now_s = 0.0
    for wait_s, key in failures:
        now_s += wait_s
        happened[key] += 1
        count = log_limit.due(now_s, key)
        if key not in logged_s:
            assert count == 1
        elif now_s - logged_s[key] < FIRST_S:
            assert count is None, "not twice within the first distance"
        elif now_s - logged_s[key] >= CAP_S:
            assert count is not None, "never silent for longer than the cap"
        if count is not None:
            logged_s[key] = now_s
            logged[key] += count
            # Those that were not logged are counted by the next line.
            assert logged[key] == happened[key]
        assert logged[key] <= happened[key]


@given(st.floats(0.1, 9))
def test_a_steady_failure_is_logged_at_doubling_intervals_up_to_the_cap(every_s: float) -> None:
    log_limit = LogLimit(FIRST_S, CAP_S)
    logged_s = [number * every_s for number in range(int(1000 / every_s)) if log_limit.due(number * every_s, "x")]
    distances_s = [later - earlier for earlier, later in pairwise(logged_s)]
    for distance_s, expected_s in zip(distances_s, [10, 20, 40, *[80] * len(distances_s)], strict=False):
        assert expected_s <= distance_s + 1e-6 <= expected_s + every_s + 1e-3


def test_a_failure_after_a_quiet_time_starts_with_the_first_distance_again() -> None:
    log_limit = LogLimit(FIRST_S, CAP_S)
    assert [log_limit.due(now_s, "x") for now_s in (0, 5, 10, 29, 30)] == [1, None, 2, None, 2]
    assert log_limit.due(1000, "x") == 1
    assert [log_limit.due(now_s, "x") for now_s in (1005, 1010)] == [None, 2]


@given(st.lists(st.integers(0, 9), max_size=100), st.integers(1, 4))
def test_no_more_keys_are_remembered_than_the_limit(keys: list[int], limit: int) -> None:
    log_limit = LogLimit(FIRST_S, CAP_S, limit)
    for number, key in enumerate(keys):
        known = list(dict.fromkeys(reversed(keys[:number])))[:limit]
        assert (log_limit.due(0, key) is None) == (key in known)
