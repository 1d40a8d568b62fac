"""Capture times that jump, repeat or stand still, corrected for RTP."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.core.capture_clock import CaptureClock, rtp_ticks

S = 1_000_000_000
FRAME_NS = S // 30
BEGIN_NS = 5_000 * S
AGE_NS = 30_000_000


def corrected(clock: CaptureClock, arrivals: list[tuple[int, int]]) -> list[int]:
    """The corrected times of (capture, arrival) pairs."""
    return [clock.correct(captured_ns, now_ns) for captured_ns, now_ns in arrivals]


def steady(count: int, begin_ns: int = BEGIN_NS) -> list[tuple[int, int]]:
    return [(begin_ns + at * FRAME_NS, begin_ns + at * FRAME_NS + AGE_NS) for at in range(count)]


times_ns = st.integers(0, 2**63 - 1) | st.integers(BEGIN_NS - 20 * S, BEGIN_NS + 20 * S) | st.just(0)


@given(st.lists(st.tuples(times_ns, st.integers(0, 3 * S)), min_size=1, max_size=40))
def test_timestamps_always_advance_and_stay_near_the_arrival(units: list[tuple[int, int]]) -> None:
    clock, now_ns, before_ns = CaptureClock(), BEGIN_NS, 0
    for captured_ns, elapsed_ns in units:
        now_ns += elapsed_ns
        time_ns = clock.correct(captured_ns, now_ns)
        assert rtp_ticks(time_ns) > rtp_ticks(before_ns)
        assert now_ns - 10 * S <= time_ns <= max(now_ns + S, before_ns + 11_112)
        before_ns = time_ns


@given(st.lists(st.tuples(st.integers(20_000, 100 * S), st.integers(0, S)), min_size=1, max_size=40))
def test_a_correct_clock_is_left_alone_through_pauses_and_delays(units: list[tuple[int, int]]) -> None:
    """`units`: the step of the capture clock and the delay until arrival, in ns."""
    clock, captured_ns, now_ns = CaptureClock(), BEGIN_NS, 0
    for step_ns, delay_ns in units:
        captured_ns += step_ns
        now_ns = max(now_ns, captured_ns + delay_ns)
        # A delay holds up what follows, too; what is still older than ten seconds would be dropped on the way.
        if now_ns - captured_ns <= 10 * S:
            assert clock.correct(captured_ns, now_ns) == captured_ns
    assert clock.jumps == 0


@given(
    st.integers(S + AGE_NS + 1, 2**40 * S) | st.integers(-BEGIN_NS, -S),
    st.integers(1, 200),
)
def test_after_a_jump_time_goes_on_smoothly(jump_ns: int, count: int) -> None:
    clock = CaptureClock()
    before = steady(10)
    after = [(captured_ns + jump_ns, now_ns) for captured_ns, now_ns in steady(count, BEGIN_NS + 10 * FRAME_NS)]
    times_ns = corrected(clock, before + after)
    assert clock.jumps == 1
    assert {later - earlier for earlier, later in itertools.pairwise(times_ns)} == {FRAME_NS}


@given(st.integers(S + AGE_NS + 1, 2**40 * S) | st.integers(-BEGIN_NS, -S))
def test_a_single_wrong_time_changes_no_other(jump_ns: int) -> None:
    arrivals = steady(20)
    wrong = list(arrivals)
    wrong[10] = (arrivals[10][0] + jump_ns, arrivals[10][1])
    assert corrected(CaptureClock(), wrong) == [captured_ns for captured_ns, _ in arrivals]


@given(st.integers(1, S))
def test_after_a_single_time_slightly_ahead_the_cameras_own_times_return(ahead_ns: int) -> None:
    arrivals = steady(120)
    arrivals[10] = (arrivals[10][0] + ahead_ns, arrivals[10][1])
    clock = CaptureClock()
    times_ns = corrected(clock, arrivals)
    assert clock.jumps <= 1
    assert not clock.corrected
    assert times_ns[90:] == [captured_ns for captured_ns, _ in arrivals[90:]]
    steps_ns = [later - earlier for earlier, later in itertools.pairwise(times_ns)]
    assert min(steps_ns) >= 11_112
    assert max(steps_ns) <= FRAME_NS + ahead_ns


@pytest.mark.parametrize("captured_ns", [0, BEGIN_NS])
def test_a_clock_that_stands_still_is_replaced_by_the_arrival_clock(captured_ns: int) -> None:
    clock = CaptureClock()
    times_ns = corrected(clock, [(captured_ns, now_ns) for _, now_ns in steady(300)])
    assert {later - earlier for earlier, later in itertools.pairwise(times_ns)} == {FRAME_NS}
    assert clock.jumps >= 299


def test_a_repeated_time_is_sent_with_a_time_of_its_own() -> None:
    arrivals = steady(20)
    arrivals[10] = (arrivals[9][0], arrivals[10][1])
    clock = CaptureClock()
    assert corrected(clock, arrivals) == [captured_ns for captured_ns, _ in steady(20)]
    assert clock.jumps == 1


def test_a_pause_on_a_clock_that_has_jumped_is_kept() -> None:
    clock = CaptureClock()
    corrected(clock, [(captured_ns - 100 * S, now_ns) for captured_ns, now_ns in steady(10)])
    last_ns, first_ns = corrected(
        clock,
        [
            (BEGIN_NS + 10 * FRAME_NS - 100 * S, BEGIN_NS + 10 * FRAME_NS + AGE_NS),
            (BEGIN_NS + 60 * S - 100 * S, BEGIN_NS + 60 * S + AGE_NS),
        ],
    )
    assert first_ns - last_ns == 60 * S - 10 * FRAME_NS
    assert clock.jumps == 1
