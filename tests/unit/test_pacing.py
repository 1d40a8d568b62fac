"""How fast packets leave: on numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.core.pacing import BURST_BYTES, EncodeRate, Pacer, PathEstimate

FRAME_S = 1 / 30
PACKET = 1200


def leaves(pacer: Pacer, size: int, now_s: float) -> tuple[list[float], float]:
    """When each packet of a picture of this size leaves, and the time after it."""
    pacer.begin(size, now_s)
    times = []
    for _ in range(-(-size // PACKET)):
        while pacer.room_bytes(now_s) <= 0:
            wait_s = pacer.wait_s()
            assert 0 <= wait_s < 1
            now_s += max(wait_s, 1e-6)
        pacer.sent(PACKET)
        times.append(now_s)
    return times, now_s


def told(estimate: PathEstimate, estimates: list[int], *, begin_s: float = 0.0, sent_bps: int = 4_000_000) -> float:
    """Five of these a second, while so much is sent of an encode of 4 Mbit/s; the time after them."""
    now_s = begin_s
    for each in estimates:
        now_s += 0.2
        estimate.told(each, sent_bytes=int(now_s * sent_bps / 8), encode_bps=4_000_000, now_s=now_s)
    return now_s


def test_an_estimate_is_heeded_from_when_it_fell_to_what_was_sent() -> None:
    estimate = PathEstimate()
    now_s = told(estimate, [4_400_000] * 20)
    assert estimate.bps(now_s) is None, "a receiver cannot know of more than it gets"
    now_s = told(estimate, [2_000_000], begin_s=now_s)
    assert estimate.bps(now_s) == 2_000_000
    now_s = told(estimate, [2_100_000, 2_200_000], begin_s=now_s)
    assert estimate.bps(now_s) == 2_200_000


def test_one_that_falls_and_is_still_far_over_what_is_sent_is_not_heeded() -> None:
    estimate = PathEstimate()
    now_s = told(estimate, [9_000_000] * 20)
    assert estimate.bps(told(estimate, [7_000_000], begin_s=now_s)) is None


def test_an_estimate_that_falls_no_more_is_let_go_and_later_each_time_that_this_was_too_early() -> None:
    estimate = PathEstimate()
    now_s, held_s = told(estimate, [4_400_000] * 20), []
    for _ in range(5):
        now_s = told(estimate, [2_400_000, 2_000_000], begin_s=now_s)
        fell_s = now_s
        while estimate.bps(now_s) is not None:
            now_s = told(estimate, [2_000_000], begin_s=now_s)
        held_s.append(round(now_s - fell_s))
    assert held_s == [5, 10, 20, 40, 40]


def test_one_that_is_ample_is_let_go_at_once_and_so_is_one_that_is_not_told_again() -> None:
    estimate = PathEstimate()
    now_s = told(estimate, [4_400_000, 2_000_000])
    assert estimate.bps(told(estimate, [5_000_000], begin_s=now_s)) is None
    now_s = told(estimate, [2_000_000], begin_s=now_s + 1)
    assert estimate.bps(now_s + 2) == 2_000_000
    assert estimate.bps(now_s + 4) is None


def test_the_rate_of_an_encode_is_told_of_its_pictures_and_not_of_a_pause() -> None:
    rate, now_s = EncodeRate(), 0.0
    for _ in range(100):
        now_s += FRAME_S
        rate.made(16_000, now_s)
    assert rate.bps == pytest.approx(16_000 * 8 * 30, rel=0.05)
    rate.made(16_000, now_s + 60)
    assert rate.bps == pytest.approx(16_000 * 8 * 30, rel=0.05)


def test_a_new_estimate_holds_for_the_picture_under_way() -> None:
    pacer = Pacer(FRAME_S)
    pacer.path(300_000)
    pacer.begin(100_000, 0.0)
    pacer.sent(5_000)
    slow_s = pacer.wait_s()
    pacer.path(None)
    assert pacer.wait_s() < slow_s / 3


def test_on_a_narrow_path_a_chunk_is_a_few_packets() -> None:
    """Not one timer and one system call for each packet."""
    pacer = Pacer(FRAME_S)
    pacer.path(1_000_000)
    times, _ = leaves(pacer, 120_000, 10.0)
    assert len(set(times)) <= len(times) / 2


def test_what_is_sent_again_has_its_place_in_the_pace() -> None:
    pacer = Pacer(FRAME_S)
    pacer.path(1_000_000)
    pacer.begin(2_000, 10.0)
    pacer.sent(30_000)
    assert pacer.room_bytes(10.05) <= 0
    assert pacer.room_bytes(10.2) > 0


def test_an_ordinary_picture_leaves_at_once() -> None:
    pacer = Pacer(FRAME_S)
    for number in range(30):
        times, _ = leaves(pacer, 16_000, number * FRAME_S)
        assert times[0] == times[-1] == number * FRAME_S


def test_a_large_keyframe_leaves_in_chunks_within_its_frames_time() -> None:
    times, _ = leaves(Pacer(FRAME_S), 120_000, 0.0)
    assert times[-1] <= FRAME_S
    assert times[-1] > FRAME_S / 4
    in_first_ms = sum(at < 0.001 for at in times) * PACKET
    assert in_first_ms <= BURST_BYTES + PACKET


@pytest.mark.parametrize("estimate_bps", [400_000, 1_000_000, 3_000_000])
def test_a_narrow_path_is_given_about_twice_what_it_carries(estimate_bps: int) -> None:
    pacer = Pacer(FRAME_S)
    pacer.path(estimate_bps)
    _, now_s = leaves(pacer, 30_000, 0.0)
    times, _ = leaves(pacer, 300_000, now_s + 10)
    rate_bps = (len(times) - 1) * PACKET * 8 / (times[-1] - times[0])
    assert 1.5 * estimate_bps < rate_bps < 3 * estimate_bps


def test_a_small_picture_on_a_narrow_path_has_a_small_burst() -> None:
    pacer = Pacer(FRAME_S)
    pacer.path(500_000)
    leaves(pacer, 1000, 0.0)
    times, _ = leaves(pacer, 24_000, 10.0)
    assert sum(at == times[0] for at in times) * PACKET <= 2 * 500_000 / 8 * FRAME_S + PACKET


def test_an_estimate_that_is_ample_changes_nothing_that_a_viewer_sees() -> None:
    pacer = Pacer(FRAME_S)
    pacer.path(50_000_000)
    times, _ = leaves(pacer, 120_000, 0.0)
    assert times[-1] <= FRAME_S


@given(
    st.lists(st.tuples(st.integers(1, 300_000), st.floats(0, 1)), min_size=1, max_size=20),
    st.none() | st.integers(0, 100_000_000),
)
def test_every_picture_leaves_some_day_and_never_before_its_time(
    pictures: list[tuple[int, float]], estimate_bps: int | None
) -> None:
    pacer = Pacer(FRAME_S)
    pacer.path(estimate_bps)
    now_s = 0.0
    for size, later_s in pictures:
        times, now_s = leaves(pacer, size, now_s + later_s)
        assert times == sorted(times)
