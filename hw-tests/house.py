"""The whole daemon as a process, and the demo's broker, on loopback."""

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

    from edge.client import Camera
    from edge.contract.messages import CameraStatus

PATIENCE_S = 60.0
CLOSING_S = 1.5
DEVICE = "cam-1"


@dataclass
class House:
    """The parts, started."""

    daemon: Daemon
    camera: Camera
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
        """One more viewer; milliseconds until its first picture."""
        viewer = Viewer(self.camera)
        self.viewers.append(viewer)
        return await viewer.join()

    async def leave(self) -> None:
        """The viewer that came last goes, and is gone."""
        await self.viewers.pop().leave()
        await self.until_sessions(len(self.viewers))

    async def status(self) -> CameraStatus:
        status = (await self.camera.status()).camera
        assert status is not None
        return status

    async def until_status(self, true: Callable[[CameraStatus], object]) -> CameraStatus:
        async with asyncio.timeout(PATIENCE_S):
            while not true(status := await self.status()):
                await asyncio.sleep(0.05)
        return status

    async def until_closed(self) -> None:
        """Until the camera is released."""
        await self.until_status(lambda status: status.state == "closed")
        # It is said when the order was given; a camera takes its time to let go.
        await asyncio.sleep(CLOSING_S)

    async def until_sessions(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while len(await self.camera.sessions()) != count:
                await asyncio.sleep(0.05)


@asynccontextmanager
async def house(directory: Path, **camera: Any) -> AsyncIterator[House]:
    """All of it; at the end all viewers go, and the daemon's log must hold no traceback. `camera`: its settings."""
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
        # In threads: the broker that it wants to talk to is in this loop.
        stack.push_async_callback(asyncio.to_thread, daemon.end)
        await asyncio.to_thread(daemon.start)
        client = await stack.enter_async_context(CameraClient.connect(MqttSettings(**mqtt), "hw-test"))
        made = House(daemon, client.camera(DEVICE))
        async with asyncio.timeout(PATIENCE_S):
            await made.camera.online()
        await made.until_status(lambda status: status.source)
        try:
            yield made
        finally:
            for viewer in made.viewers:
                await viewer.close()
