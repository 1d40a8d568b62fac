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


class Path:
    """A viewer that wants so much, tells an estimate five times a second, and is asked what is heeded."""

    def __init__(self, wanted_bps: int) -> None:
        self.estimate, self.rate = PathEstimate(), EncodeRate()
        self.wanted_bps = wanted_bps
        self.frame = 0

    def run(self, seconds: float, estimate_bps: int | None) -> list[float | None]:
        heeded = []
        for _ in range(round(seconds * 30)):
            self.frame += 1
            now_s = self.frame * FRAME_S
            self.rate.made(self.wanted_bps // 240, now_s)
            if estimate_bps is not None and self.frame % 6 == 0:
                self.estimate.told(estimate_bps, self.rate.bps, now_s)
            heeded.append(self.estimate.bps(now_s))
        return heeded


def test_an_estimate_is_heeded_where_it_is_below_what_is_wanted_and_as_long_as_that() -> None:
    path = Path(4_000_000)
    assert path.run(5, 400_000)[-1] == 400_000
    # However long the viewer gets nothing, while it waits for a keyframe: what it wants is the same.
    assert set(path.run(20, 400_000)) == {400_000}
    assert path.run(1, 900_000)[-1] == 900_000
    assert path.run(3, 6_000_000)[-1] is None


def test_a_still_scene_is_not_taken_for_a_narrow_path() -> None:
    """Little is sent, so little is estimated, on the best of paths."""
    assert set(Path(200_000).run(10, 300_000)) == {None}


def test_one_low_estimate_is_not_heeded() -> None:
    path = Path(4_000_000)
    path.run(5, 6_000_000)
    assert set(path.run(0.4, 400_000) + path.run(5, 6_000_000)) == {None}


def test_an_estimate_that_is_not_told_again_is_forgotten() -> None:
    path = Path(4_000_000)
    assert path.run(5, 400_000)[-1] == 400_000
    silent = path.run(10, None)
    assert silent[60] == 400_000
    assert silent[-1] is None


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
