"""The hub, fed by hand: who gets what, and when a keyframe is asked for."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from edge.core.access_unit import AccessUnit, Quality
from edge.core.lane import Lane
from edge.errors import CameraUnavailable, Rejected
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
        self.asked_sd: list[float] = []
        self.sd = False
        self.hub = Hub(self, lambda: self.now_s, self.counters, dict.fromkeys(Quality, 1 / 30))
        self._frame = 0

    def request_keyframe(self, quality: Quality) -> None:
        (self.asked if quality is Quality.HD else self.asked_sd).append(self.now_s)

    def encode_sd(self, *, on: bool) -> None:
        self.sd = on

    def picture(self, *, keyframe: bool = False, sd: bool | None = None) -> None:
        """One picture in HD; and in SD, a keyframe or not, where `sd` is given."""
        self._frame += 1
        self.now_s += FRAME_NS / 1e9
        at_ns = 5_000_000_000 + self._frame * FRAME_NS
        self.hub.push(AccessUnit(b"\0\0\0\1\x65", at_ns, keyframe))
        if sd is not None:
            self.hub.push(AccessUnit(b"\0\0\0\1\x65", at_ns, sd, Quality.SD))


def test_every_viewer_starts_at_a_keyframe_that_was_asked_for_on_joining() -> None:
    camera, viewer = Camera(), LaneSender()
    camera.picture(keyframe=True)
    camera.hub.join(viewer, Quality.HD)
    assert len(camera.asked) == 1
    camera.picture()
    assert viewer.lane.take() is None
    camera.picture(keyframe=True)
    camera.picture()
    assert (viewer.lane.take(), viewer.lane.take()) == (6000 - 1, 9000 - 1)


def test_joins_and_losses_within_half_a_second_cost_one_keyframe() -> None:
    camera, viewers = Camera(), [LaneSender() for _ in range(5)]
    for viewer in viewers:
        camera.hub.join(viewer, Quality.HD)
    camera.hub.wish_keyframe(viewers[0])
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
    camera.hub.join(viewer, Quality.HD)
    camera.picture(keyframe=True)
    camera.hub.wish_keyframe(viewer)
    assert len(camera.asked) == 1
    for _ in range(16):
        viewer.lane.take()
        camera.picture()
    assert len(camera.asked) == 2
    assert camera.asked[1] - camera.asked[0] >= 0.5


def test_a_viewer_whose_lane_is_full_drops_alone() -> None:
    camera, slow, quick = Camera(), LaneSender(), LaneSender()
    camera.hub.join(slow, Quality.HD)
    camera.hub.join(quick, Quality.HD)
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
    camera.hub.join(viewer, Quality.HD)
    camera.picture(keyframe=True)
    camera.hub.push(AccessUnit(b"", 1, keyframe=False))
    assert len(viewer.lane) == 1
    assert camera.counters["units_out_of_order"] == 1


def stamps(viewer: LaneSender) -> list[int]:
    taken = []
    while (pts_90k := viewer.lane.take()) is not None:
        taken.append(pts_90k)
    return taken


async def test_a_viewer_changes_at_the_next_keyframe_and_misses_no_picture() -> None:
    camera, viewer, other = Camera(), LaneSender(), LaneSender()
    camera.hub.join(viewer, Quality.HD)
    camera.hub.join(other, Quality.HD)
    camera.picture(keyframe=True)
    switching = asyncio.create_task(camera.hub.switch(viewer, Quality.SD))
    await asyncio.sleep(0)
    assert camera.sd
    assert len(camera.asked_sd) == 1
    camera.picture(sd=False)
    assert not switching.done()
    assert stamps(viewer) == stamps(other) == [0, 2999]
    camera.picture(sd=True)
    await switching
    assert camera.hub.quality_of(viewer) is Quality.SD
    camera.picture(sd=False)
    # The third picture went out in both qualities: the keyframe of SD has a timestamp of its own.
    assert stamps(viewer) == [5999, 6000, 8999]
    assert stamps(other) == [5999, 8999]
    back = asyncio.create_task(camera.hub.switch(viewer, Quality.HD))
    await asyncio.sleep(0)
    camera.picture(keyframe=True, sd=False)
    await back
    assert not camera.sd, "nobody watches SD any more"
    assert stamps(viewer) == [11999]


async def test_a_change_that_is_given_up_leaves_all_as_it_was() -> None:
    camera, viewer = Camera(), LaneSender()
    camera.hub.join(viewer, Quality.HD)
    camera.picture(keyframe=True)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await camera.hub.switch(viewer, Quality.SD)
    assert not camera.sd
    camera.picture(keyframe=True, sd=True)
    assert camera.hub.quality_of(viewer) is Quality.HD
    assert len(stamps(viewer)) == 2


async def test_the_latest_of_two_changes_wins() -> None:
    camera, viewer = Camera(), LaneSender()
    camera.hub.join(viewer, Quality.HD)
    camera.picture(keyframe=True)
    first = asyncio.create_task(camera.hub.switch(viewer, Quality.SD))
    await asyncio.sleep(0)
    await camera.hub.switch(viewer, Quality.HD)
    with pytest.raises(Rejected, match="a later change, to hd, replaced this one"):
        await first
    assert (camera.hub.quality_of(viewer), camera.sd) == (Quality.HD, False)


async def test_the_same_change_twice_is_done_for_both_and_given_up_only_by_both() -> None:
    camera, viewer = Camera(), LaneSender()
    camera.hub.join(viewer, Quality.HD)
    camera.picture(keyframe=True)
    changes = [asyncio.create_task(camera.hub.switch(viewer, Quality.SD)) for _ in range(3)]
    await asyncio.sleep(0)
    changes[0].cancel()
    await asyncio.sleep(0)
    assert not any(change.done() for change in changes[1:])
    camera.picture(keyframe=True, sd=True)
    await asyncio.gather(*changes[1:])
    assert camera.hub.quality_of(viewer) is Quality.SD


async def test_sd_that_cannot_be_encoded_gives_its_viewers_hd() -> None:
    camera, watching, waiting = Camera(), LaneSender(), LaneSender()
    camera.hub.join(watching, Quality.SD)
    camera.hub.join(waiting, Quality.HD)
    camera.picture(keyframe=True, sd=True)
    switching = asyncio.create_task(camera.hub.switch(waiting, Quality.SD))
    await asyncio.sleep(0)
    camera.hub.no_sd("no more encoders")
    with pytest.raises(CameraUnavailable, match="no more encoders"):
        await switching
    camera.picture(keyframe=True)
    assert camera.hub.quality_of(watching) is Quality.HD
    assert not camera.sd
    assert len(stamps(watching)) == 2


async def test_a_viewer_that_leaves_ends_its_change() -> None:
    camera, viewer = Camera(), LaneSender()
    camera.hub.join(viewer, Quality.HD)
    switching = asyncio.create_task(camera.hub.switch(viewer, Quality.SD))
    await asyncio.sleep(0)
    camera.hub.leave(viewer)
    with pytest.raises(CameraUnavailable, match="gone"):
        await switching
    with pytest.raises(CameraUnavailable, match="gone"):
        await camera.hub.switch(viewer, Quality.SD)
    assert not camera.sd


async def test_sd_that_fails_again_gives_hd_again() -> None:
    camera = Camera()
    for _ in range(2):
        viewer = LaneSender()
        camera.hub.join(viewer, Quality.SD)
        assert camera.sd
        camera.hub.no_sd("no more encoders")
        assert not camera.sd, "what fails is not asked for until somebody wants it"
        camera.picture(keyframe=True)
        camera.picture()
        assert len(stamps(viewer)) == 2
        camera.hub.leave(viewer)


def test_a_viewer_that_joins_soon_after_another_does_not_wait_for_half_a_second() -> None:
    camera, first, second = Camera(), LaneSender(), LaneSender()
    camera.hub.join(first, Quality.HD)
    camera.picture(keyframe=True)
    camera.hub.join(second, Quality.HD)
    assert len(camera.asked) == 1
    for _ in range(6):
        first.lane.take()
        camera.picture()
    assert len(camera.asked) == 2
    assert camera.asked[1] - camera.asked[0] < 0.25
