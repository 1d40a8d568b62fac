"""The whole way for real: mosquitto with TLS and client certificates, the daemon, the backend, Chromium."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edge.client import CameraClient, Signer
from edge.demo.backend import BackendSettings, make_backend
from edge.demo.server import serving
from edge.mqtt.settings import MqttSettings
from tests.rigs.certificates import Authority
from tests.rigs.chromium import chromium
from tests.rigs.daemon import Daemon, required
from tests.rigs.mosquitto import Mosquitto

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from playwright.async_api import BrowserContext, Page

    from edge.client import Camera

# The time that the page shows, read off its picture; null where no code is.
READ_CODE = """() => {
  const video = document.querySelector("video"), canvas = document.createElement("canvas");
  if (!video.videoWidth) return null;
  canvas.width = video.videoWidth; canvas.height = 16;
  const context = canvas.getContext("2d");
  context.drawImage(video, 0, 0);
  const now = Date.now(), block = Math.floor(canvas.width / 40);
  let bits = "";
  const light = (x) => context.getImageData(x, 8, 1, 1).data[1] > 128;
  for (let i = 0; i < 40; i++) bits += light(i * block + (block >> 1)) ? "1" : "0";
  const value = parseInt(bits.slice(0, 32), 2), sum = parseInt(bits.slice(32), 2);
  const want = ((value >>> 24) ^ (value >>> 16) ^ (value >>> 8) ^ value ^ 0x5a) & 0xff;
  return want === sum ? {value, late: (now >>> 0) - value} : null;
}"""


@dataclass
class Stack:
    """The parts, started."""

    broker: Mosquitto
    daemon: Daemon
    camera: Camera
    signer: Signer
    browser: BrowserContext
    url: str

    def token(self, scope: str = "view") -> str:
        """A fresh one, for the test's own commands."""
        return self.signer.sign(self.camera.device, "test", [scope])

    async def page(self, path: str = "/") -> Page:
        page = await self.browser.new_page()
        await page.goto(self.url + path)
        return page

    async def live_page(self) -> Page:
        """A page that shows video, decoded."""
        page = await self.page()
        await state(page, "live")
        await advances(page)
        return page


async def state(page: Page, wanted: str, timeout_s: float = 20) -> None:
    """Until the page is in a state."""
    await page.wait_for_function(
        "wanted => document.body.dataset.state === wanted", arg=wanted, timeout=timeout_s * 1000
    )


async def frames(page: Page) -> int:
    count: int = await page.evaluate("window.viewer.framesDecoded()")
    return count


async def advances(page: Page, by: int = 10, timeout_s: float = 15) -> float:
    """Until so many more frames were decoded; how long that took."""
    started_s, first = time.monotonic(), await frames(page)
    async with asyncio.timeout(timeout_s):
        while await frames(page) < first + by:
            await asyncio.sleep(0.05)
    return time.monotonic() - started_s


async def until(condition: Callable[[], Awaitable[object]], timeout_s: float = 15) -> None:
    async with asyncio.timeout(timeout_s):
        while not await condition():
            await asyncio.sleep(0.05)


@asynccontextmanager
async def running(
    directory: Path,
    *,
    environment: dict[str, str] | None = None,
    backend: BackendSettings | None = None,
    hide_addresses: bool = True,
    **sections: Any,
) -> AsyncIterator[Stack]:
    """Start everything; at the end, stop everything, and fail where a part left a traceback."""
    authority = Authority(directory)
    broker = Mosquitto(directory, authority=authority)
    broker.start()

    def identity(name: str) -> dict[str, Any]:
        certificate, key = authority.issue(name)
        files = {"ca_file": str(authority.ca_file), "cert_file": str(certificate), "key_file": str(key)}
        return broker.settings(reconnect_cap_s=1, **files)

    signer = Signer.generate()
    sections["auth"] = required(signer, directory)
    daemon = Daemon(directory, identity("cam-1"), environment=environment, **sections)
    try:
        await asyncio.to_thread(daemon.start)
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
            async with CameraClient.connect(MqttSettings(**identity("bff-1")), "bff-1") as client:
                camera = client.camera("cam-1")
                app = make_backend(camera, signer, backend or BackendSettings())
                async with serving(app, listener), chromium(hide_addresses=hide_addresses) as browser:
                    yield Stack(broker, daemon, camera, signer, browser, f"http://127.0.0.1:{port}")
    finally:
        await asyncio.to_thread(daemon.end)
        broker.stop()
