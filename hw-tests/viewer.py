"""A WebRTC viewer that counts pictures without decoding them, so that decoding does not load the board."""

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

    from edge.client import RemoteCamera


def no_decoder() -> Any:
    """In this context, aiortc's receivers drop complete pictures in the decoder thread."""

    def drain(_loop: object, coded: queue.Queue[object], _pictures: object, _error: object) -> None:
        while coded.get() is not None:
            pass

    return patch.object(aiortc.rtcrtpreceiver, "decoder_worker", drain)


class Viewer:
    """One session, from an offer until `leave`. It sends RTCP reports and NACKs like any receiver.

    `seen_ns`: arrival time of the last packet of each picture, CLOCK_MONOTONIC.
    """

    def __init__(self, camera: RemoteCamera) -> None:
        self.seen_ns: list[int] = []
        self.session = ""
        self._camera = camera
        self._picture_seen = asyncio.Event()
        self._pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self._receiver = self._pc.addTransceiver("video", direction="recvonly").receiver
        self._ssrc: int | None = None
        self._timestamp: int | None = None
        # aiortc's jitter buffer returns a picture when the next one begins. The marker bit (RFC 6184, 5.1) is earlier.
        self._handle = self._receiver._handle_rtp_packet
        self._receiver._handle_rtp_packet = self._packet  # type: ignore[method-assign]

    async def join(self) -> float:
        """Returns: milliseconds from sending the offer to the first complete picture."""
        await self._pc.setLocalDescription(await self._pc.createOffer())
        started_ns = time.monotonic_ns()
        answer = await self._camera.offer(self._pc.localDescription.sdp)
        self.session = answer.session
        await self._pc.setRemoteDescription(RTCSessionDescription(answer.sdp, "answer"))
        await self.wait_for_pictures(1)
        return (self.seen_ns[0] - started_ns) / 1e6

    async def wait_for_pictures(self, count: int, timeout_s: float = 60) -> None:
        """Wait for `count` more pictures."""
        enough = len(self.seen_ns) + count
        async with asyncio.timeout(timeout_s):
            while len(self.seen_ns) < enough:
                self._picture_seen.clear()
                await self._picture_seen.wait()

    def longest_gap_s(self, since_ns: int) -> float:
        """The longest time between two pictures, of which the later arrived after `since_ns`."""
        return max(later - earlier for earlier, later in pairwise(self.seen_ns) if later > since_ns) / 1e9

    def frame_rate(self, since_ns: int) -> float:
        """Pictures per second from `since_ns` until now."""
        return sum(seen_ns > since_ns for seen_ns in self.seen_ns) * 1e9 / (time.monotonic_ns() - since_ns)

    @property
    def connected(self) -> bool:
        return bool(self._pc.connectionState == "connected")

    async def packets_lost(self) -> int:
        stats = await self._receiver.getStats()
        return sum(entry.packetsLost for entry in stats.values() if entry.type == "inbound-rtp")

    async def leave(self) -> None:
        """Close the session with a command, then the local peer connection."""
        await self._camera.close(self.session)
        await self.close()

    async def close(self) -> None:
        await self._pc.close()

    async def _packet(self, packet: RtpPacket, arrival_time_ms: int) -> None:
        if self._ssrc is None:
            self._ssrc = packet.ssrc
        # Retransmissions have another SSRC, and their picture is already counted.
        if packet.marker and packet.ssrc == self._ssrc and packet.timestamp != self._timestamp:
            self._timestamp = packet.timestamp
            self.seen_ns.append(time.monotonic_ns())
            self._picture_seen.set()
        await self._handle(packet, arrival_time_ms=arrival_time_ms)
