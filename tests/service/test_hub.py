"""The hub: which sender gets which access unit, and when keyframes are requested."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter

import pytest

from edge.core.access_unit import AccessUnit, Quality
from edge.core.lane import Lane
from edge.errors import CameraUnavailable, Rejected
from edge.streaming.hub import Hub

FRAME_NS = 33_333_333


class LaneSender:
    """A sender that is only a lane, emptied by the test."""

    def __init__(self) -> None:
        self.lane: Lane[int] = Lane(limit=4)

    @property
    def dropped(self) -> int:
        return self.lane.dropped

    def push(self, unit: AccessUnit, pts_90k: int) -> bool:
        return self.lane.push(pts_90k, keyframe=unit.keyframe)


class Camera:
    def __init__(self) -> None:
        self.now_s = 5.0
        self.requested: list[float] = []
        self.counters: Counter[str] = Counter()
        self.requested_sd: list[float] = []
        self.sd = False
        self.hub = Hub(self, lambda: self.now_s, self.counters, dict.fromkeys(Quality, 1 / 30))
        self._frame = 0

    def request_keyframe(self, quality: Quality) -> None:
        (self.requested if quality is Quality.HD else self.requested_sd).append(self.now_s)

    def encode_sd(self, *, on: bool) -> None:
        self.sd = on

    @property
    def next_ns(self) -> int:
        """The capture time of the next picture."""
        return 5_000_000_000 + (self._frame + 1) * FRAME_NS

    def pause(self, frames: int) -> None:
        """Deliver nothing for so many frame times."""
        self._frame += frames
        self.now_s += frames * FRAME_NS / 1e9

    def picture(self, *, keyframe: bool = False, sd: bool | None = None, jump_ns: int = 0) -> None:
        """Push one picture in HD; and in SD, a keyframe or not, where `sd` is given. Its capture time may be wrong."""
        at_ns = self.next_ns + jump_ns
        self._frame += 1
        self.now_s += FRAME_NS / 1e9
        self.hub.push(AccessUnit(b"\0\0\0\1\x65", at_ns, keyframe))
        if sd is not None:
            self.hub.push(AccessUnit(b"\0\0\0\1\x65", at_ns, sd, Quality.SD))


def test_a_viewer_starts_at_the_keyframe_that_its_join_requested() -> None:
    camera, viewer = Camera(), LaneSender()
    camera.picture(keyframe=True)
    camera.hub.join(viewer, Quality.HD)
    assert len(camera.requested) == 1
    camera.picture()
    assert viewer.lane.take() is None
    camera.picture(keyframe=True)
    camera.picture()
    assert (viewer.lane.take(), viewer.lane.take()) == (6000 - 1, 9000 - 1)


def test_joins_and_losses_within_half_a_second_request_one_keyframe() -> None:
    camera, viewers = Camera(), [LaneSender() for _ in range(5)]
    for viewer in viewers:
        camera.hub.join(viewer, Quality.HD)
    camera.hub.request_keyframe(viewers[0])
    assert len(camera.requested) == 1
    camera.picture(keyframe=True)
    for _ in range(30):
        for viewer in viewers:
            viewer.lane.take()
        camera.picture()
    # The keyframe served the pending requests.
    assert len(camera.requested) == 1


def test_a_request_right_after_a_keyframe_is_sent_when_the_interval_ends() -> None:
    camera, viewer = Camera(), LaneSender()
    camera.hub.join(viewer, Quality.HD)
    camera.picture(keyframe=True)
    camera.hub.request_keyframe(viewer)
    assert len(camera.requested) == 1
    for _ in range(16):
        viewer.lane.take()
        camera.picture()
    assert len(camera.requested) == 2
    assert camera.requested[1] - camera.requested[0] >= 0.5


def test_a_full_lane_does_not_affect_other_viewers() -> None:
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
    assert len(camera.requested) >= 2, "the slow viewer needs a keyframe to continue"


def test_a_jump_of_the_capture_time_neither_drops_nor_delays_a_picture(caplog: pytest.LogCaptureFixture) -> None:
    camera, viewers = Camera(), [LaneSender(), LaneSender()]
    for viewer in viewers:
        camera.hub.join(viewer, Quality.HD)
    sent: list[list[int]] = [[], []]
    for number, jump_ns in enumerate([0, 0, 3600 * 10**9, 0, 0, *[-4 * 10**9] * 300, *[4 * 10**9] * 300]):
        camera.picture(keyframe=number == 0, jump_ns=jump_ns)
        for viewer, taken in zip(viewers, sent, strict=True):
            taken.extend(stamps(viewer))
    steps = {later - earlier for earlier, later in itertools.pairwise(sent[0])}
    assert len(sent[0]) == 605
    assert steps <= {2999, 3000}
    assert sent[0] == sent[1]
    assert camera.counters["capture_time_jumps"] == 3
    assert caplog.text.count("capture time jumped") == 1


@pytest.mark.parametrize("captured_ns", [0, 5_000_000_000])
def test_pictures_with_the_same_capture_time_are_neither_dropped_nor_delayed(
    captured_ns: int, caplog: pytest.LogCaptureFixture
) -> None:
    camera, viewer = Camera(), LaneSender()
    camera.hub.join(viewer, Quality.HD)
    sent: list[int] = []
    for number in range(300):
        camera.picture(keyframe=number == 0, jump_ns=captured_ns - camera.next_ns)
        sent += stamps(viewer)
    assert {later - earlier for earlier, later in itertools.pairwise(sent)} <= {2999, 3000}
    assert len(sent) == 300
    assert camera.counters["capture_time_jumps"] >= 299
    assert caplog.text.count("capture time jumped") == 1


def test_a_pause_of_the_camera_does_not_count_as_a_jump() -> None:
    camera, viewer = Camera(), LaneSender()
    camera.hub.join(viewer, Quality.HD)
    camera.picture(keyframe=True)
    camera.pause(round(60 / (FRAME_NS / 1e9)))
    camera.picture(keyframe=True)
    assert stamps(viewer) == [0, 90_000 * 60 + 3000 - 1]
    assert not camera.counters["capture_time_jumps"]


def stamps(viewer: LaneSender) -> list[int]:
    taken = []
    while (pts_90k := viewer.lane.take()) is not None:
        taken.append(pts_90k)
    return taken


async def test_a_change_of_quality_happens_at_a_keyframe_and_misses_no_picture() -> None:
    camera, viewer, other = Camera(), LaneSender(), LaneSender()
    camera.hub.join(viewer, Quality.HD)
    camera.hub.join(other, Quality.HD)
    camera.picture(keyframe=True)
    switching = asyncio.create_task(camera.hub.switch(viewer, Quality.SD))
    await asyncio.sleep(0)
    assert camera.sd
    assert len(camera.requested_sd) == 1
    camera.picture(sd=False)
    assert not switching.done()
    assert stamps(viewer) == stamps(other) == [0, 2999]
    camera.picture(sd=True)
    await switching
    assert camera.hub.quality_of(viewer) is Quality.SD
    camera.picture(sd=False)
    # The third picture was sent in both qualities, with different timestamps.
    assert stamps(viewer) == [5999, 6000, 8999]
    assert stamps(other) == [5999, 8999]
    back = asyncio.create_task(camera.hub.switch(viewer, Quality.HD))
    await asyncio.sleep(0)
    camera.picture(keyframe=True, sd=False)
    await back
    assert not camera.sd, "no viewer gets SD"
    assert stamps(viewer) == [11999]


async def test_a_cancelled_change_changes_nothing() -> None:
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


async def test_a_later_change_replaces_an_earlier_one() -> None:
    camera, viewer = Camera(), LaneSender()
    camera.hub.join(viewer, Quality.HD)
    camera.picture(keyframe=True)
    first = asyncio.create_task(camera.hub.switch(viewer, Quality.SD))
    await asyncio.sleep(0)
    await camera.hub.switch(viewer, Quality.HD)
    with pytest.raises(Rejected, match="a later change, to hd, replaced this one"):
        await first
    assert (camera.hub.quality_of(viewer), camera.sd) == (Quality.HD, False)


async def test_the_same_change_twice_is_cancelled_only_if_both_are() -> None:
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


async def test_viewers_get_hd_if_sd_cannot_be_encoded() -> None:
    camera, watching, waiting = Camera(), LaneSender(), LaneSender()
    camera.hub.join(watching, Quality.SD)
    camera.hub.join(waiting, Quality.HD)
    camera.picture(keyframe=True, sd=True)
    switching = asyncio.create_task(camera.hub.switch(waiting, Quality.SD))
    await asyncio.sleep(0)
    camera.hub.sd_failed("no more encoders")
    with pytest.raises(CameraUnavailable, match="no more encoders"):
        await switching
    camera.picture(keyframe=True)
    assert camera.hub.quality_of(watching) is Quality.HD
    assert not camera.sd
    assert len(stamps(watching)) == 2


async def test_leaving_ends_a_change() -> None:
    camera, viewer = Camera(), LaneSender()
    camera.hub.join(viewer, Quality.HD)
    switching = asyncio.create_task(camera.hub.switch(viewer, Quality.SD))
    await asyncio.sleep(0)
    camera.hub.leave(viewer)
    with pytest.raises(CameraUnavailable, match="disconnected"):
        await switching
    with pytest.raises(CameraUnavailable, match="disconnected"):
        await camera.hub.switch(viewer, Quality.SD)
    assert not camera.sd


async def test_sd_may_fail_repeatedly() -> None:
    camera = Camera()
    for _ in range(2):
        viewer = LaneSender()
        camera.hub.join(viewer, Quality.SD)
        assert camera.sd
        camera.hub.sd_failed("no more encoders")
        assert not camera.sd, "SD is not requested again until a viewer wants it"
        camera.picture(keyframe=True)
        camera.picture()
        assert len(stamps(viewer)) == 2
        camera.hub.leave(viewer)


def test_a_viewer_that_joins_soon_after_another_waits_less_than_half_a_second() -> None:
    camera, first, second = Camera(), LaneSender(), LaneSender()
    camera.hub.join(first, Quality.HD)
    camera.picture(keyframe=True)
    camera.hub.join(second, Quality.HD)
    assert len(camera.requested) == 1
    for _ in range(6):
        first.lane.take()
        camera.picture()
    assert len(camera.requested) == 2
    assert camera.requested[1] - camera.requested[0] < 0.25
