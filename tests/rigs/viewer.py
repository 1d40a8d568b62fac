"""A viewer who sees what comes: aiortc on a connection through the daemon's commands."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError

from edge.contract.messages import CameraNoticeBody

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge.client import Camera

GENEROUS_S = 20


class Viewer:
    """A receiver on a connection that is made once."""

    def __init__(self) -> None:
        self.widths: list[int] = []
        self.notices: list[CameraNoticeBody] = []
        self.pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.pc.addTransceiver("video", direction="recvonly")
        self.pc.on("track", lambda track: self._tasks.append(asyncio.create_task(self._see(track))))
        self._tasks: list[asyncio.Task[None]] = []
        self._news = asyncio.Event()
        self.session = ""

    async def watch(self, camera: Camera, quality: Any = "auto", token: str | None = None) -> None:
        await self.pc.setLocalDescription(await self.pc.createOffer())
        answer = await camera.offer(self.pc.localDescription.sdp, trickle=False, quality=quality, token=token)
        self.session = answer.session
        self._tasks.append(asyncio.create_task(self._listen(camera)))
        await self.pc.setRemoteDescription(RTCSessionDescription(answer.sdp, "answer"))

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(GENEROUS_S):
            while not true():
                self._news.clear()
                await self._news.wait()

    async def more_pictures(self, count: int = 5) -> None:
        enough = len(self.widths) + count
        await self.until(lambda: len(self.widths) >= enough)

    async def sees(self, width: int) -> None:
        await self.until(lambda: self.widths[-1] == width)

    async def told_of_a_stall(self) -> None:
        """That the picture stands still, and then that it moves again."""
        await self.until(lambda: [notice.state for notice in self.notices][:1] == ["stalled"])
        await self.until(lambda: self.notices[-1].state == "live")

    async def close(self) -> None:
        await self.pc.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _listen(self, camera: Camera) -> None:
        async for message in camera.candidates(self.session):
            if isinstance(message, CameraNoticeBody):
                self.notices.append(message)
                self._news.set()

    async def _see(self, track: Any) -> None:
        try:
            while True:
                self.widths.append((await track.recv()).width)
                self._news.set()
        except MediaStreamError:
            pass
