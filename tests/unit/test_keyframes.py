"""How often a viewer may request keyframes, and how large they may be."""

from __future__ import annotations

import itertools

import pytest

from edge.core.keyframes import KeyframeQp, ViewerRequests


def granted(requests: ViewerRequests, begin_s: float, end_s: float, *, sole: bool = False) -> list[float]:
    """The times at which requests at 30 Hz are granted."""
    times = [begin_s + number / 30 for number in range(round((end_s - begin_s) * 30))]
    return [at for at in times if requests.request(at, sole=sole)]


def test_repeated_requests_back_off() -> None:
    times = granted(ViewerRequests(), 0, 20)
    gaps = [round(later - earlier, 1) for earlier, later in itertools.pairwise(times)]
    assert times[0] == 0
    assert gaps[:4] == [0.5, 1.0, 2.0, 4.0]
    assert set(gaps[3:]) == {4.0}


def test_the_sole_viewer_gets_a_keyframe_every_second() -> None:
    times = granted(ViewerRequests(), 0, 20, sole=True)
    assert {round(later - earlier, 1) for earlier, later in itertools.pairwise(times)} == {0.5, 1.0}


def test_the_wait_shrinks_when_the_other_viewers_leave() -> None:
    requests = ViewerRequests()
    last_s = granted(requests, 0, 8)[-1]
    assert granted(requests, last_s + 0.1, last_s + 3, sole=True)[0] == pytest.approx(last_s + 1, abs=0.1)


def test_after_a_quiet_time_a_request_is_granted_at_once() -> None:
    requests = ViewerRequests()
    granted(requests, 0, 5)
    assert granted(requests, 30, 31) == [pytest.approx(30), pytest.approx(30.5, abs=0.05)]


def test_an_early_request_stays_pending_until_a_keyframe_is_delivered() -> None:
    requests = ViewerRequests()
    assert requests.request(0.0, sole=False)
    assert not requests.request(0.1, sole=False)
    assert requests.pending
    assert not requests.request(0.4, sole=False)
    assert requests.request(0.6, sole=False)
    assert not requests.pending
    assert not requests.request(0.7, sole=False)
    requests.delivered()
    assert not requests.pending


def test_a_keyframe_over_the_limit_raises_the_qp() -> None:
    least = KeyframeQp()
    assert not least.update(100_000, 2_000_000)
    assert least.update(250_000, 2_000_000)
    assert least.qp == 26 + 6
    assert least.update(160_000, 2_000_000)
    assert least.qp == 32 + 3
    assert not least.update(100_000, 2_000_000)
    for _ in range(20):
        least.update(512_000, 100_000)
    assert least.qp == 40


def test_small_keyframes_lower_the_qp_again() -> None:
    least = KeyframeQp()
    least.update(250_000, 2_000_000)
    seen = []
    while least.update(20_000, 2_000_000):
        seen.append(least.qp)
    assert seen == [30, 28, 26, 24, 22, 20], "not below the minimum"
