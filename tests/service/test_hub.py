"""The hub, fed by hand: who gets what, and when a keyframe is asked for."""

from __future__ import annotations

from collections import Counter

from edge.core.access_unit import AccessUnit
from edge.core.lane import Lane
from edge.streaming.hub import Hub

FRAME_NS = 33_333_333


class LaneSender:
    """A sender that is only a lane; nobody takes from it unless a test does."""

    def __init__(self) -> None:
        self.lane: Lane[int] = Lane(limit=4)

    @property
    def dropped(self) -> int:
        return self.lane.dropped

    def push(self, unit: AccessUnit, pts_90k: int) -> bool:
        return self.lane.push(pts_90k, keyframe=unit.keyframe)


class Camera:
    def __init__(self) -> None:
        self.now_s = 0.0
        self.asked: list[float] = []
        self.counters: Counter[str] = Counter()
        self.hub = Hub(lambda: self.asked.append(self.now_s), lambda: self.now_s, self.counters)
        self._frame = 0

    def picture(self, *, keyframe: bool = False) -> None:
        self._frame += 1
        self.now_s += FRAME_NS / 1e9
        self.hub.push(AccessUnit(b"\0\0\0\1\x65", 5_000_000_000 + self._frame * FRAME_NS, keyframe))


def test_every_viewer_starts_at_a_keyframe_that_was_asked_for_on_joining() -> None:
    camera, viewer = Camera(), LaneSender()
    camera.picture(keyframe=True)
    camera.hub.join(viewer)
    assert len(camera.asked) == 1
    camera.picture()
    assert viewer.lane.take() is None
    camera.picture(keyframe=True)
    camera.picture()
    assert (viewer.lane.take(), viewer.lane.take()) == (6000 - 1, 9000 - 1)


def test_joins_and_losses_within_half_a_second_cost_one_keyframe() -> None:
    camera, viewers = Camera(), [LaneSender() for _ in range(5)]
    for viewer in viewers:
        camera.hub.join(viewer)
    camera.hub.wish_keyframe()
    assert len(camera.asked) == 1
    camera.picture(keyframe=True)
    for _ in range(30):
        for viewer in viewers:
            viewer.lane.take()
        camera.picture()
    # The wishes were pending when the keyframe came, and it served them.
    assert len(camera.asked) == 1


def test_a_wish_right_after_a_keyframe_is_granted_when_the_interval_ends() -> None:
    camera, viewer = Camera(), LaneSender()
    camera.hub.join(viewer)
    camera.picture(keyframe=True)
    camera.hub.wish_keyframe()
    assert len(camera.asked) == 1
    for _ in range(16):
        viewer.lane.take()
        camera.picture()
    assert len(camera.asked) == 2
    assert camera.asked[1] - camera.asked[0] >= 0.5


def test_a_viewer_whose_lane_is_full_drops_alone() -> None:
    camera, slow, quick = Camera(), LaneSender(), LaneSender()
    camera.hub.join(slow)
    camera.hub.join(quick)
    camera.picture(keyframe=True)
    got = 0
    for _ in range(20):
        camera.picture()
        while quick.lane.take() is not None:
            got += 1
    assert got == 21
    assert quick.lane.dropped == 0
    assert slow.lane.dropped > 0
    camera.hub.leave(slow)
    assert camera.counters["units_dropped"] == slow.lane.dropped
    assert len(camera.asked) >= 2, "the slow viewer needs a keyframe to go on"


def test_an_access_unit_whose_clock_does_not_advance_is_dropped_and_counted() -> None:
    camera, viewer = Camera(), LaneSender()
    camera.hub.join(viewer)
    camera.picture(keyframe=True)
    camera.hub.push(AccessUnit(b"", 1, keyframe=False))
    assert len(viewer.lane) == 1
    assert camera.counters["units_out_of_order"] == 1
