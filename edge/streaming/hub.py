"""Distributes the access units of both encodes to the senders, and requests keyframes for all of them."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from edge.contract.codes import Code
from edge.core.access_unit import Quality
from edge.core.capture_clock import CaptureClock, rtp_ticks
from edge.core.keyframes import KeyframeRequests, ViewerRequests
from edge.core.lateness import Lateness
from edge.core.log_limit import LogLimit
from edge.errors import CameraUnavailable, Rejected

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Mapping

    from edge.core.access_unit import AccessUnit

log = logging.getLogger(__name__)

_LOG_LATE_S = 10.0
_LOG_JUMPS_S = 600.0


class Sender(Protocol):
    """Sends access units to one viewer. Event loop only; never blocks, never raises."""

    @property
    def dropped(self) -> int:
        """Access units that were not sent because the viewer was too slow."""

    def push(self, unit: AccessUnit, pts_90k: int) -> bool:
        """Send, queue or drop. False: this viewer needs a keyframe to continue, and could take one now."""


class Encodes(Protocol):
    """What the hub requests from the camera. No method waits."""

    def request_keyframe(self, quality: Quality) -> None: ...

    def encode_sd(self, *, on: bool) -> None: ...


@dataclass(slots=True)
class _Encode:
    lateness: Lateness
    requests: KeyframeRequests = field(default_factory=KeyframeRequests)
    clock: CaptureClock = field(default_factory=CaptureClock)


@dataclass(slots=True)
class _Subscription:
    """One sender: the quality that it gets, the one that it changes to at that quality's next keyframe, and waiters."""

    quality: Quality
    target: Quality
    last_pts_90k: int = -1
    requests: ViewerRequests = field(default_factory=ViewerRequests)
    waiters: list[asyncio.Future[None]] = field(default_factory=list)

    def resolve(self, error: Exception | None = None) -> None:
        """End the change of quality for everything that waits for it."""
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            if waiter.done():
                continue
            if error is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(error)


class Hub:
    """Knows the senders of both qualities.

    A keyframe of a quality is requested at most twice per second for all viewers together, and sooner for a viewer that
    joins. Repeated requests of one viewer back off.
    SD is encoded only while a sender gets it or changes to it.
    Timestamps come from the capture clock, so that delays on the way do not affect them. Both qualities share one time
    base. Capture times that jump or repeat are corrected and counted as `capture_time_jumps`.
    `now_s`: the monotonic clock. `frame_s`: the frame time of each quality.
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
        self._subscriptions: dict[Sender, _Subscription] = {}
        self._epoch_ns: int | None = None
        self._sd_available = True
        self._late = LogLimit(_LOG_LATE_S)
        self._jumps = LogLimit(_LOG_JUMPS_S)

    def join(self, sender: Sender, quality: Quality) -> None:
        """Push to this sender from now on, and request a keyframe for it."""
        self._subscriptions[sender] = _Subscription(quality, quality)
        self._update_sd()
        self._request(quality, joins=True)

    def leave(self, sender: Sender) -> None:
        """Stop pushing to this sender. Idempotent."""
        subscription = self._subscriptions.pop(sender, None)
        if subscription is not None:
            self._counters["units_dropped"] += sender.dropped
            subscription.resolve(CameraUnavailable("the viewer has disconnected"))
            self._update_sd()

    def quality_of(self, sender: Sender) -> Quality | None:
        """Return the quality that a sender gets now; None: it has not joined."""
        subscription = self._subscriptions.get(sender)
        return subscription.quality if subscription else None

    async def switch(self, sender: Sender, quality: Quality) -> None:
        """Change a sender to the other quality at its next keyframe; no picture is missed. Returns after the change.

        Raises: CameraUnavailable: the quality is not available, or the sender left. Rejected: `rate_limited`, a later
        change to another quality replaced this one. If cancelled, the quality stays as it was.
        """
        subscription = self._subscriptions.get(sender)
        if subscription is None:
            raise CameraUnavailable("the viewer has disconnected")
        if subscription.target is not quality:
            subscription.resolve(Rejected(Code.RATE_LIMITED, f"a later change, to {quality}, replaced this one"))
            subscription.target = quality
            self._update_sd()
        if subscription.quality is quality:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        subscription.waiters.append(waiter)
        self._request(quality)
        try:
            await waiter
        finally:
            if waiter in subscription.waiters:  # cancelled
                subscription.waiters.remove(waiter)
                if not subscription.waiters:
                    subscription.target = subscription.quality
                    self._update_sd()

    def sd_failed(self, reason: str) -> None:
        """SD is no longer encoded: every sender that gets it or waits for it gets HD."""
        self._sd_available = False
        for subscription in self._subscriptions.values():
            if subscription.target is Quality.SD:
                subscription.target = Quality.HD
                subscription.resolve(CameraUnavailable(f"SD cannot be encoded: {reason}"))
        self._update_sd()
        self._request(Quality.HD)

    def request_keyframe(self, sender: Sender) -> None:
        """Request a keyframe for a viewer that lost packets (PLI, FIR)."""
        subscription = self._subscriptions.get(sender)
        if subscription is not None and subscription.requests.request(
            self._now_s(), sole=self._sole(subscription.quality)
        ):
            self._request(subscription.quality)

    def push(self, unit: AccessUnit) -> None:
        """Distribute an access unit of the camera."""
        encode = self._encodes[unit.quality]
        unit = self._correct(unit, encode.clock)
        if self._epoch_ns is None:
            self._epoch_ns = unit.captured_ns
        pts_90k = rtp_ticks(unit.captured_ns - self._epoch_ns)
        if unit.keyframe:
            encode.requests.delivered()
        needed = self._distribute(unit, pts_90k)
        if unit.keyframe:
            self._sd_available |= unit.quality is Quality.SD
            self._update_sd()
        if self._subscriptions and not encode.clock.corrected:
            self._check_lateness(unit, encode.lateness)
        if needed:
            self._request(unit.quality)
        elif encode.requests.due(self._now_s()):
            self._ask_camera(unit.quality)

    def _distribute(self, unit: AccessUnit, pts_90k: int) -> bool:
        """Push to the senders of this quality. Returns whether one needs a keyframe and may request it now."""
        needed = False
        for sender, subscription in self._subscriptions.items():
            if unit.keyframe and subscription.quality is not unit.quality and subscription.target is unit.quality:
                subscription.quality = unit.quality
                subscription.resolve()
            if subscription.quality is unit.quality:
                # After a change, the other quality of the same picture may have been sent: timestamps never repeat.
                subscription.last_pts_90k = max(pts_90k, subscription.last_pts_90k + 1)
                continues = sender.push(unit, subscription.last_pts_90k)
                if unit.keyframe:
                    subscription.requests.delivered()
                if not continues or subscription.requests.pending:
                    needed |= subscription.requests.request(self._now_s(), sole=self._sole(unit.quality))
        return needed

    def _sole(self, quality: Quality) -> bool:
        """Return whether at most one sender gets this quality."""
        return sum(subscription.quality is quality for subscription in self._subscriptions.values()) < 2

    def _correct(self, unit: AccessUnit, clock: CaptureClock) -> AccessUnit:
        now_s, jumps = self._now_s(), clock.jumps
        captured_ns = clock.correct(unit.captured_ns, int(now_s * 1e9))
        if clock.jumps > jumps:
            self._counters["capture_time_jumps"] += 1
            if count := self._jumps.due(now_s):
                off_s = unit.captured_ns / 1e9 - now_s
                log.warning("capture time jumped quality=%s off_s=%.3f count=%d", unit.quality, off_s, count)
        return unit if captured_ns == unit.captured_ns else replace(unit, captured_ns=captured_ns)

    def _check_lateness(self, unit: AccessUnit, lateness: Lateness) -> None:
        """Count and log late access units: a thread that computes in this process delays every viewer."""
        now_s = self._now_s()
        age_s = now_s - unit.captured_ns / 1e9
        if age_s >= 0 and lateness.late(age_s):
            self._counters["late_frames"] += 1
            if count := self._late.due(now_s):
                log.warning("frames left late count=%d; is the CPU overloaded?", count)

    def _update_sd(self) -> None:
        needed = any(subscription.target is Quality.SD for subscription in self._subscriptions.values())
        # A sender that changes to HD still gets SD until HD's next keyframe.
        leaving = self._sd_available and any(
            subscription.quality is Quality.SD for subscription in self._subscriptions.values()
        )
        self._camera.encode_sd(on=needed or leaving)

    def _request(self, quality: Quality, *, joins: bool = False) -> None:
        self._counters["keyframe_wishes"] += 1
        if self._encodes[quality].requests.request(self._now_s(), joins=joins):
            self._ask_camera(quality)

    def _ask_camera(self, quality: Quality) -> None:
        self._counters["keyframe_requests"] += 1
        self._camera.request_keyframe(quality)
