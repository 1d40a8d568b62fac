"""The fallback: aiortc's own packetizer and sender, fed by a track of access units."""

from __future__ import annotations

import asyncio
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from aiortc.mediastreams import MediaStreamError, MediaStreamTrack

from edge.core.lane import Lane

if TYPE_CHECKING:
    from collections.abc import Callable

    from av.packet import Packet

    from edge.core.access_unit import AccessUnit

_CLOCK_90K = Fraction(1, 90_000)


class TrackSender(MediaStreamTrack):
    """One viewer's lane as a track of aiortc, whose `recv` returns packets that are sent without encoding."""

    kind = "video"
    ended: Callable[[], None] = staticmethod(lambda: None)
    """Called when aiortc stops the track by itself."""

    def __init__(self) -> None:
        super().__init__()
        self._lane: Lane[tuple[AccessUnit, int]] = Lane()
        self._filled = asyncio.Event()
        self._closed = False

    @property
    def dropped(self) -> int:
        return self._lane.dropped

    def push(self, unit: AccessUnit, pts_90k: int) -> bool:
        if self.readyState != "live":
            return True  # it has ended and needs no keyframe
        queued = self._lane.push((unit, pts_90k), keyframe=unit.keyframe)
        self._filled.set()
        return queued

    async def recv(self) -> Packet[Any]:
        """Return the next access unit as a packet: Annex-B bytes, pts in 90 kHz.

        Raises: MediaStreamError: the track was stopped.
        """
        from av.packet import Packet  # noqa: PLC0415  most daemons never need the fallback, and so not PyAV

        while self.readyState == "live":
            item = self._lane.take()
            if item is not None:
                unit, pts_90k = item
                packet = Packet(unit.payload)
                packet.pts = packet.dts = pts_90k
                packet.time_base = _CLOCK_90K
                return packet
            self._filled.clear()
            await self._filled.wait()
        raise MediaStreamError

    def stop(self) -> None:
        """End the track; aiortc calls this, too, when it stops sending."""
        ended = self.readyState == "live" and not self._closed
        super().stop()
        self._filled.set()
        if ended:
            self.ended()

    def close(self) -> None:
        """Stop sending. Idempotent."""
        self._closed = True
        self.stop()
