"""The encodes' distribution: every access unit to every sender of its quality, keyframes asked for once for all."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from edge.contract.codes import Code
from edge.core.access_unit import Quality
from edge.core.keyframes import KeyframeRequests, ViewerWishes
from edge.core.lateness import Lateness
from edge.errors import CameraUnavailable, Rejected

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Mapping

    from edge.core.access_unit import AccessUnit

log = logging.getLogger(__name__)

_TELL_LATE_S = 10.0
_NS_PER_90K_NUM, _NS_PER_90K_DEN = 9, 100_000


class Sender(Protocol):
    """One viewer's way out, pushed access units. Event loop only, never blocks, never raises."""

    @property
    def dropped(self) -> int:
        """Access units that this viewer was not sent, since it was too slow."""

    def push(self, unit: AccessUnit, pts_90k: int) -> bool:
        """Send, queue or drop. False: this viewer can go on only from a keyframe, and could take one now."""


class Encodes(Protocol):
    """The camera, as far as its encodes are asked for something. None of these waits."""

    def request_keyframe(self, quality: Quality) -> None: ...

    def encode_sd(self, *, on: bool) -> None: ...


@dataclass(slots=True)
class _Encode:
    lateness: Lateness
    requests: KeyframeRequests = field(default_factory=KeyframeRequests)
    last_ns: int = 0


@dataclass(slots=True)
class _Seat:
    """One sender: what it gets, what it is to get from the next keyframe of that on, and who waits for that."""

    quality: Quality
    wanted: Quality
    last_pts_90k: int = -1
    wishes: ViewerWishes = field(default_factory=ViewerWishes)
    waiting: list[asyncio.Future[None]] = field(default_factory=list)

    def arrive(self, trouble: Exception | None = None) -> None:
        waiting, self.waiting = self.waiting, []
        for moved in waiting:
            if moved.done():
                continue
            if trouble is None:
                moved.set_result(None)
            else:
                moved.set_exception(trouble)


class Hub:
    """The senders of all qualities.

    A keyframe of a quality is asked for at most once per half second, however many wish, sooner for one that joins; for
    one that loses again and again every four seconds, or every second where it watches alone. `now_s` is the monotonic
    clock, `frame_s` of each quality.
    SD is encoded while a sender gets it or is to. Timestamps come from the capture clock, one for both, so that they do
    not care how the access units were scheduled on the way; one that does not advance (a fault of the encoder) is
    dropped and counted: a receiver would see a jump back.
    """

    def __init__(
        self,
        encodes: Encodes,
        now_s: Callable[[], float],
        counters: Counter[str],
        frame_s: Mapping[Quality, float],
    ) -> None:
        self._camera = encodes
        self._now_s = now_s
        self._counters = counters
        self._encodes = {quality: _Encode(Lateness(frame_s[quality])) for quality in Quality}
        self._seats: dict[Sender, _Seat] = {}
        self._epoch_ns: int | None = None
        self._sd_lives = True
        self._told_late_s = float("-inf")
        self._late = 0

    def join(self, sender: Sender, quality: Quality) -> None:
        """From now on this sender is pushed to; a keyframe is asked for, for it."""
        self._seats[sender] = _Seat(quality, quality)
        self._count()
        self._wish(quality, joins=True)

    def leave(self, sender: Sender) -> None:
        """Idempotent."""
        seat = self._seats.pop(sender, None)
        if seat is not None:
            self._counters["units_dropped"] += sender.dropped
            seat.arrive(CameraUnavailable("the viewer has gone"))
            self._count()

    def quality_of(self, sender: Sender) -> Quality | None:
        """What a sender gets now; None: it has not joined."""
        seat = self._seats.get(sender)
        return seat.quality if seat else None

    async def switch(self, sender: Sender, quality: Quality) -> None:
        """Give a sender the other quality, from its next keyframe on; returns when it got that. It misses no picture.

        Raises: CameraUnavailable: the quality cannot be had, or the sender has left. Rejected: `rate_limited`, a later
        change to another quality replaced this one. Cancelled: it stays as it was.
        """
        seat = self._seats.get(sender)
        if seat is None:
            raise CameraUnavailable("the viewer has gone")
        if seat.wanted is not quality:
            seat.arrive(Rejected(Code.RATE_LIMITED, f"a later change, to {quality}, replaced this one"))
            seat.wanted = quality
            self._count()
        if seat.quality is quality:
            return
        moved: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        seat.waiting.append(moved)
        self._wish(quality)
        try:
            await moved
        finally:
            if moved in seat.waiting:  # given up
                seat.waiting.remove(moved)
                if not seat.waiting:
                    seat.wanted = seat.quality
                    self._count()

    def no_sd(self, why: str) -> None:
        """SD is not encoded any more: whoever has it or waits for it gets HD."""
        self._sd_lives = False
        for seat in self._seats.values():
            if seat.wanted is Quality.SD:
                seat.wanted = Quality.HD
                seat.arrive(CameraUnavailable(f"SD cannot be encoded: {why}"))
        self._count()
        self._wish(Quality.HD)

    def wish_keyframe(self, sender: Sender) -> None:
        """A viewer needs a keyframe: it lost packets (PLI, FIR)."""
        seat = self._seats.get(sender)
        if seat is not None and seat.wishes.wish(self._now_s(), alone=self._alone(seat.quality)):
            self._wish(seat.quality)

    def push(self, unit: AccessUnit) -> None:
        """Distribute; called by the camera part for every access unit."""
        encode = self._encodes[unit.quality]
        if self._epoch_ns is None:
            self._epoch_ns = unit.captured_ns
        if unit.captured_ns <= encode.last_ns or unit.captured_ns < self._epoch_ns:
            self._counters["units_out_of_order"] += 1
            return
        encode.last_ns = unit.captured_ns
        pts_90k = (unit.captured_ns - self._epoch_ns) * _NS_PER_90K_NUM // _NS_PER_90K_DEN
        if unit.keyframe:
            encode.requests.came()
        wished = self._give(unit, pts_90k)
        if unit.keyframe:
            self._sd_lives |= unit.quality is Quality.SD
            self._count()
        if self._seats:
            self._judge(unit, encode.lateness)
        if wished:
            self._wish(unit.quality)
        elif encode.requests.due(self._now_s()):
            self._ask(unit.quality)

    def _give(self, unit: AccessUnit, pts_90k: int) -> bool:
        """Push to those who get this quality, or do from now on; True: somebody needs a keyframe, and may have one."""
        wished = False
        for sender, seat in self._seats.items():
            if unit.keyframe and seat.quality is not unit.quality and seat.wanted is unit.quality:
                seat.quality = unit.quality
                seat.arrive()
            if seat.quality is unit.quality:
                # The other quality of this very picture may have gone out: two pictures never share a timestamp.
                seat.last_pts_90k = max(pts_90k, seat.last_pts_90k + 1)
                on_way = sender.push(unit, seat.last_pts_90k)
                if unit.keyframe:
                    seat.wishes.came()
                if not on_way or seat.wishes.pending:
                    wished |= seat.wishes.wish(self._now_s(), alone=self._alone(unit.quality))
        return wished

    def _alone(self, quality: Quality) -> bool:
        """Whether no more than one sender gets this encode."""
        return sum(seat.quality is quality for seat in self._seats.values()) < 2

    def _judge(self, unit: AccessUnit, lateness: Lateness) -> None:
        """Count what left late; say so, now and then: a thread that computes in this process holds up every viewer."""
        now_s = self._now_s()
        if lateness.late(now_s - unit.captured_ns / 1e9):
            self._counters["late_frames"] += 1
            self._late += 1
        if self._late and now_s - self._told_late_s >= _TELL_LATE_S:
            self._told_late_s, late = now_s, self._late
            self._late = 0
            log.warning("%d pictures left more than a frame's time late: is something computing in this process?", late)

    def _count(self) -> None:
        wanted = any(seat.wanted is Quality.SD for seat in self._seats.values())
        # Who is to get HD still gets SD until HD's keyframe, if there is any SD.
        leaving = self._sd_lives and any(seat.quality is Quality.SD for seat in self._seats.values())
        self._camera.encode_sd(on=wanted or leaving)

    def _wish(self, quality: Quality, *, joins: bool = False) -> None:
        self._counters["keyframe_wishes"] += 1
        if self._encodes[quality].requests.wish(self._now_s(), joins=joins):
            self._ask(quality)

    def _ask(self, quality: Quality) -> None:
        self._counters["keyframe_requests"] += 1
        self._camera.request_keyframe(quality)
