"""How fast packets are sent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.core.pacing import BURST_BYTES, EncodeRate, Pacer, PathEstimate

FRAME_S = 1 / 30
PACKET = 1200


def send_times(pacer: Pacer, size: int, now_s: float) -> tuple[list[float], float]:
    """When each packet of a picture of this size is sent, and the time afterwards."""
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


def report(estimate: PathEstimate, estimates: list[int], *, begin_s: float = 0.0, sent_bps: int = 4_000_000) -> float:
    """Report five estimates per second at this sent rate and an encode of 4 Mbit/s. Returns the time afterwards."""
    now_s = begin_s
    for each in estimates:
        now_s += 0.2
        estimate.update(each, sent_bytes=int(now_s * sent_bps / 8), encode_bps=4_000_000, now_s=now_s)
    return now_s


def test_an_estimate_is_used_once_it_falls_to_the_sent_rate() -> None:
    estimate = PathEstimate()
    now_s = report(estimate, [4_400_000] * 20)
    assert estimate.bps(now_s) is None, "a receiver cannot know of more than it receives"
    now_s = report(estimate, [2_000_000], begin_s=now_s)
    assert estimate.bps(now_s) == 2_000_000
    now_s = report(estimate, [2_100_000, 2_200_000], begin_s=now_s)
    assert estimate.bps(now_s) == 2_200_000


def test_an_estimate_far_above_the_sent_rate_is_not_used() -> None:
    estimate = PathEstimate()
    now_s = report(estimate, [9_000_000] * 20)
    assert estimate.bps(report(estimate, [7_000_000], begin_s=now_s)) is None


def test_a_steady_estimate_is_dropped_and_later_each_time_it_was_too_early() -> None:
    estimate = PathEstimate()
    now_s, held_s = report(estimate, [4_400_000] * 20), []
    for _ in range(5):
        now_s = report(estimate, [2_400_000, 2_000_000], begin_s=now_s)
        fell_s = now_s
        while estimate.bps(now_s) is not None:
            now_s = report(estimate, [2_000_000], begin_s=now_s)
        held_s.append(round(now_s - fell_s))
    assert held_s == [5, 10, 20, 40, 40]


def test_an_ample_estimate_is_dropped_at_once_and_others_expire() -> None:
    estimate = PathEstimate()
    now_s = report(estimate, [4_400_000, 2_000_000])
    assert estimate.bps(report(estimate, [5_000_000], begin_s=now_s)) is None
    now_s = report(estimate, [2_000_000], begin_s=now_s + 1)
    assert estimate.bps(now_s + 2) == 2_000_000
    assert estimate.bps(now_s + 4) is None


def test_the_encode_rate_ignores_pauses() -> None:
    rate, now_s = EncodeRate(), 0.0
    for _ in range(100):
        now_s += FRAME_S
        rate.add(16_000, now_s)
    assert rate.bps == pytest.approx(16_000 * 8 * 30, rel=0.05)
    rate.add(16_000, now_s + 60)
    assert rate.bps == pytest.approx(16_000 * 8 * 30, rel=0.05)


def test_a_new_estimate_applies_to_the_current_picture() -> None:
    pacer = Pacer(FRAME_S)
    pacer.set_path(300_000)
    pacer.begin(100_000, 0.0)
    pacer.sent(5_000)
    slow_s = pacer.wait_s()
    pacer.set_path(None)
    assert pacer.wait_s() < slow_s / 3


def test_on_a_narrow_path_a_chunk_has_several_packets() -> None:
    """One timer and one system call per packet would be too many."""
    pacer = Pacer(FRAME_S)
    pacer.set_path(1_000_000)
    times, _ = send_times(pacer, 120_000, 10.0)
    assert len(set(times)) <= len(times) / 2


def test_retransmissions_count_against_the_pace() -> None:
    pacer = Pacer(FRAME_S)
    pacer.set_path(1_000_000)
    pacer.begin(2_000, 10.0)
    pacer.sent(30_000)
    assert pacer.room_bytes(10.05) <= 0
    assert pacer.room_bytes(10.2) > 0


def test_an_ordinary_picture_is_sent_at_once() -> None:
    pacer = Pacer(FRAME_S)
    for number in range(30):
        times, _ = send_times(pacer, 16_000, number * FRAME_S)
        assert times[0] == times[-1] == number * FRAME_S


def test_a_large_keyframe_is_sent_in_chunks_within_its_frame_time() -> None:
    times, _ = send_times(Pacer(FRAME_S), 120_000, 0.0)
    assert times[-1] <= FRAME_S
    assert times[-1] > FRAME_S / 4
    in_first_ms = sum(at < 0.001 for at in times) * PACKET
    assert in_first_ms <= BURST_BYTES + PACKET


@pytest.mark.parametrize("estimate_bps", [400_000, 1_000_000, 3_000_000])
def test_a_narrow_path_gets_about_twice_its_estimate(estimate_bps: int) -> None:
    pacer = Pacer(FRAME_S)
    pacer.set_path(estimate_bps)
    _, now_s = send_times(pacer, 30_000, 0.0)
    times, _ = send_times(pacer, 300_000, now_s + 10)
    rate_bps = (len(times) - 1) * PACKET * 8 / (times[-1] - times[0])
    assert 1.5 * estimate_bps < rate_bps < 3 * estimate_bps


def test_a_narrow_path_gets_small_bursts() -> None:
    pacer = Pacer(FRAME_S)
    pacer.set_path(500_000)
    send_times(pacer, 1000, 0.0)
    times, _ = send_times(pacer, 24_000, 10.0)
    assert sum(at == times[0] for at in times) * PACKET <= 2 * 500_000 / 8 * FRAME_S + PACKET


def test_an_ample_estimate_does_not_delay_pictures() -> None:
    pacer = Pacer(FRAME_S)
    pacer.set_path(50_000_000)
    times, _ = send_times(pacer, 120_000, 0.0)
    assert times[-1] <= FRAME_S


@given(
    st.lists(st.tuples(st.integers(1, 300_000), st.floats(0, 1)), min_size=1, max_size=20),
    st.none() | st.integers(0, 100_000_000),
)
def test_every_picture_is_sent_and_times_never_go_back(
    pictures: list[tuple[int, float]], estimate_bps: int | None
) -> None:
    pacer = Pacer(FRAME_S)
    pacer.set_path(estimate_bps)
    now_s = 0.0
    for size, later_s in pictures:
        times, now_s = send_times(pacer, size, now_s + later_s)
        assert times == sorted(times)
