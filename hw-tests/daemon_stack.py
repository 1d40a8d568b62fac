"""The daemon as a process and the demo's broker, on loopback."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edge.client import CameraClient
from edge.demo.broker import EmbeddedBroker
from edge.mqtt.settings import MqttSettings
from tests.rigs.daemon import Daemon, free_port
from viewer import Viewer, no_decoder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from edge.client import RemoteCamera
    from edge.contract.messages import CameraStatus

TIMEOUT_S = 60.0
CAMERA_CLOSE_S = 1.5
DEVICE = "cam-1"


@dataclass
class DaemonStack:
    """The running parts and the viewers."""

    daemon: Daemon
    camera: RemoteCamera
    viewers: list[Viewer] = field(default_factory=list)

    @property
    def daemon_pid(self) -> int:
        assert self.daemon.process is not None
        return self.daemon.process.pid

    @property
    def camera_pid(self) -> int:
        (pid,) = self.daemon.children()
        return pid

    async def join(self) -> float:
        """Add a viewer. Returns: milliseconds until its first picture."""
        viewer = Viewer(self.camera)
        self.viewers.append(viewer)
        return await viewer.join()

    async def leave(self) -> None:
        """Close the newest viewer and wait for the end of its session."""
        await self.viewers.pop().leave()
        await self.wait_for_sessions(len(self.viewers))

    async def status(self) -> CameraStatus:
        return (await self.camera.status()).camera

    async def wait_for_status(self, condition: Callable[[CameraStatus], object]) -> CameraStatus:
        async with asyncio.timeout(TIMEOUT_S):
            while not condition(status := await self.status()):
                await asyncio.sleep(0.05)
        return status

    async def wait_until_closed(self) -> None:
        """Wait until the camera is released."""
        await self.wait_for_status(lambda status: status.state == "closed")
        # The status changes when closing starts; the camera needs some time to finish.
        await asyncio.sleep(CAMERA_CLOSE_S)

    async def wait_for_sessions(self, count: int) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while len(await self.camera.sessions()) != count:
                await asyncio.sleep(0.05)


@asynccontextmanager
async def daemon_stack(directory: Path, **camera: Any) -> AsyncIterator[DaemonStack]:
    """Run all parts. At the end, close the viewers and fail if the log contains a traceback. `camera`: its settings."""
    mqtt: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": free_port(),
        "tls": False,
        "version": "3.1.1",
        "reconnect_cap_s": 1,
    }
    async with AsyncExitStack() as stack:
        stack.enter_context(no_decoder())
        await stack.enter_async_context(EmbeddedBroker(mqtt["host"], mqtt["port"]))
        daemon = Daemon(directory, mqtt, camera=camera, device={"id": DEVICE})
        # In threads: the daemon talks to the broker in this loop.
        stack.push_async_callback(asyncio.to_thread, daemon.end)
        await asyncio.to_thread(daemon.start)
        client = await stack.enter_async_context(CameraClient.connect(MqttSettings(**mqtt), "hw-test"))
        running = DaemonStack(daemon, client.camera(DEVICE))
        async with asyncio.timeout(TIMEOUT_S):
            await running.camera.online()
        await running.wait_for_status(lambda status: status.source)
        try:
            yield running
        finally:
            for viewer in running.viewers:
                await viewer.close()
