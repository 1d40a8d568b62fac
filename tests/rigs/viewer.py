"""A viewer with aiortc that opens its session by the daemon's commands and decodes the video."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError

from edge.contract.messages import CameraNoticeBody

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge.client import RemoteCamera

TIMEOUT_S = 20


class Viewer:
    """One receiver with one connection. `widths`: of all decoded pictures. `notices`: notifications of the camera."""

    def __init__(self) -> None:
        self.widths: list[int] = []
        self.notices: list[CameraNoticeBody] = []
        self.pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.pc.addTransceiver("video", direction="recvonly")
        self.pc.on("track", lambda track: self._tasks.append(asyncio.create_task(self._receive(track))))
        self._tasks: list[asyncio.Task[None]] = []
        self._changed = asyncio.Event()
        self.session = ""

    async def watch(self, camera: RemoteCamera, quality: Any = "auto", token: str | None = None) -> None:
        await self.pc.setLocalDescription(await self.pc.createOffer())
        answer = await camera.offer(self.pc.localDescription.sdp, trickle=False, quality=quality, token=token)
        self.session = answer.session
        self._tasks.append(asyncio.create_task(self._listen(camera)))
        await self.pc.setRemoteDescription(RTCSessionDescription(answer.sdp, "answer"))

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def wait_for_pictures(self, count: int = 5) -> None:
        enough = len(self.widths) + count
        await self.until(lambda: len(self.widths) >= enough)

    async def wait_for_width(self, width: int) -> None:
        await self.until(lambda: self.widths[-1] == width)

    async def wait_for_stall_notices(self) -> None:
        """Wait for the notification that the picture is frozen, and then for the one that it is live again."""
        await self.until(lambda: [notice.state for notice in self.notices][:1] == ["stalled"])
        await self.until(lambda: self.notices[-1].state == "live")

    async def close(self) -> None:
        await self.pc.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _listen(self, camera: RemoteCamera) -> None:
        async for message in camera.candidates(self.session):
            if isinstance(message, CameraNoticeBody):
                self.notices.append(message)
                self._changed.set()

    async def _receive(self, track: Any) -> None:
        try:
            while True:
                self.widths.append((await track.recv()).width)
                self._changed.set()
        except MediaStreamError:
            pass
