"""A viewer over real WebRTC that counts pictures and decodes none, so that the board's time is the daemon's."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import aiortc.rtcrtpreceiver
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription

if TYPE_CHECKING:
    import queue

    from aiortc.rtp import RtpPacket

    from edge.client import Camera


def no_decoder() -> Any:
    """In this context aiortc's receivers throw whole pictures away, in the thread that would decode them."""

    def drain(_loop: object, coded: queue.Queue[object], _pictures: object, _error: object) -> None:
        while coded.get() is not None:
            pass

    return patch.object(aiortc.rtcrtpreceiver, "decoder_worker", drain)


class Viewer:
    """One session, from an offer until `leave`. Packets are acknowledged and asked for again as by any receiver.

    `seen_ns`: when the last packet of each picture came, CLOCK_MONOTONIC.
    """

    def __init__(self, camera: Camera) -> None:
        self.seen_ns: list[int] = []
        self.session = ""
        self._camera = camera
        self._news = asyncio.Event()
        self._pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self._receiver = self._pc.addTransceiver("video", direction="recvonly").receiver
        self._ssrc: int | None = None
        self._timestamp: int | None = None
        # aiortc's jitter buffer gives a picture when the next one begins; the marker bit (RFC 6184, 5.1) tells it.
        self._handle = self._receiver._handle_rtp_packet
        self._receiver._handle_rtp_packet = self._packet  # type: ignore[method-assign]

    async def join(self) -> float:
        """From the offer on its way to the first whole picture, in milliseconds."""
        await self._pc.setLocalDescription(await self._pc.createOffer())
        begun_ns = time.monotonic_ns()
        answer = await self._camera.offer(self._pc.localDescription.sdp)
        self.session = answer.session
        await self._pc.setRemoteDescription(RTCSessionDescription(answer.sdp, "answer"))
        await self.sees(1)
        return (self.seen_ns[0] - begun_ns) / 1e6

    async def sees(self, count: int, timeout_s: float = 60) -> None:
        """Wait for so many more pictures."""
        enough = len(self.seen_ns) + count
        async with asyncio.timeout(timeout_s):
            while len(self.seen_ns) < enough:
                self._news.clear()
                await self._news.wait()

    def longest_gap_s(self, since_ns: int) -> float:
        """Between two pictures, of which the later one came after a moment."""
        return max(later - earlier for earlier, later in pairwise(self.seen_ns) if later > since_ns) / 1e9

    def frame_rate(self, since_ns: int) -> float:
        """Until now, by the clock on the wall: pictures that stay away count."""
        return sum(seen_ns > since_ns for seen_ns in self.seen_ns) * 1e9 / (time.monotonic_ns() - since_ns)

    @property
    def connected(self) -> bool:
        return bool(self._pc.connectionState == "connected")

    async def packets_lost(self) -> int:
        stats = await self._receiver.getStats()
        return sum(entry.packetsLost for entry in stats.values() if entry.type == "inbound-rtp")

    async def leave(self) -> None:
        """End the session by a command, then our end of it."""
        await self._camera.close(self.session)
        await self.close()

    async def close(self) -> None:
        await self._pc.close()

    async def _packet(self, packet: RtpPacket, arrival_time_ms: int) -> None:
        if self._ssrc is None:
            self._ssrc = packet.ssrc
        # What is sent again comes with another SSRC, and was counted.
        if packet.marker and packet.ssrc == self._ssrc and packet.timestamp != self._timestamp:
            self._timestamp = packet.timestamp
            self.seen_ns.append(time.monotonic_ns())
            self._news.set()
        await self._handle(packet, arrival_time_ms=arrival_time_ms)
