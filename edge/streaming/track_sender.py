"""The first sender: aiortc's own packetizer and sender, fed from a lane by a track of coded pictures."""

from __future__ import annotations

import asyncio
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from av.packet import Packet

from edge.core.lane import Lane

if TYPE_CHECKING:
    from edge.core.access_unit import AccessUnit

_CLOCK_90K = Fraction(1, 90_000)


class TrackSender(MediaStreamTrack):
    """A viewer's lane, seen from aiortc as a track whose `recv` gives packets that are sent as they are."""

    kind = "video"

    def __init__(self, limit: int = 8) -> None:
        super().__init__()
        self._lane: Lane[tuple[AccessUnit, int]] = Lane(limit)
        self._filled = asyncio.Event()

    @property
    def dropped(self) -> int:
        return self._lane.dropped

    def push(self, unit: AccessUnit, pts_90k: int) -> bool:
        if self.readyState != "live":
            return True  # it will not go on: no keyframe is of any use to it
        on_way = self._lane.push((unit, pts_90k), keyframe=unit.keyframe)
        self._filled.set()
        return on_way

    async def recv(self) -> Packet[Any]:
        """The next access unit as a packet: Annex-B bytes, pts in 90 kHz.

        Raises: MediaStreamError: the track was stopped.
        """
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
        super().stop()
        self._filled.set()

    def close(self) -> None:
        """As of every sender."""
        self.stop()
