"""Who may have a keyframe made, and how large one may be."""

from __future__ import annotations

import itertools

import pytest

from edge.core.keyframes import KeyframeQp, ViewerWishes


def granted(wishes: ViewerWishes, begin_s: float, end_s: float, *, alone: bool = False) -> list[float]:
    """When a viewer that wishes at 30 Hz is heard."""
    times = [begin_s + number / 30 for number in range(round((end_s - begin_s) * 30))]
    return [at for at in times if wishes.wish(at, alone=alone)]


def test_a_viewer_that_loses_for_ever_is_heard_ever_more_seldom() -> None:
    times = granted(ViewerWishes(), 0, 20)
    gaps = [round(later - earlier, 1) for earlier, later in itertools.pairwise(times)]
    assert times[0] == 0
    assert gaps[:4] == [0.5, 1.0, 2.0, 4.0]
    assert set(gaps[3:]) == {4.0}


def test_where_there_are_no_others_it_is_heard_every_second() -> None:
    times = granted(ViewerWishes(), 0, 20, alone=True)
    assert {round(later - earlier, 1) for earlier, later in itertools.pairwise(times)} == {0.5, 1.0}


def test_once_the_others_left_it_waits_no_longer_for_their_sake() -> None:
    wishes = ViewerWishes()
    last_s = granted(wishes, 0, 8)[-1]
    assert granted(wishes, last_s + 0.1, last_s + 3, alone=True)[0] == pytest.approx(last_s + 1, abs=0.1)


def test_one_that_was_well_for_a_while_is_heard_at_once_again() -> None:
    wishes = ViewerWishes()
    granted(wishes, 0, 5)
    assert granted(wishes, 30, 31) == [pytest.approx(30), pytest.approx(30.5, abs=0.05)]


def test_a_wish_that_came_too_early_is_remembered_until_a_keyframe_came() -> None:
    wishes = ViewerWishes()
    assert wishes.wish(0.0, alone=False)
    assert not wishes.wish(0.1, alone=False)
    assert wishes.pending
    assert not wishes.wish(0.4, alone=False)
    assert wishes.wish(0.6, alone=False)
    assert not wishes.pending
    assert not wishes.wish(0.7, alone=False)
    wishes.came()
    assert not wishes.pending


def test_a_keyframe_that_is_too_large_makes_the_next_ones_coarser() -> None:
    least = KeyframeQp()
    assert not least.came(100_000, 2_000_000)
    assert least.came(250_000, 2_000_000)
    assert least.qp == 26 + 6
    assert least.came(160_000, 2_000_000)
    assert least.qp == 32 + 3
    assert not least.came(100_000, 2_000_000)
    for _ in range(20):
        least.came(512_000, 100_000)
    assert least.qp == 40


def test_small_keyframes_make_all_pictures_finer_again() -> None:
    least = KeyframeQp()
    least.came(250_000, 2_000_000)
    seen = []
    while least.came(20_000, 2_000_000):
        seen.append(least.qp)
    assert seen == [30, 28, 26, 24, 22, 20], "never finer than the driver's own"
